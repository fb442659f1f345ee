"""What `upscale` takes besides the inferences, stage by stage: python tools/bench_upscale.py --help."""

from __future__ import annotations

import os

# As in the command line: waiting threads that spin would slow the other stages.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ppexport.backends.backend import open_artifact
from ppexport.cli.console import fail, people, percent, table
from ppexport.device.picture import to_input
from ppexport.device.runner import Runner
from ppexport.errors import PpexportError
from ppexport.imaging.images import read_image, write_image
from ppexport.imaging.tiles import Blender, cut, plan_grid
from ppexport.imaging.upscaling import upscale_file


def stages_alone(runner: Runner, source: Path, target: Path) -> dict[str, float]:
    """Seconds of every stage but the inferences for the picture *source*, one after the other; writes *target*."""
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        done = work(*arguments)
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begin
        return done

    picture = timed("read the file", read_image, source)
    grid = plan_grid(picture.size, runner.size)
    blender = Blender(grid, runner.scale)
    for origin in grid:
        tile = timed("cut and convert", cut, picture.rgb, origin, grid.tile)
        lr = timed("cut and convert", to_input, tile)
        timed("check, mask, capacity", runner.prepare, lr)
        sr = lr.repeat(runner.scale, axis=2).repeat(runner.scale, axis=3)
        timed("check the result", runner.check_picture, sr)
        timed("blend", blender.add, sr[0])
    # The result itself, since how long a file takes depends on what it shows.
    timed("write the file", write_image, target, read_image(target))
    return seconds


def bench(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="A picture.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime; its choice if left out.")] = None,
    suffix: Annotated[str, typer.Option(help="Format of the result: .png, .jpg or .webp.")] = ".png",
) -> None:
    """Upscale a picture once, then time what surrounds the inferences without them."""
    try:
        runner = open_artifact(artifact, threads=threads)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"sr{suffix}"
            # The first run of a session makes its plan; the measured ones follow it.
            runner(np.zeros((1, 3, *runner.size), np.float32))
            report = upscale_file(runner, source, target)
            alone = stages_alone(runner, source, target)
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None
    inferences = report.seconds_runtime
    entries = {**alone, "all of these in turns": sum(alone.values())}
    entries["overlapping with inference"] = report.seconds_total - inferences
    rows = [[name, f"{seconds:.3f}", percent(seconds / inferences)] for name, seconds in entries.items()]
    (height, width), tiles = report.lr_size, len(report.tiles)
    title = f"{width}x{height} pixels, {tiles} tiles, {inferences:.2f} s in the runtime"
    people(None).print(table(title, ["stage", "s", "of the inferences"], rows))


if __name__ == "__main__":
    typer.run(bench)
