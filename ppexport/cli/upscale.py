"""`ppexport upscale`: picture -> tiles -> picture."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.cli.console import emit_json, fail, people, percent, progress_bar
from ppexport.cli.options import ArtifactFolder, Json, MaxPixels, Threads, Trust
from ppexport.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_INTERRUPTED, InputError, counted
from ppexport.imaging.images import MAX_PIXELS
from ppexport.imaging.outputs import TEMPLATE, Existing, check_replaced, check_template, output_name, plan_run

if TYPE_CHECKING:
    from ppexport.device.artifact import Artifact
    from ppexport.imaging.many import Batch
    from ppexport.imaging.upscaling import Report

EXAMPLE = (
    "Example: ppexport upscale x2_64 photo.jpg photo_x2.png, or a folder, resumed where it was: "
    "ppexport upscale x2_64 photos -o enlarged --recursive --existing skip"
)


def upscale(
    artifact: ArtifactFolder,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN",
            help="one picture and the picture to write (OUT); or, with --out, pictures, folders and patterns such as "
            "'photos/*.png'. A name that begins with - is written ./-name",
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
    existing: Annotated[
        Existing | None,
        typer.Option(
            help="leave, replace or refuse results that are there already; if left out, refuse them with --out, and "
            "replace OUT"
        ),
    ] = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    threads: Threads = None,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """Super-resolve pictures, in blended tiles of the artifact's size.

    Attention sees one tile at a time, so the result differs slightly from the whole-picture network's: at 64x64 tiles
    by about 50 dB, with the same PSNR against ground truth. A photograph takes fewer runs, and less time, with an
    artifact of 256x256: `export --size 256x256 --flavour ort --capacity set`.

    With --out a bad picture does not end the run: what failed is listed at the end, and the exit code is 1. Results are
    whole or absent, so that after Ctrl-C or a full disk the same command with --existing skip continues.
    """
    from ppexport.device.artifact import read_artifact

    about = read_artifact(artifact)
    if out is None:
        if recursive or name is not None:
            raise InputError("--recursive and --name need a folder for the results: name it with --out DIR")
        if len(inputs) != 2:
            raise InputError("name one picture and the picture to write, or a folder for the results with --out DIR")
        _upscale_one(about, Path(inputs[0]), Path(inputs[1]), existing, max_pixels, threads, trust, json)
    else:
        from ppexport.imaging.many import Batch

        check_template(name or TEMPLATE)
        named = partial(output_name, name or TEMPLATE, scale=about.scale, model=about.manifest.name)
        plan = plan_run(inputs, out, named, existing or Existing.refuse, recursive)
        _upscale_all(about, Batch(plan, about.size, max_pixels), threads, trust, json)


def _upscale_one(
    about: Artifact,
    source: Path,
    target: Path,
    existing: Existing | None,
    max_pixels: int,
    threads: int | None,
    trust: bool,
    json: str | None,
) -> None:
    """Enlarge *source* into the file *target*."""
    from ppexport.backends.backend import open_artifact
    from ppexport.imaging.tiles import plan_grid
    from ppexport.imaging.upscaling import read_source, upscale_source

    check_replaced(source, target)
    if existing not in (None, Existing.overwrite) and target.exists():
        if existing is Existing.refuse:
            raise InputError(f"{target} exists already: --existing overwrite replaces it")
        emit_json(json, {"output": str(target), "state": "skipped"})
        people(json).print(f"{target} exists already and is left as it is")
        return
    # Before the model is opened, which may take minutes.
    picture = read_source(source, target, about.scale, max_pixels)
    lr_height, lr_width = picture.picture.size
    number = len(plan_grid((lr_height, lr_width), about.size))
    if number > 1:
        people(json).print(
            f"{source}: {lr_width}x{lr_height} pixels are {number:,} runs, one for each tile of "
            f"{about.size[1]}x{about.size[0]}"
        )
    with (
        _ends_after_ctrl_c(f"interrupted: {target} was not written, and the same command begins again"),
        open_artifact(about.path, threads=threads, trust=trust) as runner,
        progress_bar("tiles") as progress,
    ):
        report = upscale_source(runner, picture, progress)
    emit_json(json, {"output": str(target), **_figures(report)})
    h, w = report.sr_size
    people(json).print(
        f"{target}: {w} pixels wide and {h} high, {counted(len(report.tiles), 'tile')}, {report.seconds_runtime:.1f} s "
        f"in the runtime of {report.seconds_total:.1f} s in all, overhead {percent(report.overhead)}"
    )
    if report.warning:
        fail(report.warning)
        raise typer.Exit(EXIT_GATE_FAILED)


def _upscale_all(about: Artifact, batch: Batch, threads: int | None, trust: bool, json: str | None) -> None:
    """Enlarge all pictures of *batch*, and say at the end what became of each."""
    from ppexport.backends.backend import open_artifact

    begin, seconds = None, 0.0
    if batch.works:
        pictures, runs = counted(len(batch.works), "picture"), counted(batch.tiles, "run")
        people(json).print(f"{pictures} to enlarge in {runs}, one for each tile of {about.size[1]}x{about.size[0]}")
    with _ends_after_ctrl_c("interrupted: the same command continues with --existing skip"):
        try:
            if batch.works:
                with open_artifact(about.path, threads=threads, trust=trust) as runner:
                    begin = time.perf_counter()
                    with progress_bar("tiles") as progress:
                        batch.run(runner, progress)
        finally:
            if begin is not None:
                seconds = time.perf_counter() - begin
            failed = _summarise(batch, seconds, json)
    if failed:
        raise typer.Exit(EXIT_GATE_FAILED if batch.works else EXIT_BAD_INPUT)


def _summarise(batch: Batch, seconds: float, json: str | None) -> bool:
    """Print and save what became of every input after *seconds*; whether anything is not as it should be."""
    outcomes = batch.outcomes
    states = Counter(outcome.state for outcome in outcomes)
    reports = [outcome.report for outcome in outcomes if outcome.report is not None]
    runtime = sum(report.seconds_runtime for report in reports)
    files = [
        {
            "input": str(outcome.source),
            "output": None if outcome.target is None else str(outcome.target),
            "state": outcome.state,
            **({} if outcome.reason is None else {"reason": outcome.reason}),
            **({} if outcome.report is None else _figures(outcome.report, alone=False)),
        }
        for outcome in outcomes
    ]
    emit_json(
        json,
        {
            **{state.replace(" ", "_"): states[state] for state in ("done", "skipped", "failed", "not begun")},
            "tiles": sum(len(report.tiles) for report in reports),
            "seconds_runtime": runtime,
            "seconds_total": seconds,
            "overhead": seconds / runtime - 1 if runtime else None,
            "files": files,
        },
    )
    for outcome in outcomes:
        if outcome.reason is not None:
            fail(outcome.reason)
        elif outcome.report is not None and outcome.report.warning:
            fail(f"{outcome.target}: {outcome.report.warning}")
    said = [f"{counted(states['done'], 'picture')} enlarged"]
    said += [f"{states[state]:,} {state}" for state in ("skipped", "failed", "not begun") if states[state]]
    if runtime:
        said.append(
            f"{runtime:.1f} s in the runtime of {seconds:.1f} s in all, overhead {percent(seconds / runtime - 1)}"
        )
    people(json).print(", ".join(said))
    return bool(states["failed"] or states["not begun"] or any(report.warning for report in reports))


def _figures(report: Report, alone: bool = True) -> dict[str, Any]:
    """*report* for JSON; the time that surrounds the runs only of a picture that was *alone*."""
    figures = {
        "lr_size": report.lr_size,
        "sr_size": report.sr_size,
        "tile": report.tile,
        "tiles": len(report.tiles),
        "tiles_over_capacity": len(report.over_capacity),
        "seconds_runtime": report.seconds_runtime,
    }
    return {**figures, "seconds_total": report.seconds_total, "overhead": report.overhead} if alone else figures


@contextmanager
def _ends_after_ctrl_c(sentence: str) -> Iterator[None]:
    """After Ctrl-C in the block, say *sentence* and end the program."""
    try:
        yield
    except KeyboardInterrupt:
        people("-").print(sentence)
        raise typer.Exit(EXIT_INTERRUPTED) from None
