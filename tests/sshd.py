"""A device for tests: a real sshd on the loopback address, with a home folder and a PATH of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ppexport.remote.ssh import SshOptions

TRTEXEC = r"""#!/bin/sh
# Plays trtexec: records its arguments, prints a log, writes the files it was asked for. Files in its folder steer it.
here=$(dirname "$0")
printf '%s\n' "$@" > "$here/arguments"
echo run >> "$here/runs"
echo '&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b26] # trtexec --onnx=model.onnx'
echo '[11/23/2026-03:00:00] [I] === Device Information ==='
echo '[11/23/2026-03:00:00] [I] Selected Device: Orin'
echo '[11/23/2026-03:00:00] [I] Compute Capability: 8.7'
echo '[11/23/2026-03:00:00] [I] TensorRT version: 10.3.0'
for argument; do
    case $argument in
    --saveEngine=*) engine=${argument#*=} ;;
    --timingCacheFile=*) cache=${argument#*=} ;;
    --exportLayerInfo=*) layers=${argument#*=} ;;
    esac
done
while [ -e "$here/hold" ]; do sleep 0.05; done
if [ -e "$here/fail" ]; then
    printf '\033]0;owned\007[11/23/2026-03:00:01] [E] Error[4]: \033[31mno kernel\033[0m for MatMul\n' >&2
    echo '&&&& FAILED TensorRT.trtexec [TensorRT v100300] [b26] # trtexec --onnx=model.onnx'
    exit 1
fi
if [ -e "$here/fill" ]; then
    cat /dev/zero > filler || :
fi
if [ -e "$here/kill" ]; then
    printf 'half an eng' > "$engine"
    echo '[11/23/2026-03:00:01] [E] Error[1]: an error that is not the reason' >&2
    kill -s KILL $$
fi
echo "engine of $(wc -c < model.onnx) bytes" > "$engine" || exit 1
if [ -e "$here/empty" ]; then : > "$engine"; fi
echo cache > "$cache"
echo '{"Layers": [{"Name": "_gemm_mha_v2_myl0", "LayerType": "kgen"}], "Bindings": []}' > "$layers"
echo '[11/23/2026-03:00:02] [I] Engine built in 12.5 sec.'
if [ -e "$here/quiet" ]; then exit 0; fi
echo '&&&& PASSED TensorRT.trtexec [TensorRT v100300] [b26] # trtexec --onnx=model.onnx'
"""


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until *condition* is true; the test fails where it never is."""
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("it did not happen")


def _stat(pid: int) -> tuple[str, list[str]]:
    """Name of a process, and the fields after it: state, parent, ..."""
    head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    return head.partition("(")[2], tail.split()


def name_of(pid: int) -> str:
    """The name of a process; empty once it has ended."""
    try:
        return _stat(pid)[0]
    except OSError:
        return ""


def kill(*pids: int) -> None:
    """Kill processes at once; one may have ended meanwhile, of itself or because another of them is gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return _stat(pid)[1][0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that *pid* started and that run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = _stat(int(entry.name))[1]
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def find_sshd() -> str:
    """The path of sshd; skips the test where it or the client is missing."""
    found = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
    if found is None or shutil.which("ssh") is None:
        pytest.skip("sshd is not installed: apt-get install openssh-server")
    if os.geteuid() == 0:
        # sshd that runs as root wants an empty folder here; the service would have made it.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return found


def make_key(path: Path) -> Path:
    """A new key pair without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Device:
    """sshd, its keys, and what lies on the machine that it plays."""

    def __init__(self, folder: Path, home: str = "home") -> None:
        """*home* is the name of the user's home folder there."""
        self.sshd = find_sshd()
        self.folder = folder
        self.home = folder / home
        self.bin = folder / "bin"
        self.modules = folder / "modules"
        for made in (self.home, self.bin, self.modules):
            made.mkdir()
        self.port = free_port()
        self.identity = make_key(folder / "user_key")
        self.host_key = make_key(folder / "host_key")
        self.known_hosts = folder / "known_hosts"
        self.log = folder / "sshd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.trust(self.host_key)
        self._write_python()

    @property
    def address(self) -> str:
        """The address as a user gives it."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        """The client's configuration: known hosts of this device only, and nothing of the user's."""
        path = self.folder / "ssh_config"
        path.write_text(f"UserKnownHostsFile {self.known_hosts}\nGlobalKnownHostsFile /dev/null\n")
        return path

    @property
    def options(self) -> SshOptions:
        """The same for a transport."""
        return SshOptions(self.identity, self.config)

    @property
    def arguments(self) -> list[str]:
        """The same for the command line."""
        return ["--on", self.address, "--identity", str(self.identity), "--ssh-config", str(self.config)]

    def trust(self, host_key: Path | None) -> None:
        """Let the client know *host_key*, or none."""
        line = ""
        if host_key is not None:
            line = f"[127.0.0.1]:{self.port} {host_key.with_suffix('.pub').read_text()}"
        self.known_hosts.write_text(line)

    def _write_python(self) -> None:
        """A python3 without any package but those in `modules`."""
        script = f'#!/bin/sh\nPYTHONPATH="{self.modules}" exec "{sys.executable}" -S "$@"\n'
        self.program("python3", script)

    def program(self, name: str, script: str) -> None:
        """Put a program on the device's PATH."""
        path = self.bin / name
        path.write_text(script)
        path.chmod(0o755)

    def install_trtexec(self) -> None:
        """Put the stand-in for trtexec on the device's PATH."""
        self.program("trtexec", TRTEXEC)

    def steer(self, name: str, on: bool = True) -> None:
        """Create or remove one of the files that steer the stand-ins."""
        path = self.bin / name
        if on:
            path.touch()
        else:
            path.unlink(missing_ok=True)

    def lines(self, name: str) -> list[str]:
        """Lines of a file that a stand-in wrote."""
        path = self.bin / name
        return path.read_text().splitlines() if path.exists() else []

    def jobs(self) -> list[Path]:
        """The job folders on the device."""
        return sorted(self.home.glob(".cache/ppexport/*"))

    def start(self) -> None:
        """Start sshd, and wait until it answers."""
        (self.folder / "authorized_keys").write_text(self.identity.with_suffix(".pub").read_text())
        config = self.folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.host_key}\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nLogLevel VERBOSE\n"
            f'SetEnv "HOME={self.home}" "PATH={self.bin}:/usr/bin:/bin"\n'
        )
        command = [self.sshd, "-D", "-f", str(config), "-E", str(self.log)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                pytest.fail(f"sshd did not start: {self.log.read_text() if self.log.exists() else ''}")
            time.sleep(0.05)
        pytest.fail("sshd does not answer")

    def connections(self) -> list[int]:
        """Process numbers of sshd's children: the connections."""
        return [] if self.process is None else children(self.process.pid)

    def cut(self) -> int:
        """Kill all connections, as a broken line does; what runs on the device goes on. Returns how many."""
        found = self.connections()
        for pid in found:
            # The half that speaks for the user, and the privileged one. OpenSSH 9.8 calls them sshd-session.
            kill(*(child for child in children(pid) if name_of(child).startswith("sshd")), pid)
        return len(found)

    def go_away(self) -> None:
        """End sshd and all connections at once."""
        if self.process is not None:
            # Stopped first, so that nobody comes in meanwhile.
            self.process.send_signal(signal.SIGSTOP)
            self.cut()
            self.process.kill()
            self.process.wait()
            self.process = None
