"""`ppexport calibrate`: the ranges of a model's tensors, measured on pictures."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ppexport.cli.console import continues_from, emit_json, people, progress_bar, table
from ppexport.cli.options import Arch, Checkpoint, Json, Options, Scale, load, parse_size
from ppexport.errors import InputError, counted
from ppexport.files import check_file_target

EXAMPLE = "Example: ppexport calibrate pp_atd_light_x2 --images photographs -o ranges.npz"


def calibrate(
    target: Annotated[
        str | None, typer.Argument(metavar="MODEL|ARTIFACT", help="a model, or its portable fp32 artifact")
    ] = None,
    images: Annotated[Path, typer.Option(help="folder of HR photographs; not those of an evaluation set")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option("-o", "--out", help="calibration file to write")] = Path("calibration.npz"),
    crops: Annotated[int, typer.Option(min=1, max=4096, help="crops to run, taken from the pictures in turn")] = 32,
    size: Annotated[str | None, typer.Option(help="LR size HxW of a crop; the card's default if left out")] = None,
    checkpoint: Checkpoint = None,
    arch: Arch = None,
    scale: Scale = None,
    option: Options = None,
    json: Json = None,
) -> None:
    """Measure the range of every tensor of a model, for `export --precision fp16|int8|mixed`.

    Minimum, maximum, percentiles and what rounding to fp16 costs, by histograms of fixed size. A run that was
    interrupted continues where it was when the same command is given again.
    """
    from ppexport.backends.onnx.collect import calibrate as run_calibrate
    from ppexport.backends.onnx.collect import check_artifact, state_path
    from ppexport.backends.onnx.model_file import artifact_model
    from ppexport.backends.onnx.quantised import audit
    from ppexport.device.artifact import MANIFEST, read_artifact
    from ppexport.exporting import export, return_large_blocks
    from ppexport.networks.architecture import find_architecture
    from ppexport.networks.load import card_of
    from ppexport.quantize.crops import cut_crops, read_sources, warnings_about

    return_large_blocks()
    console = people(json)
    check_file_target(out)
    check_file_target(state_path(out))
    sources = read_sources(images)
    with ExitStack() as stack:
        if target is not None and (Path(target) / MANIFEST).is_file():
            if option or (checkpoint, arch, scale, size) != (None, None, None, None):
                raise InputError("an artifact has its weights and size inside: leave the options for them out")
            artifact = read_artifact(Path(target))
        else:
            network = load(target, checkpoint, arch, scale, option)
            scratch = Path(stack.enter_context(TemporaryDirectory()))
            lr_size = card_of(network).default_size if size is None else parse_size(size)
            artifact = read_artifact(export(network, backend="onnx", size=lr_size, out=scratch / "fp32"))
        check_artifact(artifact)
        cut = cut_crops(sources, artifact.size, artifact.scale, crops)
        warnings = warnings_about(images, sources, cut)
        for warning in warnings:
            console.print(f"warning: {warning}")
        with continues_from(state_path(out)), progress_bar("crops") as progress:
            result = run_calibrate(artifact, sources, cut, warnings, out, progress)
        kept = dict(audit(artifact_model(artifact), result, find_architecture(artifact.manifest.arch)))
    rows = [[node, reason] for node, reason in kept.items()]
    console.print(
        table("kept in fp32 by the audit", ["node", "reason"], rows, numbers=2) if rows else "nothing kept in fp32"
    )
    about = result.about
    emit_json(
        json,
        {"calibration": str(out), "tensors": len(result.names), **vars(about), "kept_fp32": kept},
    )
    crops_of = f"{counted(about.crops, 'crop')} of {counted(len(about.images), 'picture')}"
    console.print(f"{out}: {counted(len(result.names), 'tensor')} of {about.name}, {crops_of}")
