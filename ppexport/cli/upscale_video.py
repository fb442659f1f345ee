"""What `ppexport upscale` does with videos."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from ppexport.cli.console import emit_json, fail, people, percent, progress_bar
from ppexport.cli.pictures import STANDARD, left_as_it_is
from ppexport.errors import EXIT_GATE_FAILED, EXIT_INTERRUPTED, InputError, PpexportError, counted

if TYPE_CHECKING:
    from ppexport.cli.pictures import Opener
    from ppexport.device.artifact import Artifact
    from ppexport.imaging.outputs import Existing
    from ppexport.imaging.upscaling import Settings
    from ppexport.imaging.video_run import VideoPlan, VideoReport


NOTHING = ", and no frame was done"


class Asked(NamedTuple):
    """What a user asked that only videos have."""

    codec: str | None = None
    crf: int | None = None
    fps: float | None = None
    raw: tuple[str, str] | None = None


def upscale_moving(
    about: Artifact,
    open_it: Opener,
    source: str,
    target: str,
    asked: Asked,
    settings: Settings,
    existing: Existing | None,
    json: str | None,
) -> bool:
    """Enlarge *source* into *target* where it is a video, or frames on standard input; False where it is a picture.

    Raises InputError for options of the other kind.
    """
    from ppexport.imaging.deadline import Deadline
    from ppexport.imaging.upscaling import Settings
    from ppexport.imaging.video import is_video
    from ppexport.imaging.video_encoding import FORMATS

    standard = STANDARD in (source, target)
    moving = not standard and (Path(target).suffix.lower() in FORMATS or is_video(Path(source)))
    if not moving and asked.raw is None:
        if asked != Asked():
            raise InputError("--codec, --crf and --fps are for videos: name a video and the video to write")
        return False
    if replace(settings, max_pixels=1) != Settings(max_pixels=1):
        raise InputError(
            "--quality, --lossless, --alpha, --strip-metadata, --first-frame and --wrap are for pictures: of videos "
            "--crf is the quality, and --codec ffv1 is lossless"
        )
    if asked.fps is not None:
        # Before the model is opened, which may take minutes.
        Deadline(asked.fps, ())
    if asked.raw is not None:
        if (source, target) != (STANDARD, STANDARD):
            raise InputError("--raw takes frames from standard input to standard output: write - - for IN and OUT")
        upscale_raw(open_it, asked.raw, asked.fps, json)
    elif not left_as_it_is(Path(source), Path(target), existing, json):
        _upscale_file(about, open_it, Path(source), Path(target), asked, settings.max_pixels, json)
    return True


def _upscale_file(
    about: Artifact, open_it: Opener, source: Path, target: Path, asked: Asked, max_pixels: int, json: str | None
) -> None:
    """Enlarge the video *source* into the file *target*, and say what it took."""
    from ppexport.imaging.tiles import plan_grid
    from ppexport.imaging.video_encoding import VideoOptions
    from ppexport.imaging.video_run import InterruptedVideo, plan_video, unfinished, work_key
    from ppexport.imaging.video_segments import check_same_work

    fps = asked.fps
    try:
        plan = plan_video(source, target, about.scale, VideoOptions(asked.codec, asked.crf), max_pixels)
        tell = people(json).print
        (h, w), tiles = plan.video.size, len(plan_grid(plan.video.size, about.size))
        encoding = plan.encoding
        quality = "" if encoding.crf is None else f" at --crf {encoding.crf}"
        tell(
            f"{source}: {w}x{h} pixels, {float(plan.video.rate):.5g} frames a second, {plan.video.format} in "
            f"{plan.video.colours.text}, {counted(tiles, 'tile')} a frame; written as {encoding.format} by "
            f"{encoding.encoder}{quality}"
        )
        for note in plan.notes:
            tell(f"note: {note}")
        if unfinished(target):
            check_same_work(target, work_key(about, plan, fps))
            tell(f"continuing what an earlier run has done of {target}")
        report = _run(open_it, plan, fps)
    except InterruptedVideo as stopped:
        people("-").print(_interruption(stopped, target))
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except KeyboardInterrupt:
        # While the source is read, the model is opened, or what is done is made to play.
        there = unfinished(target)
        kept = "; what is done is kept beside it, and the same command continues it" if there else NOTHING
        people("-").print(f"interrupted: {target} was not written{kept}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    emit_json(json, {"output": str(target), "opened": open_it.used, **_figures(report, plan)})
    for sentence in _summary(report, fps):
        tell(f"{target}: {sentence}")
    for note in report.notes:
        tell(f"note: {note}")
    for sentence in report.damage:
        fail(sentence)
    if report.tiles_over_capacity and fps is None:
        fail(
            f"{_over(report)} have more impure tokens than the artifact has slots: they are not the network's, use an "
            "artifact of full capacity"
        )
    if report.damage or (report.tiles_over_capacity and fps is None):
        raise typer.Exit(EXIT_GATE_FAILED)


def _run(open_it: Opener, plan: VideoPlan, fps: float | None) -> VideoReport:
    from ppexport.imaging.video_run import unfinished, upscale_video

    try:
        with open_it() as runner, progress_bar("frames", "fps") as progress:
            return upscale_video(runner, plan, progress, fps)
    except PpexportError:
        if unfinished(plan.target):
            people("-").print(f"what is done of {plan.target} is kept beside it, and the same command continues it")
        raise


def _interruption(stopped: Any, target: Path) -> str:
    if stopped.partial is None and stopped.frames:
        return f"interrupted: {counted(stopped.frames, 'frame')} are done, and the same command puts {target} together"
    if stopped.partial is None:
        return f"interrupted: {target} was not written{NOTHING}"
    return (
        f"interrupted: {stopped.partial} plays the first {counted(stopped.frames, 'frame')}, and the same command "
        f"continues {target} after them"
    )


def _summary(report: VideoReport, fps: float | None) -> list[str]:
    """Sentences about what was done."""
    (h, w), all_tiles = report.sr_size, report.tiles + report.unchanged
    done = report.frames - report.resumed
    earlier = f" ({report.resumed:,} of them by an earlier run)" if report.resumed else ""
    said = [f"{counted(report.frames, 'frame')}{earlier}, {w} pixels wide and {h} high"]
    if done and all_tiles:
        each = 1000 * report.seconds_total / done
        said[0] += f", {each:.0f} ms a frame, {report.fps:.2f} fps"
        share = percent(report.unchanged / all_tiles)
        overhead = "" if report.overhead is None else f", overhead {percent(report.overhead)}"
        said.append(
            f"{counted(report.tiles, 'tile')} run, {report.unchanged:,} unchanged ({share}); "
            f"{report.seconds_runtime:.1f} s in the runtime of {report.seconds_total:.1f} s in all{overhead}"
        )
    if fps is not None and done:
        said.append(
            f"{report.frames_in_time:,} of {counted(done, 'frame')} in time for {fps:g} fps; {_over(report)} had fewer "
            "slots than impure tokens, and are not what the network would give"
        )
    return said


def _over(report: VideoReport) -> str:
    return f"{counted(report.tiles_over_capacity, 'tile')} in {counted(report.frames_over_capacity, 'frame')}"


def _figures(report: VideoReport, plan: VideoPlan) -> dict[str, Any]:
    return {**_plain(report), "notes": (*plan.notes, *report.notes)}


def _plain(report: VideoReport) -> dict[str, Any]:
    done = report.frames - report.resumed
    return {
        **{name: getattr(report, name) for name in report.__dataclass_fields__},
        "fps": report.fps,
        "seconds_per_frame": report.seconds_total / done if done else None,
        "overhead": report.overhead,
    }


def upscale_raw(open_it: Opener, raw: tuple[str, str], fps: float | None, json: str | None) -> None:
    """Enlarge frames without a container from standard input to standard output. Text goes to standard error."""
    from ppexport.imaging.video_raw import check_raw, upscale_stream

    form = check_raw(*raw)
    if json == "-":
        raise InputError("--raw writes frames to standard output: name a file for --json")
    # Whatever a library prints must not get between the frames.
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Not sys.stdin, whose lock a thread that waits for a frame would hold at the end of the program.
    with (
        open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as frames,
        sink,
        open_it() as runner,
    ):
        report = upscale_stream(runner, form, frames, sink, fps)
    emit_json(json, {"opened": open_it.used, **_plain(report)})
    for sentence in _summary(report, fps):
        people("-").print(f"standard output: {sentence}")
    if report.tiles_over_capacity and fps is None:
        fail(f"{_over(report)} have more impure tokens than the artifact has slots: they are not the network's")
        raise typer.Exit(EXIT_GATE_FAILED)
