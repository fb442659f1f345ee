"""What a Jetson says of itself: release, power mode, clocks; and setting the power mode for a measurement."""

from __future__ import annotations

import json
import os
import re
import subprocess
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Union

from ppexport.device.machine import SECONDS, Run, read_text, run_command, said_by
from ppexport.errors import UnavailableError

RELEASE = re.compile(r"^# R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3}){0,2})", re.MULTILINE)
MODE = re.compile(r"^NV Power Mode:\s*([A-Za-z0-9_+-]{1,60})\s*$", re.MULTILINE)
MODE_ID = re.compile(r"^(\d{1,3})\s*$", re.MULTILINE)
PACKAGE = re.compile(r"(\d{1,3}\.\d{1,3}\.\d{1,3})-")
CPU = re.compile(r"^cpu(\d{1,3}): (?=.*Online=1)", re.MULTILINE)
CLOCK = re.compile(r"^(cpu\d{1,3}|GPU|EMC)\b.*?MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", re.MULTILINE)
MODEL = re.compile(r"^< *POWER_MODEL +ID=(\d{1,3}) +NAME=([A-Za-z0-9_.+-]{1,60}) *>", re.MULTILINE)
MODES = ("etc", "nvpmodel.conf")
MAX_MODES = 1 << 20
"""Bytes that are read of /etc/nvpmodel.conf."""
JETPACK = {
    "32.6.1": "4.6", "32.7.1": "4.6.1", "32.7.2": "4.6.2", "32.7.3": "4.6.3", "32.7.4": "4.6.4", "32.7.5": "4.6.5",
    "34.1.0": "5.0", "34.1.1": "5.0.1", "35.1.0": "5.0.2", "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2",
    "35.5.0": "5.1.3", "35.6.0": "5.1.4", "36.2.0": "6.0 preview", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.3": "6.2",
}  # fmt: skip
"""L4T -> JetPack; for what is not listed the L4T version alone is shown."""


class PowerMode(NamedTuple):
    """A row of /etc/nvpmodel.conf."""

    number: int
    name: str


class Refused(UnavailableError):
    """A step that the device did not allow."""


def l4t(text: Optional[str]) -> Optional[str]:
    """The release in /etc/nv_tegra_release, such as "36.3.0"; None where it is another file."""
    found = RELEASE.search(text or "")
    if found is None:
        return None
    parts = [found.group(1), *found.group(2).split("."), "0", "0"]
    return ".".join(parts[:3])


def power_mode(text: str) -> Optional[PowerMode]:
    """The answer of `nvpmodel -q`; warnings around it do not matter. None where it holds no mode."""
    name, number = MODE.search(text), MODE_ID.search(text)
    return None if name is None or number is None else PowerMode(int(number.group(1)), name.group(1))


def power_modes(text: str) -> List[PowerMode]:
    """The modes in the text of /etc/nvpmodel.conf, lines such as `< POWER_MODEL ID=2 NAME=MAXN_SUPER >`."""
    return [PowerMode(int(number), name) for number, name in MODEL.findall(text)]


def number_of_mode(wanted: Union[int, str], root: str = "/") -> int:
    """The number of the power mode *wanted*, which may be its name in /etc/nvpmodel.conf.

    What a number means differs between boards and releases. Raises Refused for a name that the file does not have.
    """
    if isinstance(wanted, int):
        return wanted
    path = os.path.join(root, *MODES)
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            modes = power_modes(stream.read(MAX_MODES))
    except OSError as error:
        raise Refused("power mode %s cannot be looked up in %s: %s" % (wanted, path, error.strerror)) from None
    for mode in modes:
        if mode.name == wanted:
            return mode.number
    names = ", ".join("%s (%d)" % (mode.name, mode.number) for mode in modes) or "no mode at all"
    raise Refused("this board has no power mode %s; %s has %s" % (wanted, path, names))


def clocks(text: str) -> Dict[str, Any]:
    """`jetson_clocks --show`: {"cpu0": {"min", "max", "now"} in Hz, "GPU": ..., "EMC": ..., "locked": bool or None}.

    CPU clocks come in kHz and are converted. `locked`: min = max for every online core and the GPU, as after
    `jetson_clocks`; None where nothing is told. A core that is off is left out.
    """
    online = {"cpu" + number for number in CPU.findall(text)}
    found: Dict[str, Any] = {}
    for name, low, high, now in CLOCK.findall(text):
        if name.startswith("cpu") and name not in online:
            continue
        unit = 1000 if name.startswith("cpu") else 1
        found[name] = {"min": int(low) * unit, "max": int(high) * unit, "now": int(now) * unit}
    told = [value for name, value in found.items() if name != "EMC"]
    found["locked"] = all(value["min"] == value["max"] for value in told) if told else None
    return found


def describe_jetson(root: str = "/", run: Run = run_command) -> Optional[Dict[str, Any]]:
    """L4T, JetPack, power mode and clocks; None on another machine. What cannot be read is null.

    `jetson_clocks --show` needs root; `sudo -n` is tried, which never asks.
    """
    release = l4t(read_text(root, "etc", "nv_tegra_release"))
    mode = power_mode(said_by(("nvpmodel", "-q"), run))
    if release is None and mode is None:
        return None
    if release is None:
        # Systems that were not made by NVIDIA's installer may lack the file.
        package = PACKAGE.match(said_by(("dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core"), run))
        release = None if package is None else package.group(1)
    shown = said_by(("jetson_clocks", "--show"), run) or said_by(("sudo", "-n", "jetson_clocks", "--show"), run)
    return {
        "l4t": release,
        "jetpack": JETPACK.get(release or ""),
        "power_mode": None if mode is None else {"number": mode.number, "name": mode.name},
        "clocks": clocks(shown) if shown else None,
    }


def set_power_mode(
    number: int, run: Run = run_command, keep: Callable[[PowerMode], Any] = lambda mode: None
) -> Optional[PowerMode]:
    """Set power mode *number* and see that it holds; returns the mode before, None where nothing had to change.

    *keep* is told the mode before, before it is changed. Raises Refused where it is not allowed, needs a restart, or
    does not hold.
    """
    before = power_mode(said_by(("nvpmodel", "-q"), run))
    if before is None:
        raise Refused("nvpmodel -q tells no power mode: this is no Jetson, or nvpmodel is not in its PATH")
    if before.number == number:
        return None
    keep(before)
    done = as_root(("nvpmodel", "-m", str(number)), run)
    if "reboot" in (done.stdout + done.stderr).lower():
        raise Refused("power mode %d takes effect after a restart only: set it there by hand" % number)
    now = power_mode(said_by(("nvpmodel", "-q"), run))
    if done.returncode or now is None or now.number != number:
        raise Refused("power mode %d was not set: %s" % (number, last_words(done)))
    return before


def last_words(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line that a program said."""
    return ((done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1][:200]


def as_root(command: Sequence[str], run: Run = run_command) -> "subprocess.CompletedProcess[str]":
    """*command* by `sudo -n`, which never asks. Raises Refused where it is not allowed or does not end."""
    try:
        done = run(("sudo", "-n", *command))
    except subprocess.TimeoutExpired:
        raise Refused("%s did not end in %d s" % (" ".join(command[:3]), SECONDS)) from None
    except OSError as error:
        raise Refused("sudo cannot be started: %s" % error.strerror) from None
    words = (done.stdout + done.stderr).lower()
    if any(text in words for text in ("password is required", "not in the sudoers", "not allowed to execute")):
        raise Refused(
            "`%s` needs root: allow `%s` in sudoers without a password, or run it there yourself"
            % (" ".join(command), command[0])
        )
    return done


def lock_clocks(store: str, run: Run = run_command) -> None:
    """Set all clocks to their highest, after they were kept in the file *store* unless it is there. Raises Refused."""
    for command in (() if os.path.exists(store) else (("--store", store),)) + ((),):
        done = as_root(("jetson_clocks", *command), run)
        if done.returncode:
            raise Refused("the clocks were not locked: %s" % last_words(done))


def restore_clocks(store: str, run: Run = run_command) -> None:
    """Set the clocks to those in the file *store*, and remove it. Raises Refused."""
    done = as_root(("jetson_clocks", "--restore", store), run)
    if done.returncode:
        raise Refused(last_words(done))
    os.unlink(store)


# A power mode and locked clocks for the time of a measurement, put back whatever ends it.


BEFORE = "power-before.json"
"""The mode to put back, written before another is set: a process that was killed leaves it to the next one."""

CLOCKS = "clocks-before.txt"
"""The clocks to put back, as `jetson_clocks --store` writes them."""


def left_over(folder: str) -> Optional[PowerMode]:
    """The mode that an earlier process in *folder* did not put back; None where none is left."""
    try:
        with open(os.path.join(folder, BEFORE), encoding="utf-8") as stream:
            data = json.loads(stream.read(1000))
        return PowerMode(int(data["number"]), str(data["name"])[:60])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: str, mode: PowerMode) -> None:
    path = os.path.join(folder, BEFORE)
    with open(path + ".new", "w", encoding="utf-8") as stream:
        json.dump({"number": mode.number, "name": mode.name}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(path + ".new", path)


@contextmanager
def power_mode_set(
    wanted: Union[int, str, None], folder: str, say: Callable[[str], Any], run: Run = run_command, root: str = "/"
) -> Iterator[None]:
    """Power mode *wanted*, by its number or its name, while the block runs, None for the one that is set.

    The mode before is kept in *folder*, and put back even by a later block there if this process is killed. Raises
    Refused where the mode cannot be set; *say* is told where it cannot be put back.
    """
    earlier = left_over(folder)
    try:
        if wanted is not None:
            # Told before it is done: whoever is killed in between has at most put back what was never changed.
            set_power_mode(number_of_mode(wanted, root), run, lambda mode: _keep(folder, earlier or mode))
        yield
    finally:
        # Also after a mode that was refused, perhaps half-way.
        before = left_over(folder)
        if before is not None:
            try:
                set_power_mode(before.number, run)
            except Refused as error:
                say("power mode %d (%s) was not put back: %s" % (before.number, before.name, error))
            else:
                os.unlink(os.path.join(folder, BEFORE))


@contextmanager
def clocks_locked(wanted: bool, folder: str, say: Callable[[str], Any], run: Run = run_command) -> Iterator[None]:
    """Clocks at their highest while the block runs if they are *wanted* so.

    As `power_mode_set`: those before are kept in *folder*, also for a process after one that was killed.
    """
    store = os.path.join(folder, CLOCKS)
    try:
        if wanted:
            lock_clocks(store, run)
        yield
    finally:
        if os.path.exists(store):
            try:
                restore_clocks(store, run)
            except Refused as error:
                say("the clocks were not put back: %s" % error)
