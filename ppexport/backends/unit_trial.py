"""A model on one compute unit of this machine, in a child process.

A driver compiles while a model is loaded, may take very long, and may end the process: none of that may end a parity
run. The child receives a folder that holds `request.json` and the inputs of every run, `input0.npz` and so on; it
writes `output0.npz` and so on, and `plan.json`, beside them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol
from zipfile import BadZipFile

import numpy as np

from ppexport.errors import PpexportError, first_line

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

SECONDS = 900.0
"""What a trial may take."""


class TrialError(PpexportError):
    """A trial that failed or took too long."""

    exit_code = 1


class UnitSession(Protocol):
    """A model that is open on a compute unit."""

    def run(self, inputs: Arrays, /) -> Arrays:
        """All outputs for *inputs*."""


def run_in_child(
    request: Mapping[str, Any],
    what: str,
    inputs: Sequence[Arrays],
    command: Sequence[str],
    seconds: float = SECONDS,
) -> tuple[list[Arrays], dict[str, Any]]:
    """Run a model in a child process.

    Args:
        request: for the child, in JSON types: the model and the unit.
        what: runs it, as errors say it.
        inputs: of every run, as `feeds` makes them.
        command: the child, which receives the folder of the request.
        seconds: that the trial may take.

    Returns:
        The outputs of every run, in order, and the plan: operations by device, crossings, and what else is known;
        where it has no plan, the reason.

    Raises:
        TrialError: it failed or took too long.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number, fed in enumerate(inputs):
            _save(folder / f"input{number}.npz", fed)
        (folder / "request.json").write_text(json.dumps({**request, "count": len(inputs)}), encoding="utf-8")
        with (folder / "log").open("wb") as log:
            try:
                ended = subprocess.run(
                    [*command, str(folder)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=seconds, check=False,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                raise TrialError(f"{what} did not end in time") from None
        if ended:
            lines = (folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = lines[-1][:300] if lines else "it said nothing"
            raise TrialError(f"{what} ended with {ended}: {said}")
        try:
            outputs = [_load(folder / f"output{number}.npz") for number in range(len(inputs))]
            plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, IndexError, EOFError, BadZipFile) as error:
            raise TrialError(f"{what} left no result: {first_line(error)}") from None
    if any("sr" not in found for found in outputs):
        raise TrialError(f"{what} left no picture")
    return outputs, plan


def answer(
    folder: Path, opened: Callable[[Mapping[str, Any]], UnitSession], planned: Callable[[Any], dict[str, Any]]
) -> None:
    """In the child: run all inputs in *folder*, and write their outputs and then the plan.

    *opened* makes a session of the request, *planned* the plan of that session. The plan is extra, the numbers count:
    without a plan its file says why.
    """
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    session = opened(request)
    for number in range(request["count"]):
        _save(folder / f"output{number}.npz", session.run(_load(folder / f"input{number}.npz")))
    try:
        plan = planned(session)
    except Exception as error:  # whatever a runtime raises; the outputs are kept
        plan = {"unknown": f"{type(error).__name__}: {error}"[:300]}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


def _save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as data:
        return dict(data)
