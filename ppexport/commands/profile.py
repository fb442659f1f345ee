"""`ppexport profile`: how long an artefact takes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.commands.options import ArtifactFolder, Json, Trust
from ppexport.console import emit_json, people, progress_bar, stages, table
from ppexport.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from ppexport.profile.result import Profile

EXAMPLE = "Example: ppexport profile x2_64 --quick --layers -o x2_64-profile"


def check_device(on: str) -> None:
    """Raise UnavailableError for another machine than this one."""
    if on.startswith(("ssh://", "adb://")):
        raise UnavailableError(f"{on}: profiling on another device is not available yet; run this command there")
    if on != "local":
        raise InputError(f"a device is local, not {on!r}")


def profile(
    artifact: ArtifactFolder,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="folder of the run; ARTIFACT-profile if left out")
    ] = None,
    on: Annotated[str, typer.Option(help="the device: local")] = "local",
    runtime: Annotated[
        str | None,
        typer.Option(
            help="onnxruntime, openvino, tensorrt or coreml, also onnxruntime:CUDA; several, separated by commas, or "
            "all are timed in turns; the artefact's own if left out"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="64 queries and 6 s, not 1,024 and 60 s")] = False,
    sustained: Annotated[bool, typer.Option("--sustained", help="ten minutes: what heat does")] = False,
    images: Annotated[Path | None, typer.Option(help="folder of pictures; the bundled photographs if left out")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="afterwards, apart: time by layer and branch")] = False,
    routing: Annotated[
        bool, typer.Option("--routing", help="afterwards: time against pure share and capacity")
    ] = False,
    frames: Annotated[
        Path | None, typer.Option(help="afterwards: frames per second on this folder of video frames")
    ] = None,
    layer_times: Annotated[
        Path | None, typer.Option(help="for --layers of a TensorRT engine: what trtexec --exportProfile wrote")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads of the runtime; its choice if left out")] = None,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """Measure an artefact's latency: single queries one after the other, after a warm-up, every sample kept.

    The headline is p90. Inside the clock: checks, mask and choice of the capacity, and the run from host memory to
    host memory. A run that is interrupted goes on with the same command; a machine that changes its clocks, runs other
    programs or holds queries up leaves a mark beside the figures.
    """
    from ppexport.images import pictures_in
    from ppexport.profile.further import profile_frames, profile_layers, profile_routing
    from ppexport.profile.run import measure, plan_of, prepare
    from ppexport.profile.runtimes import choose

    check_device(on)
    if frames is not None:
        pictures_in(frames)
    if layer_times is not None and not layers:
        raise InputError("--layer-times is for --layers")
    targets = choose(artifact, runtime, threads, trust)
    folder = out or artifact.resolve().with_name(artifact.resolve().name + "-profile")
    console = people(json)
    job = prepare(targets, plan_of(quick, sustained, targets), folder, images)
    with progress_bar("queries") as progress:
        result = measure(job, progress, lambda line: console.print(line))
    show(result, console)
    summary = {key: value for key, value in result.data.items() if key not in ("samples", "sensors")}
    if layers:
        with stages("time by layer"):
            found = profile_layers(job, result, layer_times)
        summary["layers"] = [{k: v for k, v in data.items() if k != "operations"} for data in found]
        show_layers(found, console)
    if routing:
        with stages("time against pure share"):
            summary["routing"] = profile_routing(job, result, images)
        show_routing(summary["routing"], console)
    if frames is not None:
        with stages("frames"):
            summary["frames"] = profile_frames(job, result, frames)
        for data in summary["frames"]:
            show_frames(data, console)
    emit_json(json, summary)


def show_layers(found: list[dict[str, Any]], console: Console) -> None:
    """Print time by branch of every runtime."""
    from ppexport.profile.layers.spans import BRANCHES

    rows = [
        [b, *(f"{d['branches'].get(b, 0):.2f} ({100 * d['branches'].get(b, 0) / d['total_ms']:.0f} %)" for d in found)]
        for b in BRANCHES
        if any(b in d["branches"] for d in found)
    ]
    rows.append(["all operations", *(f"{d['total_ms']:.2f}" for d in found)])
    console.print(table("time by branch, ms", ["branch", *(d["subject"]["name"] for d in found)], rows))


def show_routing(found: list[dict[str, Any]], console: Console) -> None:
    """Print what pure pixels save."""
    for data in found:
        line, images = data["line"], data["images"]
        shares = [image["pure_share"] for image in images]
        name = data["subject"]["name"]
        if line is None:
            console.print(f"{name}: the pictures' pure shares hardly differ, so no line was drawn")
            continue
        saving = line["saving"]
        console.print(
            f"{name}: {line['at_zero_ms']['middle']:.1f} ms without pure pixels; a wholly pure picture saves "
            f"{100 * saving['middle']:.1f} % (95 %: {100 * saving['low']:.1f} to {100 * saving['high']:.1f}), from "
            f"{len(images)} pictures with {100 * min(shares):.0f} to {100 * max(shares):.0f} % pure pixels"
        )


def show_frames(data: dict[str, Any], console: Console) -> None:
    """Print the answer, and how often each deadline is met."""
    console.print(f"{data['subject']['name']}: {data['sentence']}")
    for rate, deadline in data["deadlines"].items():
        console.print(f"  {rate} fps: {100 * deadline['hit_rate']:.1f} % of the frames ready in time")


def show(result: Profile, console: Console) -> None:
    """Print the figures and the marks."""
    names = (
        "p90, ms", "95 % interval", "p50, ms", "p99, ms", "p90, ms per output megapixel", "queries", "loading, ms",
        "first run, ms", "peak memory, MB",
    )  # fmt: skip
    figures = []
    for subject in result.subjects:
        s, memory = subject["summary"], subject["memory"]
        low, high = s["p90_interval_ms"]
        figures.append(
            (
                f"{s['p90_ms']:.1f}",
                f"{low:.1f} to {high:.1f}",
                f"{s['p50_ms']:.1f}",
                f"{s['p99_ms']:.1f}",
                f"{s['p90_ms_per_megapixel']:.0f}",
                str(s["count"]),
                f"{subject['load_ms']:.0f}",
                f"{subject['first_ms']:.0f}",
                "" if memory is None else f"{memory['peak'] / 1e6:.0f}",
            )
        )
    rows = [[name, *values] for name, values in zip(names, zip(*figures, strict=True), strict=True)]
    columns = ["latency", *(subject["name"] for subject in result.subjects)]
    console.print(table(result.data["machine"]["cpu"], columns, rows))
    for subject in result.subjects:
        droop = subject["summary"]["droop"]
        if droop is not None:
            console.print(
                f"{subject['name']}: first minute {droop['first_minute_ms']:.1f} ms, last minute "
                f"{droop['last_minute_ms']:.1f} ms, ratio {droop['ratio']:.3f}"
            )
    for mark in result.data["marks"]:
        console.print(f"mark: {mark['text']}")
    console.print(f"{result.path}")
