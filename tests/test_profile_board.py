"""A Jetson behind ssh, as far as its programs go: stand-ins for them on the PATH of a real sshd's user.

Their texts follow NVIDIA's Jetson Linux developer guides (nvpmodel, jetson_clocks, tegrastats); none was recorded.
"""

from __future__ import annotations

import pytest
from sshd import children, kill, wait_until
from sshd_profiles import BRIEF, LONG, Profiled, refused, said
from test_profile_jetson import NANO_JP6, SHOW

from ppexport.errors import UnavailableError
from ppexport.profile.remote import Settings
from ppexport.remote.address import DeviceError
from ppexport.remote.detached import StillRunning

pytest_plugins = ["sshd_fixtures", "profile_fixtures"]
NVPMODEL = r"""#!/bin/sh
here=${0%/*}
case $1 in
-q) echo "NV Power Mode: MODE_$(cat "$here/mode")"; cat "$here/mode" ;;
-m) if [ "$ROOT" != yes ]; then echo "NVPM ERROR: Error opening /sys: Permission denied" >&2; exit 255; fi
    echo "$2" >> "$here/modes"; echo "$2" > "$here/mode" ;;
esac
"""
SUDO = r"""#!/bin/sh
here=${0%/*}
if [ "$1" != -n ]; then echo "it would ask" >&2; exit 1; fi
if [ -e "$here/strict" ]; then echo "sudo: a password is required" >&2; exit 1; fi
shift
ROOT=yes exec "$@"
"""
JETSON_CLOCKS = r"""#!/bin/sh
here=${0%/*}
if [ "$ROOT" != yes ]; then echo "Please run as root" >&2; exit 1; fi
case $1 in
--show) cat "$here/show" ;;
--store) echo unlocked > "$2" ;;
--restore) cat "$2" >> "$here/clocks" ;;
'') echo locked >> "$here/clocks" ;;
esac
"""
TEGRASTATS = r"""#!/bin/sh
here=${0%/*}
echo "$@" > "$here/tegrastats-arguments"
while :; do echo 'LINE'; sleep 0.05; done
"""


@pytest.fixture
def jetson(board):
    board.program("nvpmodel", NVPMODEL)
    board.program("sudo", SUDO)
    board.program("jetson_clocks", JETSON_CLOCKS)
    board.program("tegrastats", TEGRASTATS.replace("LINE", NANO_JP6))
    board.program("dpkg-query", "#!/bin/sh\necho 36.3.0-20240506102626\n")
    (board.bin / "mode").write_text("2\n")
    (board.bin / "show").write_text(SHOW)
    return board


def mode(jetson) -> str:
    return (jetson.bin / "mode").read_text().strip()


def test_a_jetson_measured_in_a_power_mode(jetson, enlarger, tmp_path):
    settings = Settings(power_mode="0", lock_clocks=True, cores=(0,))
    run = Profiled(jetson, enlarger, tmp_path / "run", LONG, settings)
    found = run.run()
    told = found.data["machine"]["jetson"]
    assert (told["l4t"], told["jetpack"]) == ("36.3.0", "6.0")
    assert told["power_mode"] == {"number": 0, "name": "MODE_0"}
    assert told["clocks"]["GPU"]["max"] == 1_300_500_000
    assert found.data["machine"]["usable_cores"] == 1
    assert jetson.lines("modes") == ["0", "2"]
    assert jetson.lines("clocks") == ["locked", "unlocked"]
    assert jetson.lines("tegrastats-arguments") == ["--interval 500"]
    assert mode(jetson) == "2"
    assert found.data["sensors"]["watts.total"][-1] == 4.537
    assert found.data["sensors"]["mhz.gpu"][-1] == 624
    summary = found.subjects[0]["summary"]
    assert summary["energy"]["watts"] == pytest.approx(4.537)
    # All of the time between the first query and the last, shared out.
    assert summary["energy"]["joules_per_image"] >= 4.537 * summary["mean_ms"] / 1000 * 0.99
    assert not [line for line in run.lines if "put back" in line]


def test_a_power_mode_is_looked_up_on_the_device(jetson, enlarger, tmp_path):
    # No file here names the modes: nothing is set, and nothing measured.
    arguments = [*jetson.arguments, "--quick", "-o", tmp_path / "run", "--power-mode"]
    assert "MAXN cannot be looked up in /etc/nvpmodel.conf: No such" in refused(enlarger, *arguments, "MAXN", code=3)
    assert jetson.lines("modes") == []
    assert "a power mode is a number, or a name such as" in refused(enlarger, *arguments, "0;reboot", code=2)
    assert "or a name such as MAXN_SUPER, not '1000'" in refused(enlarger, *arguments, "1000", code=2)


def test_a_sudo_that_asks(jetson, enlarger, tmp_path):
    jetson.steer("strict")
    run = Profiled(jetson, enlarger, tmp_path / "run", BRIEF, Settings(power_mode="0"))
    with pytest.raises(UnavailableError, match="`nvpmodel -m 0` needs root: allow `nvpmodel` in sudoers"):
        run.run()
    assert mode(jetson) == "2"
    # Without the wish nothing needs root.
    found = Profiled(jetson, enlarger, tmp_path / "other").run()
    assert found.data["machine"]["jetson"]["clocks"] is None
    assert found.data["machine"]["jetson"]["power_mode"]["number"] == 2


def test_a_mode_that_cannot_be_put_back(jetson, enlarger, tmp_path):
    run = Profiled(jetson, enlarger, tmp_path / "run", LONG, Settings(power_mode="0"))
    with pytest.raises(StillRunning):
        run.run(timeout=0.1)
    wait_until(lambda: run.queries())
    jetson.steer("strict")
    run.run()
    assert any("power mode 2 (MODE_2) was not restored: `nvpmodel -m 2` needs root" in line for line in run.lines)


def agents(run) -> list[int]:
    """The job's leader, and the agent below it."""
    leader = int((run.journal().parent / "pid").read_text())
    return [leader, *children(leader)]


def test_the_mode_is_put_back_after_a_failure_and_after_clean(jetson, enlarger, tmp_path):
    run = Profiled(jetson, enlarger, tmp_path / "run", LONG, Settings(power_mode="0"))
    thread, result = run.start()
    wait_until(lambda: run.queries())
    (measuring,) = [pid for agent in agents(run)[1:] for pid in children(agent)]
    kill(measuring)
    thread.join(60)
    assert isinstance(result[0], UnavailableError), result
    assert jetson.lines("modes") == ["0", "2"]
    with pytest.raises(StillRunning):
        run.run(timeout=0.1)
    wait_until(lambda: mode(jetson) == "0")
    assert "removed" in said(enlarger, *jetson.arguments, "--clean")
    assert jetson.lines("modes") == ["0", "2", "0", "2"]


def test_the_mode_is_put_back_by_the_next_run_after_a_kill(jetson, enlarger, tmp_path):
    run = Profiled(jetson, enlarger, tmp_path / "run", LONG, Settings(power_mode="0", lock_clocks=True))
    thread, result = run.start()
    wait_until(lambda: run.queries())
    kill(*agents(run))
    thread.join(60)
    assert isinstance(result[0], DeviceError), result
    assert any("is still set for the measurement: the same command continues" in line for line in run.lines)
    assert mode(jetson) == "0"
    done = said(enlarger, *jetson.arguments, "--clean")
    assert 'put it back by hand: power-before.json: {"number": 2, "name": "MODE_2"}' in done
    run.run()
    # Removed by hand, the note was gone: the mode that was found counts.
    assert jetson.lines("modes") == ["0"]
    (jetson.bin / "mode").write_text("2\n")
    again = Profiled(jetson, enlarger, tmp_path / "again", LONG, Settings(power_mode="1"))
    thread, result = again.start()
    wait_until(lambda: again.queries())
    kill(*agents(again))
    thread.join(60)
    again.run()
    assert jetson.lines("modes") == ["0", "1", "2"]


def test_no_jetson(board, enlarger, tmp_path):
    arguments = [*board.arguments, "--quick", "-o", tmp_path / "run", "--power-mode", 0]
    assert "this is no Jetson" in refused(enlarger, *arguments, code=3)
