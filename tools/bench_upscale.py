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
from ppexport.imaging.many import Batch
from ppexport.imaging.outputs import Existing, plan_run
from ppexport.imaging.tiles import Blender, cut, plan_grid
from ppexport.imaging.upscaling import Report, upscale_file


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
    source: Annotated[Path, typer.Argument(metavar="IN", help="A picture, or a folder of pictures.")],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the runtime; one for each core if left out.")
    ] = None,
    suffix: Annotated[str, typer.Option(help="Format of the result: .png, .jpg or .webp.")] = ".png",
    rounds: Annotated[int, typer.Option(min=1, help="How often a folder is upscaled each way, in turns.")] = 2,
) -> None:
    """Upscale a picture once, then time what surrounds the inferences without them.

    Of a folder: upscale its pictures one after the other, and then overlapping, as `upscale --out` does.
    """
    try:
        with open_artifact(artifact, threads=threads) as runner, tempfile.TemporaryDirectory() as folder:
            # The first run of a session makes its plan; the measured ones follow it.
            runner(np.zeros((1, 3, *runner.size), np.float32))
            if source.is_dir():
                bench_folder(runner, source, Path(folder), suffix, rounds)
            else:
                bench_picture(runner, source, Path(folder) / f"sr{suffix}")
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None


def bench_picture(runner: Runner, source: Path, target: Path) -> None:
    """Print what the stages of one picture take."""
    report = upscale_file(runner, source, target)
    alone = stages_alone(runner, source, target)
    inferences = report.seconds_runtime
    entries = {**alone, "all of these in turns": sum(alone.values())}
    entries["overlapping with inference"] = report.seconds_total - inferences
    rows = [[name, f"{seconds:.3f}", percent(seconds / inferences)] for name, seconds in entries.items()]
    (height, width), tiles = report.lr_size, len(report.tiles)
    title = f"{width}x{height} pixels, {tiles} tiles, {inferences:.2f} s in the runtime"
    people(None).print(table(title, ["stage", "s", "of the inferences"], rows))


def bench_folder(runner: Runner, source: Path, folder: Path, suffix: str, rounds: int) -> None:
    """Print what the pictures of a folder take, one after the other and overlapping, in turns."""
    plan = plan_run([str(source)], folder / "many", lambda path: f"{path.name}{suffix}", Existing.overwrite)

    def alone() -> list[Report]:
        return [upscale_file(runner, job.source, folder / job.target.name) for job in plan.jobs]

    def together() -> list[Report]:
        batch = Batch(plan, runner.size)
        batch.run(runner, lambda done, total: None)
        return [outcome.report for outcome in batch.outcomes if outcome.report is not None]

    # Seconds in all, in the runtime, and of the processor.
    spent = {"one after the other": np.zeros(3), "overlapping": np.zeros(3)}
    tiles = 0
    for number in range(rounds):
        ways = list(zip(spent, (alone, together), strict=True))
        for name, way in ways[:: -1 if number % 2 else 1]:
            begin, processor = time.perf_counter(), time.process_time()
            reports = way()
            total, processor = time.perf_counter() - begin, time.process_time() - processor
            spent[name] += total, sum(report.seconds_runtime for report in reports), processor
            tiles = sum(len(report.tiles) for report in reports)
    rows = [
        [name, f"{total:.2f}", f"{runtime:.2f}", percent(total / runtime - 1), f"{processor:.2f}"]
        for name, (total, runtime, processor) in spent.items()
    ]
    title = f"{len(plan.jobs)} pictures, {tiles} tiles, {rounds} times each way"
    people(None).print(table(title, ["", "s", "s in the runtime", "overhead", "processor s"], rows))


if __name__ == "__main__":
    typer.run(bench)
