"""`ppexport diverge`: the first operation of a Core ML package whose result differs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.cli.console import decibel, emit_json, people, table
from ppexport.cli.options import Json
from ppexport.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ppexport.networks.architecture import Routing

PACKAGE = ".mlpackage"
EXAMPLE = "Example: ppexport diverge x4_fp16 x4_fp32 --input hubble_deep_field --below 60"


def diverge(
    artifact: Annotated[Path, typer.Argument(help="a Core ML artifact: its folder, or the .mlpackage in it")],
    reference: Annotated[
        Path | None,
        typer.Argument(
            help="another artifact of the same model, size and capacities; without it, ARTIFACT computed in fp32"
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            "--input", help="an input of `parity`: a photograph, such as coffee, or a hard case, such as noise"
        ),
    ] = "astronaut",
    below: Annotated[float, typer.Option(help="a result counts as different below this many dB")] = 55.0,
    count: Annotated[int, typer.Option(min=1, help="show this many results at most")] = 10,
    json: Json = None,
) -> None:
    """Find the first operations of a Core ML package whose results differ from a reference's, and their modules.

    The reference is another package, or the same one computed without rounding to fp16. Its categories are injected
    into both packages, so that a near tie does not hide what differs. A result's dB are the power of the reference's
    result over the power of the difference. The exit code is 0 either way: whether the picture is good enough is for
    `parity` to say.
    """
    from ppexport.backends.coreml.divergence import compare_packages

    if not math.isfinite(below):
        raise InputError(f"--below must be a number of dB, not {below}")
    shown = []
    for found in compare_packages(*_inputs(artifact, reference, name)):
        if found.decibel < below:
            shown.append(found)
            if len(shown) == count:
                break
    emit_json(json, {"input": name, "below": below, "divergences": [f.to_dict() for f in shown]})
    console = people(json)
    if not shown:
        other = "itself in fp32" if reference is None else f"that of {reference}"
        console.print(f"{name}: every result agrees with {other} by {below:g} dB or more")
        return
    # A name is its module and, behind three underscores, which of its operations it is: matmul_1.
    modules = ["" if f.module is None else f.module or "the network itself" for f in shown]
    rows = [[module, f.name.rpartition("___")[2], decibel(f.decibel)] for module, f in zip(modules, shown, strict=True)]
    columns = ["module", "operation", "dB"]
    console.print(table(f"first results below {below:g} dB on {name}, in order", columns, rows, numbers=2))


def _inputs(
    artifact: Path, reference: Path | None, name: str
) -> tuple[Path, Path | None, Routing, dict[str, NDArray[Any]]]:
    """Package, reference or None, their network's roles, and what to feed.

    Raises InputError where the two do not belong together.
    """
    from ppexport.backends.backend import open_artifact
    from ppexport.backends.coreml.evaluated import routing_of
    from ppexport.device.runner import feeds
    from ppexport.parity.inputs import parity_inputs

    runners = []
    for path in (artifact, reference):
        if path is None:
            continue
        runners.append(open_artifact(path.parent if path.suffix == PACKAGE else path))
        if path.suffix == PACKAGE and path.name != runners[-1].artifact.model_file.name:
            raise InputError(f"{path} is not the package of the artifact {path.parent}")
    routing, *_ = [routing_of(runner) for runner in runners]
    first, last = runners[0].artifact.manifest, runners[-1].artifact.manifest
    if reference is None and first.precision == "fp32":
        raise InputError(f"{artifact} computes nothing in fp16: name a reference to compare it with")
    for field in ("arch", "weights", "options", "scale", "size", "capacities", "mask"):
        if getattr(first, field) != getattr(last, field):
            raise InputError(f"the two artifacts differ in {field}: {getattr(first, field)} and {getattr(last, field)}")
    inputs = {item.name: item for item in parity_inputs(runners[0].size, runners[0].scale)}
    if name not in inputs:
        raise InputError(f"the inputs are {', '.join(inputs)}, not {name!r}")
    fed = feeds(first, runners[0].prepare(inputs[name].lr))
    files = [runner.artifact.model_file for runner in runners]
    return files[0], files[1] if len(files) > 1 else None, routing, fed
