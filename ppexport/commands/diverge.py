"""`ppexport diverge`: the first operation of a Core ML package whose result differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ppexport.commands.options import ArtifactFolder, Json
from ppexport.console import decibel, emit_json, people, table
from ppexport.errors import InputError

EXAMPLE = "Example: ppexport diverge x4_fp16 x4_fp32 --input hubble_deep_field --below 60"


def diverge(
    artifact: ArtifactFolder,
    reference: Annotated[
        Path | None,
        typer.Argument(help="an artefact of the same model, size and capacities; itself in fp32 if left out"),
    ] = None,
    name: Annotated[str, typer.Option("--input", help="input of parity: a photograph or a hard case")] = "astronaut",
    below: Annotated[float, typer.Option(help="dB under which a result counts as different")] = 55.0,
    count: Annotated[int, typer.Option(min=1, help="how many to show")] = 10,
    json: Json = None,
) -> None:
    """Find the first operations of a Core ML package whose results differ from a reference's, and their modules.

    The reference is another package, or the same one computed without rounding to fp16. Its categories are injected
    into both, so that a near tie does not hide what differs.
    """
    from ppexport.backends.coreml.divergence import compare_packages

    shown = []
    for found in compare_packages(*_inputs(artifact, reference, name)):
        if found.decibel < below:
            shown.append(found)
            if len(shown) == count:
                break
    emit_json(json, {"input": name, "below": below, "divergences": [f.to_dict() for f in shown]})
    console = people(json)
    if not shown:
        console.print(f"every result agrees by {below:g} dB or more")
        return
    rows = [[f.name, f.operation, f.module or "", decibel(f.decibel)] for f in shown]
    console.print(table(f"first results below {below:g} dB on {name}", ["result", "operation", "module", "dB"], rows))


def _inputs(artifact: Path, reference: Path | None, name: str) -> tuple[Path, Path | None, dict[str, Any]]:
    """Package, reference or None, and what to feed. Raises InputError where the two do not belong together."""
    from ppexport.backends.base import feeds
    from ppexport.opening import open_artifact
    from ppexport.parity.inputs import parity_inputs

    runners = [open_artifact(path) for path in (artifact, reference) if path is not None]
    manifests = [runner.artifact.manifest for runner in runners]
    for manifest in manifests:
        if manifest.backend != "coreml":
            raise InputError(f"diverge looks into Core ML packages, not {manifest.backend}")
    first, last = manifests[0], manifests[-1]
    fields = ("weights", "options", "scale", "size", "capacities", "mask")
    for field in fields:
        if getattr(first, field) != getattr(last, field):
            raise InputError(f"the two artefacts differ in {field}: {getattr(first, field)} and {getattr(last, field)}")
    inputs = {item.name: item for item in parity_inputs(runners[0].size, runners[0].scale)}
    if name not in inputs:
        raise InputError(f"inputs are {', '.join(inputs)}, not {name!r}")
    fed = feeds(first, runners[0].prepare(inputs[name].lr))
    files = [runner.artifact.model_file for runner in runners]
    return files[0], files[1] if len(files) > 1 else None, fed
