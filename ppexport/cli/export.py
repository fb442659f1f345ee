"""`ppexport export`: network -> artifact folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ppexport.cli import options as shared
from ppexport.cli.console import emit_json, people, stages
from ppexport.errors import InputError, counted

EXAMPLE = "Example: ppexport export pp_atd_light_x2 --size 64x64 -o x2_64"
NOTES = {
    "default": "note: no recipe is bundled for these weights, so the default recipe chose what becomes int8: "
    "`ppexport quantize-search` measures which layers to choose and writes a recipe for --recipe",
    "given, found for other weights": "note: the recipe was found for other weights, where it may have cost another "
    "loss: `ppexport quantize-search` finds one for these",
}
"""What the command says about the recipe of an int8 file, by where the recipe comes from."""

MOST_NAMED = 8
"""Files whose sizes are said each."""


def bytes_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def size_text(whole: int, files: Mapping[str, int]) -> str:
    """The size of an artifact of *whole* bytes, and of its *files* where it is several: a device needs only some.

    Of many files those below 1 % of the whole are one sum.
    """

    def text(size: int) -> str:
        return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"

    small = [size for size in files.values() if size < whole / 100] if len(files) > MOST_NAMED else []
    named = {name: size for name, size in files.items() if size not in small}
    if small:
        named[counted(len(small), "smaller file")] = sum(small)
    own = ", ".join(f"{name} {text(size)}" for name, size in named.items())
    return f"{text(whole)} in all ({own})" if len(files) > 1 else text(whole)


def export(
    model: shared.Model = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="artifact folder to make")] = Path("artifact"),
    backend: Annotated[
        str, typer.Option(help="what to make: {backends}; `ppexport backends` lists their options")
    ] = "onnx",
    size: Annotated[
        str | None,
        typer.Option(
            help="LR size HxW before padding: 256x256 for photographs where 0.5 GB of memory are free, 64x64 for "
            "phones, the frame's for video; the card's default if left out"
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="what numbers are stored in, of each backend: {precisions}. mixed is int8 and fp16, w8 has weights of "
            "8 bits, w8a8 activations too"
        ),
    ] = "fp32",
    calibration: Annotated[
        Path | None, typer.Option(help="file that `calibrate` wrote; bundled models have one of their own")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="what becomes int8, as `quantize-search` wrote it; the model's own if left out")
    ] = None,
    capacity: Annotated[
        str,
        typer.Option(
            help="slots, which are pixels that get the attention that pure ones skip: full; set, chosen for every "
            "image, which saves time where it is flat; or 1024,2048,..."
        ),
    ] = "full",
    mask: Annotated[
        str | None, typer.Option(help="where the Pure-Pass mask comes from: graph (the default) or input")
    ] = None,
    backend_option: Annotated[
        list[str] | None,
        typer.Option("-O", metavar="NAME=VALUE", help="an option of the backend, such as flavour=ort; may be repeated"),
    ] = None,
    flavour: Annotated[
        str | None,
        typer.Option(
            "--flavour",
            "--flavor",
            help="onnx, web: portable (the default, for every runtime), or ort: faster on a CPU, for ONNX Runtime 1.23 "
            "or newer",
        ),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="onnx: onnx (the default), or ort: model.ort for ONNX Runtime Mobile as well"),
    ] = None,
    pad_heads: Annotated[
        bool | None,
        typer.Option(
            "--pad-heads/--no-pad-heads",
            help="tensorrt: heads padded to a multiple of 8 channels, the default",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="coreml: deployment target iOS16, iOS17 or iOS18 (the default)")
    ] = None,
    interface: Annotated[
        str | None, typer.Option(help="coreml: tensor (the default), or image for an app's pictures")
    ] = None,
    ort: Annotated[
        Path | None, typer.Option(help="web: folder of npm's package onnxruntime-web, where it is in no node_modules")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="backends that start from ONNX: folder for the intermediate graphs")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace an artifact of another model, size or backend as well")
    ] = False,
    checkpoint: shared.Checkpoint = None,
    arch: shared.Arch = None,
    scale: shared.Scale = None,
    option: shared.Options = None,
    json: shared.Json = None,
) -> None:
    """Export a network for one LR size into an artifact folder.

    `--capacity set` stores the weights once and lets the runner choose the number of slots for every image: exact, and
    faster the more of the image is pure.
    """
    from ppexport.backends.backend import find_backend
    from ppexport.device.artifact import read_artifact
    from ppexport.exporting import export as run_export
    from ppexport.exporting import return_large_blocks
    from ppexport.networks.architecture import find_architecture

    card, weights = shared.card_and_weights(model, arch, scale, checkpoint, shared.network_options(option))
    pixels = card.default_size if size is None else shared.parse_size(size)
    flags = shared.given(
        flavour=flavour, format=file_format, pad_heads=pad_heads, target=target, interface=interface, ort=ort,
        keep=keep,
    )  # fmt: skip
    pairs = shared.parse_pairs(backend_option, "-O", "flavour=ort")
    twice = next((name for name in pairs if name in flags), None)
    if twice is not None:
        raise InputError(f"{twice} is given both as -O {twice}= and as a flag of its own: give it once")
    capacities = shared.parse_capacities(
        capacity, pixels, find_backend(backend).set_steps, find_architecture(card.arch).layout
    )
    return_large_blocks()
    with stages("export") as step:
        run_export(
            (card, weights), backend=backend, size=pixels, out=out, precision=precision, capacities=capacities,
            mask=mask, calibration=calibration, recipe=recipe, force=force, step=step,
            **pairs, **flags,
        )  # fmt: skip
    artifact = read_artifact(out)
    m, folder_bytes = artifact.manifest, bytes_of(out)
    file_bytes = {name: bytes_of(out / name) for name in m.files}
    emit_json(json, {"artifact": str(out), "bytes": folder_bytes, "file_bytes": file_bytes, "manifest": vars(m)})
    console = people(json)
    note = NOTES.get(m.quantisation.get("int8", {}).get("recipe"))
    if note is not None:
        console.print(note)
    span = " to ".join(map(str, dict.fromkeys(m.capacities[:1] + m.capacities[-1:])))
    slots = f"{span} of {m.tokens} slots, " if span else ""
    console.print(
        f"{out}: {m.name} x{m.scale} for {m.size[0]}x{m.size[1]} (HxW), {m.backend} {m.precision}, "
        f"{slots}{size_text(folder_bytes, file_bytes)}"
    )
