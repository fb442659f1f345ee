"""The programs that run on a device: POSIX sh, nothing else is assumed. `$1` is the name of a job folder.

In a job folder lie the job's own files and

    output    what the job printed
    pid       its process, which leads a process group
    starting  locked by whoever is starting it
    started   it was started; when it ends this becomes exit.CODE, a renaming, which a full disk does not prevent
    *-before* settings of the device that the job is to restore
"""

from __future__ import annotations

PRELUDE = r"""set -eu
umask 077
LC_ALL=C; export LC_ALL
cd "${HOME:?}"
root=.cache/ppexport
"""

STATES = r"""
alive() {
    pid=$(cat "$job/pid" 2>/dev/null) || return 1
    case $pid in ''|*[!0-9]*) return 1 ;; esac
    kill -0 "$pid" 2>/dev/null || return 1
    # After a restart of the machine the number may belong to another program. The command line of ours names the job
    # from its first moment on, when it is still a copy of the shell that starts it.
    if [ -r "/proc/$pid/cmdline" ]; then
        [ "$pid" != "$$" ] || return 1
        line=$(tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline")
        # A process has no command line for a moment while it becomes another program.
        if [ -z "$line" ]; then
            sleep 1
            line=$(tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline")
        fi
        case $line in *"${job##*/}"*) ;; *) return 1 ;; esac
    fi
}
state() {
    if [ ! -d "$job" ]; then echo absent; return; fi
    # In this order: a job marks its end before it ends.
    if alive; then echo running; return; fi
    for mark in "$job"/exit.*; do
        if [ -e "$mark" ]; then echo "exited ${mark##*.}"; return; fi
    done
    if [ -e "$job/started" ]; then echo died; else echo new; fi
}
"""

START = (
    PRELUDE
    + STATES
    + r"""
job=$root/$1
shift
# Of two that start one job at once the second waits, and then finds it running.
if command -v flock > /dev/null; then exec 9> "$job/starting"; flock 9; fi
if alive; then exit 0; fi
rm -f "$job"/exit.* "$job/output" "$job/pid"
: > "$job/started"
if command -v setsid > /dev/null; then detach=setsid; else detach=nohup; fi
cd "$job"
# The output is opened here, so that a full disk is an error of this script.
exec 3> output
$detach sh -c '
    trap "" HUP
    # Where there is no setsid, and so no process group, the command is ended from here.
    trap "kill \"\$child\"" TERM
    "$@" >&3 2>&3 3>&- &
    child=$!
    # A signal ends the waiting, not yet the command, which may have something to restore.
    while code=0; wait "$child" || code=$?; kill -0 "$child" 2> /dev/null; do :; done
    mv -f started "exit.$code"
' "${job##*/}" "$@" < /dev/null > /dev/null 2>&1 9>&- &
echo "$!" > pid || { kill "$!"; exit 1; }
"""
)
"""Start the command `$2`… as a job that outlives the connection; one that runs already is left alone."""

POLL = (
    PRELUDE
    + STATES
    + r"""
job=$root/$1
state
if [ -f "$job/output" ]; then tail -c "+$(($2 + 1))" "$job/output" | head -c "$3"; fi
"""
)
"""The state on a line, then at most `$3` bytes of the output from offset `$2`."""

REMOVE = (
    PRELUDE
    + STATES
    + r"""
for job in "$root/$1"*; do
    if [ ! -d "$job" ]; then continue; fi
    if alive; then
        # A process group; dash takes `--` only after `-s`.
        kill -s TERM -- "-$pid" 2>/dev/null || kill -s TERM "$pid" || :
        # A job may have something to restore first.
        second=0
        while alive && [ "$second" -lt 20 ]; do
            sleep 1
            second=$((second + 1))
        done
        if alive; then kill -s KILL -- "-$pid" 2>/dev/null || kill -s KILL "$pid" || :; fi
        echo "stopped ${job##*/}"
    fi
    for left in "$job"/*-before*; do
        if [ -f "$left" ]; then
            echo "left by a job that was killed, put it back by hand: ${left##*/}: $(head -c 200 "$left" | head -n 1)"
        fi
    done
    rm -rf "$job"
    echo "removed ${job##*/}"
done
rmdir "$root" 2>/dev/null || :
"""
)
"""Stop and remove every job whose name begins with `$1`; names settings that none of them restored."""

PUT = (
    PRELUDE
    + r"""
job=$root/$1
mkdir -p "$job"
part=$job/.$2.$$
trap 'rm -f "$part"' EXIT
trap 'exit 1' HUP INT TERM
# Nobody may be left to read a message; the shell continues, to clear up.
trap '' PIPE
cat > "$part"
# A broken connection looks like the end of the file.
[ "$(wc -c < "$part")" -eq "$3" ] || { echo "the file arrived short" >&2; exit 1; }
if command -v sha256sum > /dev/null; then
    [ "$(sha256sum < "$part" | cut -c 1-64)" = "$4" ] || { echo "the file arrived damaged" >&2; exit 1; }
fi
mv -f "$part" "$job/$2"
"""
)
"""Standard input becomes the file `$2` of `$3` bytes with SHA-256 `$4`."""

STAT = (
    PRELUDE
    + r"""
file=$root/$1/$2
if [ -L "$file" ] || [ ! -f "$file" ]; then echo absent; exit 0; fi
hash=-
if command -v sha256sum > /dev/null; then hash=$(sha256sum < "$file" | cut -c 1-64); fi
echo "$(($(wc -c < "$file"))) $hash"
"""
)
"""Size in bytes and SHA-256 of the file `$2`, `-` where the device cannot compute it."""

DISCARD = (
    PRELUDE
    + r"""
job=$root/$1
shift
for name; do rm -f "$job/$name"; done
rmdir "$job" 2>/dev/null || :
"""
)
"""Remove the files `$2`…, and the folder where that leaves nothing in it."""

GET = PRELUDE + 'cat "$root/$1/$2"\n'
"""The file `$2` on standard output."""

DESCRIBE = (
    PRELUDE
    + r"""
say() { if [ -n "$2" ]; then printf '%s=%s\n' "$1" "$2"; fi; }
first() { if [ -r "$1" ]; then head -n 1 "$1" | tr -d '\0'; fi; }
say system "$(uname -s)"
say kernel "$(uname -r)"
say machine "$(uname -m)"
say board "$(first /proc/device-tree/model)"
say l4t "$(first /etc/nv_tegra_release)"
say nvidia_module "$(first /proc/driver/nvidia/version)"
if [ -r /etc/os-release ]; then say os "$(. /etc/os-release; printf %s "${PRETTY_NAME:-}")"; fi
say processors "$(getconf _NPROCESSORS_ONLN 2>/dev/null || :)"
if [ -r /proc/meminfo ]; then say memory_kb "$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)"; fi
say free_kb "$(df -Pk . | sed -n '2s/^.* \([0-9][0-9]*\)  *[0-9]*% .*$/\1/p')"
"""
)
"""Facts of the machine, one `name=value` a line."""
