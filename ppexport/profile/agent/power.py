"""A power mode and locked clocks for the time of a measurement, put back whatever ends it."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Union

from ppexport.profile.agent.jetson import (
    PowerMode,
    Refused,
    Run,
    lock_clocks,
    number_of_mode,
    restore_clocks,
    run_command,
    set_power_mode,
)  # fmt: skip

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
