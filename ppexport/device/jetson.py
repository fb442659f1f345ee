"""What a Jetson shows of itself: release, power mode, clocks; and setting power mode and clocks for a measurement."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

from ppexport.device.machine import SECONDS, Run, read_text, run_command, said_by
from ppexport.errors import UnavailableError

RELEASE = re.compile(r"^# R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3}){0,2})", re.MULTILINE)
MODE = re.compile(r"^NV Power Mode:\s*([A-Za-z0-9_+-]{1,60})\s*$", re.MULTILINE)
MODE_ID = re.compile(r"^(\d{1,3})\s*$", re.MULTILINE)
PACKAGE = re.compile(r"(\d{1,3}\.\d{1,3}\.\d{1,3})-")
CPU = re.compile(r"^cpu(\d{1,3}): (?=.*Online=1)", re.MULTILINE)
CLOCK = re.compile(r"^(cpu\d{1,3}|GPU|EMC)\b.*?MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", re.MULTILINE)
MODEL = re.compile(r"^< *POWER_MODEL +ID=(\d{1,3}) +NAME=([A-Za-z0-9_.+-]{1,60}) *>", re.MULTILINE)
MODES = "etc/nvpmodel.conf"
MAX_MODES = 1 << 20
"""Bytes that are read of /etc/nvpmodel.conf."""
JETPACK = {
    "32.6.1": "4.6", "32.7.1": "4.6.1", "32.7.2": "4.6.2", "32.7.3": "4.6.3", "32.7.4": "4.6.4", "32.7.5": "4.6.5",
    "34.1.0": "5.0", "34.1.1": "5.0.1", "35.1.0": "5.0.2", "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2",
    "35.5.0": "5.1.3", "35.6.0": "5.1.4", "36.2.0": "6.0 preview", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.3": "6.2",
}  # fmt: skip
"""L4T -> JetPack; for what is not listed the L4T version alone is shown."""
BEFORE = "power-before.json"
"""The mode to restore, written before another is set: a process that was killed leaves it to the next one."""
CLOCKS = "clocks-before.txt"
"""The clocks to restore, as `jetson_clocks --store` writes them."""


class PowerMode(NamedTuple):
    """A row of /etc/nvpmodel.conf."""

    number: int
    name: str


class Refused(UnavailableError):
    """A step that the device did not allow."""


def l4t(text: str | None) -> str | None:
    """The release in /etc/nv_tegra_release, such as "36.3.0"; None where it is another file."""
    found = RELEASE.search(text or "")
    return None if found is None else ".".join([found[1], *found[2].split("."), "0", "0"][:3])


def power_mode(text: str) -> PowerMode | None:
    """The answer of `nvpmodel -q`; warnings around it do not matter. None where it holds no mode."""
    name, number = MODE.search(text), MODE_ID.search(text)
    return None if name is None or number is None else PowerMode(int(number[1]), name[1])


def power_modes(text: str) -> list[PowerMode]:
    """The modes in the text of /etc/nvpmodel.conf, lines such as `< POWER_MODEL ID=2 NAME=MAXN_SUPER >`."""
    return [PowerMode(int(number), name) for number, name in MODEL.findall(text)]


def number_of_mode(wanted: int | str, root: str = "/") -> int:
    """The number of the power mode *wanted*, which may be its name in /etc/nvpmodel.conf.

    What a number means differs between boards and releases. Raises Refused for a name that the file does not have.
    """
    if isinstance(wanted, int):
        return wanted
    path = Path(root, MODES)
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            modes = power_modes(stream.read(MAX_MODES))
    except OSError as error:
        raise Refused(f"power mode {wanted} cannot be looked up in {path}: {error.strerror}") from None
    for mode in modes:
        if mode.name == wanted:
            return mode.number
    names = ", ".join(f"{mode.name} ({mode.number})" for mode in modes) or "no mode at all"
    raise Refused(f"this board has no power mode {wanted}; {path} has {names}")


def clocks(text: str) -> dict[str, Any]:
    """`jetson_clocks --show`: {"cpu0": {"min", "max", "now"} in Hz, "GPU": ..., "EMC": ..., "locked": bool or None}.

    CPU clocks come in kHz and are converted. `locked`: min = max for every online core and the GPU, as after
    `jetson_clocks`; None where no clock is shown. A core that is off is left out.
    """
    online = {"cpu" + number for number in CPU.findall(text)}
    found: dict[str, Any] = {}
    for name, *numbers in CLOCK.findall(text):
        core = name.startswith("cpu")
        if not core or name in online:
            hertz = [int(number) * (1000 if core else 1) for number in numbers]
            found[name] = dict(zip(("min", "max", "now"), hertz))
    shown = [value for name, value in found.items() if name != "EMC"]
    found["locked"] = all(value["min"] == value["max"] for value in shown) if shown else None
    return found


def describe_jetson(root: str = "/", run: Run = run_command) -> dict[str, Any] | None:
    """L4T, JetPack, power mode and clocks; None on another machine. What cannot be read is null.

    `jetson_clocks --show` needs root; `sudo -n` is tried, which never asks.
    """
    release = l4t(read_text(Path(root, "etc/nv_tegra_release")))
    mode = _current_mode(run)
    if release is None and mode is None:
        return None
    if release is None:
        # Systems that were not made by NVIDIA's installer may lack the file.
        package = PACKAGE.match(said_by(("dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core"), run))
        release = None if package is None else package[1]
    shown = said_by(("jetson_clocks", "--show"), run) or said_by(("sudo", "-n", "jetson_clocks", "--show"), run)
    return {
        "l4t": release,
        "jetpack": JETPACK.get(release or ""),
        "power_mode": None if mode is None else mode._asdict(),
        "clocks": clocks(shown) if shown else None,
    }


def _current_mode(run: Run) -> PowerMode | None:
    return power_mode(said_by(("nvpmodel", "-q"), run))


def set_power_mode(number: int, run: Run = run_command, keep: Callable[[PowerMode], Any] = lambda mode: None) -> None:
    """Set power mode *number* and check that it holds. Nothing happens where it is set already.

    *keep* receives the mode before, before it is changed. Raises Refused where it is not allowed, needs a restart, or
    does not hold.
    """
    before = _current_mode(run)
    if before is None:
        raise Refused("nvpmodel -q shows no power mode: this is no Jetson, or nvpmodel is not in its PATH")
    if before.number == number:
        return
    keep(before)
    done = _as_root(("nvpmodel", "-m", str(number)), run)
    if "reboot" in (done.stdout + done.stderr).lower():
        raise Refused(f"power mode {number} takes effect after a restart only: set it on the device by hand")
    now = _current_mode(run)
    if done.returncode or now is None or now.number != number:
        raise Refused(f"power mode {number} was not set: {_last_line(done)}")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return ((done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1][:200]


def _as_root(command: Sequence[str], run: Run) -> subprocess.CompletedProcess[str]:
    """Run *command* by `sudo -n`, which never asks. Raises Refused where it is not allowed or does not end."""
    try:
        done = run(("sudo", "-n", *command))
    except subprocess.TimeoutExpired:
        raise Refused(f"{' '.join(command[:3])} did not end in {SECONDS:.0f} s") from None
    except OSError as error:
        raise Refused(f"sudo cannot be started: {error.strerror}") from None
    words = (done.stdout + done.stderr).lower()
    if any(text in words for text in ("password is required", "not in the sudoers", "not allowed to execute")):
        raise Refused(
            f"`{' '.join(command)}` needs root: allow `{command[0]}` in sudoers without a password, or run it on the "
            "device yourself"
        )
    return done


def _jetson_clocks(problem: str, run: Run, *options: str) -> None:
    done = _as_root(("jetson_clocks", *options), run)
    if done.returncode:
        raise Refused(problem + _last_line(done))


def _left_over(path: str) -> PowerMode | None:
    """The mode in the file *path* that an earlier process did not restore; None where none is left."""
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.loads(stream.read(1000))
        return PowerMode(int(data["number"]), str(data["name"])[:60])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: str, mode: PowerMode) -> None:
    with open(path + ".new", "w", encoding="utf-8") as stream:
        json.dump(mode._asdict(), stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(path + ".new", path)


@contextmanager
def power_mode_set(
    wanted: int | str | None, folder: str, say: Callable[[str], Any], run: Run = run_command, root: str = "/"
) -> Iterator[None]:
    """Set power mode *wanted*, by its number or its name, while the block runs; None leaves the one that is set.

    The mode before is kept in *folder*, and restored even by a later block with this folder if this process is killed.
    Raises Refused where the mode cannot be set; *say* receives a sentence where it cannot be restored.
    """
    path = os.path.join(folder, BEFORE)
    earlier = _left_over(path)
    try:
        if wanted is not None:
            # Kept before it is changed: a process that is killed in between restores at most what was never changed.
            set_power_mode(number_of_mode(wanted, root), run, lambda mode: _keep(path, earlier or mode))
        yield
    finally:
        # Also after a mode that was refused, perhaps half-way.
        before = _left_over(path)
        if before is not None:
            try:
                set_power_mode(before.number, run)
            except Refused as error:
                say(f"power mode {before.number} ({before.name}) was not restored: {error}")
            else:
                os.unlink(path)


@contextmanager
def clocks_locked(wanted: bool, folder: str, say: Callable[[str], Any], run: Run = run_command) -> Iterator[None]:
    """Set the clocks to their highest while the block runs, if this is *wanted*.

    As `power_mode_set`: those before are kept in *folder*, also for a process after one that was killed.
    """
    store = os.path.join(folder, CLOCKS)
    try:
        if wanted:
            if not os.path.exists(store):
                _jetson_clocks("the clocks were not locked: ", run, "--store", store)
            _jetson_clocks("the clocks were not locked: ", run)
        yield
    finally:
        if os.path.exists(store):
            try:
                _jetson_clocks("", run, "--restore", store)
            except Refused as error:
                say(f"the clocks were not restored: {error}")
            else:
                os.unlink(store)
