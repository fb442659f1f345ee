"""Compiles an ONNX graph for one Snapdragon chip, in a child process.

A minute inside Qualcomm's compiler could not be interrupted, and its faults would end the caller. Imports no torch.

Reads {"model", "target", "chip", "slots"} as JSON from standard input.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import onnx

from ppexport.backends.qnn.run_qnn import Session, context_facts
from ppexport.errors import ExportError, PpexportError, counted
from ppexport.files import module_command

ERRORS: dict[str, type[PpexportError]] = {kind.__name__: kind for kind in PpexportError.__subclasses__()}
"""What the child may answer."""


def compile_context(model: Path, target: Path, chip: str, slots: int) -> None:
    """Compile the ONNX file *model* for *chip* into *target*, with so many *slots* where their number is symbolic.

    The file says of itself what it is for.

    Raises:
        ExportError: the NPU does not take all of the graph, or the compiler fails.
        UnavailableError: it does not start.
    """
    request = json.dumps({"model": str(model), "target": str(target), "chip": chip, "slots": slots})
    done = subprocess.run(module_command(__name__), input=request, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        number = -done.returncode
        said = "memory may have run out" if number == signal.SIGKILL else "try a smaller size or another chip"
        raise ExportError(f"Qualcomm's compiler was ended by signal {number} while it compiled for {chip}: {said}")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ExportError(f"Qualcomm's compiler failed for {chip}: {last}") from None
    if answer:
        raise ERRORS[answer["kind"]](answer["said"])
    compiled = one_partition(target, chip)
    for key, value in context_facts(chip, slots).items():
        compiled.metadata_props.add(key=key, value=value)
    onnx.save(compiled, target)


def one_partition(target: Path, chip: str) -> onnx.ModelProto:
    """The compiled file *target*. Raises ExportError unless it is one node, of Qualcomm's, and nothing else."""
    model = onnx.load(target, load_external_data=False)
    nodes = [node.op_type for node in model.graph.node]
    if nodes != ["EPContext"]:
        raise ExportError(
            f"for {chip} the graph falls apart into {counted(len(nodes), 'part')} where it should be one: please "
            "report this model"
        )
    return model


def main() -> None:
    """Runs in the child: a request on standard input, an empty object or what failed on standard output."""
    request = json.load(sys.stdin)
    settings = {
        "ep__context_enable": "1",
        "ep__context_embed_mode": "1",
        "ep__context_file_path": request["target"],
    }
    model = Path(request["model"])
    answer = {}
    try:
        with closing(Session(model.read_bytes(), model.name, request["chip"], request["slots"], **settings)):
            pass
    except PpexportError as error:
        answer = {"kind": type(error).__name__, "said": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
