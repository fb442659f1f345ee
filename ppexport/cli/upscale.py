"""`ppexport upscale`: picture -> tiles -> picture."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ppexport.cli.console import people, stages
from ppexport.cli.options import ArtifactFolder, Json, MaxPixels, Threads, Trust
from ppexport.cli.pictures import STANDARD, Opener, upscale_all, upscale_one
from ppexport.cli.upscale_video import Asked, upscale_moving
from ppexport.errors import InputError
from ppexport.imaging.images import MAX_PIXELS, WriteOptions, check_options
from ppexport.imaging.outputs import TEMPLATE, Existing, check_template, output_name, plan_run

EXAMPLE = (
    "Example: ppexport upscale x2_64 photo.jpg photo_x2.png, or a folder, which continues where it was: "
    "ppexport upscale x2_64 photos -o enlarged --recursive --existing skip"
)


def upscale(
    artifact: ArtifactFolder,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN",
            help="one picture and the picture to write (OUT), where - is standard input and output; or, with --out, "
            "pictures, folders and patterns such as 'photos/*.png'. A name that begins with - is written ./-name",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="folder for the results, made if it is missing")
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="with --out: look into subfolders, too, and make the same ones in DIR")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="with --out: names of results, made of {{stem}}, {{scale}}, {{suffix}} and {{model}}; "
            f"{TEMPLATE.replace('{', '{{').replace('}', '}}')} if left out",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="EXT",
            help="with --out: write all results as png, jpg, webp, ..., in place of the formats of the inputs; the "
            "format of standard output, png if left out",
        ),
    ] = None,
    existing: Annotated[
        Existing | None,
        typer.Option(
            help="leave, replace or refuse results that are there already; if left out, refuse them with --out, and "
            "replace OUT"
        ),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(help="1 to 100, of JPEG (95 if left out), lossy WebP, AVIF and HEIC (90 if left out)")
    ] = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="lossless HEIC; so are WebP without --quality, PNG, TIFF, BMP and PPM")
    ] = False,
    alpha: Annotated[
        str,
        typer.Option(
            metavar="network|bicubic",
            help="enlarge transparency by the network, as a grey picture, or by a bicubic filter",
        ),
    ] = "network",
    strip_metadata: Annotated[
        bool,
        typer.Option("--strip-metadata", help="leave out EXIF, XMP, texts and dots per inch; colour profiles stay"),
    ] = False,
    first_frame: Annotated[
        bool, typer.Option("--first-frame", help="take the first frame of an animation, the first page of a TIFF")
    ] = False,
    wrap: Annotated[
        str | None,
        typer.Option(
            metavar="x|y|xy",
            help="continue the picture at its opposite edge, as seamless textures do: left and right (x), top and "
            "bottom (y), or both",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="of a video: libx264, libx265, libsvtav1, libvpx-vp9, ffv1 (lossless), prores_ks or mpeg4; the codec "
            "of the source if left out",
        ),
    ] = None,
    crf: Annotated[
        int | None,
        typer.Option(
            help="of a video: its quality, smaller is better; 18 of libx264, 20 of libx265, 28 of libsvtav1, 24 of "
            "libvpx-vp9 if left out"
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            help="of a video: frames a second that should be reached; tiles get fewer slots than they need where it is "
            "not, and are counted"
        ),
    ] = None,
    raw: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="WxH FORMAT",
            help="frames without a container, from standard input to standard output (- -): their width, height and "
            "rgb24 or rgb48le",
        ),
    ] = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    runtime: Annotated[
        str,
        typer.Option(
            help="one of {runtimes}, also with a device, such as onnxruntime:CUDA; auto is what `ppexport tune` chose "
            "for this artifact on this machine, and before that the artifact's own"
        ),
    ] = "auto",
    threads: Threads = None,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """Super-resolve pictures and videos, in blended tiles of the artifact's size.

    Attention sees one tile at a time, so the result differs slightly from the whole-picture network's: at 64x64 tiles
    by about 50 dB, with the same PSNR against ground truth. A photograph takes fewer runs, and less time, with an
    artifact of 256x256: `export --size 256x256 --flavour ort --capacity set`.

    With --out a bad picture does not end the run: what failed is listed at the end, and the exit code is 1. Results are
    whole or absent, so that after Ctrl-C or a full disk the same command with --existing skip continues.

    A video (IN OUT, with the extra `video`) keeps its sound, subtitles, times and colours. Tiles that do not change are
    not run again, and after Ctrl-C what is done plays, and the same command continues.
    """
    from ppexport.backends.backend import find_backend, open_artifact
    from ppexport.backends.choices import settle
    from ppexport.device.artifact import read_artifact
    from ppexport.imaging.enlarging import EnlargeOptions
    from ppexport.imaging.many import Batch
    from ppexport.imaging.upscaling import Settings

    about = read_artifact(artifact)
    write = WriteOptions(quality, lossless, strip_metadata)
    settings = Settings(max_pixels, first_frame, EnlargeOptions(alpha, wrap or ""), write)
    suffix = None if format is None else f".{format.lower().lstrip('.')}"
    if suffix is not None:
        check_options(f"--format {format}", suffix, write)
    asked = Asked(codec, crf, fps, raw)
    if out is not None and asked != Asked():
        raise InputError(
            "--codec, --crf, --fps and --raw are for one video: name it and the video to write, without --out"
        )
    settled = settle(about, runtime, threads, trust)

    def say() -> None:
        console = people(STANDARD if STANDARD in inputs[1:] else json)
        console.print(settled.sentence(find_backend(about.manifest.backend).usual))

    ways = {"runtime": runtime, "threads": threads, "trust": trust}
    open_it = Opener(partial(open_artifact, about.path, **ways), settled.to_dict(), say)
    if out is None:
        if recursive or name is not None:
            raise InputError("--recursive and --name need a folder for the results: name it with --out DIR")
        if len(inputs) != 2:
            raise InputError("name one picture and the picture to write, or a folder for the results with --out DIR")
        if suffix is not None and inputs[1] != STANDARD:
            raise InputError("--format is for --out and for standard output: the name of OUT says its format")
        source, target = inputs
        if os.path.isdir(source):
            raise InputError(f"{source} is a folder: name the folder for its results with --out, as in --out {target}")
        if os.path.isdir(target):
            raise InputError(f"{target} is a folder: write --out {target}, or name a file in it")
        if upscale_moving(about, open_it, source, target, asked, settings, existing, json):
            return
        upscale_one(about, open_it, source, target, settings, existing, suffix or ".png", json)
    else:
        check_template(name or TEMPLATE)
        named = partial(output_name, name or TEMPLATE, scale=about.scale, model=about.manifest.name, suffix=suffix)
        plan = plan_run(inputs, out, named, existing or Existing.refuse, recursive)
        with stages("looking at the pictures"):
            batch = Batch(plan, about.size, settings)
        upscale_all(about, open_it, batch, json)
