"""`ppexport profile`: how long an artifact takes on this machine, or on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.cli.browser import PLACE, Adb, Connection, Headless, Lan, LanAddress
from ppexport.cli.browser import measure as measure_in_browser
from ppexport.cli.console import continues_from, duration, emit_json, people, progress_bar, stages, table
from ppexport.cli.devices import RemoteRun, clean_lab, exit_code, lab_json, measure_lab, show_lab
from ppexport.cli.options import AcceptNewHostKey, ArtifactFolder, Identity, Json, Load, SshConfig, Timeout, Trust
from ppexport.cli.parity import show as show_parity
from ppexport.device.runner import check_threads
from ppexport.errors import EXIT_GATE_FAILED, InputError, counted, require

if TYPE_CHECKING:
    from rich.console import Console

    from ppexport.profile.result import Profile

DEVICES = "measure on all devices of this file at once, into OUT/NAME; ppexport/profile/lab.py describes it"
RUNTIMES = (
    "one of {runtimes}, also with a device, such as onnxruntime:CUDA; several, separated by commas, or all are timed "
    "in turns; the artifact's own if left out"
)
POWER_MODE = (
    "Jetson only: run in this power mode of the board's /etc/nvpmodel.conf, such as MAXN_SUPER, and restore the mode "
    "afterwards (`sudo -n nvpmodel`; untested on hardware)"
)
LOCK_CLOCKS = (
    "Jetson only: lock the clocks with `jetson_clocks` during the run and restore them afterwards (`sudo -n`; untested "
    "on hardware)"
)
EXAMPLE = "Example: ppexport profile x2_64 --quick --layers -o x2_64-profile"


def profile(
    context: typer.Context,
    artifact: ArtifactFolder,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="folder of the run; ARTIFACT-profile if left out")
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            help="the device: local, browser for a page, ssh://USER@HOST:PORT, or adb://serial (untested on hardware)"
        ),
    ] = "local",
    devices: Annotated[Path | None, typer.Option(metavar="LAB.yaml", help=DEVICES)] = None,
    runtime: Annotated[str | None, typer.Option(help=RUNTIMES)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="64 queries and 6 s instead of 1,024 and 60 s")] = False,
    sustained: Annotated[bool, typer.Option("--sustained", help="ten minutes, to see what heat does")] = False,
    load: Load = 0,
    images: Annotated[Path | None, typer.Option(help="folder of pictures; bundled photographs if left out")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="also measure time by layer and branch")] = False,
    routing: Annotated[bool, typer.Option("--routing", help="also measure time by pure pixels and capacity")] = False,
    frames: Annotated[Path | None, typer.Option(help="also measure frames a second on this folder of frames")] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="with --frames: whether this rate is kept up with, and up to which size and scale"),
    ] = None,
    versus: Annotated[
        list[Path] | None,
        typer.Option(metavar="ARTIFACT", help="with --fps: an artifact of another scale to compare; may be repeated"),
    ] = None,
    layer_times: Annotated[
        Path | None, typer.Option(help="for --layers of a TensorRT engine: the file that trtexec --exportProfile wrote")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="threads of the runtime; one for each physical core if left out"),
    ] = None,
    power_mode: Annotated[str | None, typer.Option(metavar="NAME|NUMBER", help=POWER_MODE)] = None,
    lock_clocks: Annotated[bool, typer.Option("--lock-clocks", help=LOCK_CLOCKS)] = False,
    cores: Annotated[str | None, typer.Option(help="with --on: run on these cores of the device, such as 4-7")] = None,
    device_python: Annotated[
        str | None, typer.Option(metavar="PATH", help="with --on: its Python with the runtime; python3 if left out")
    ] = None,
    lan: Lan = False,
    lan_address: LanAddress = None,
    adb: Adb = None,
    headless: Headless = False,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="with --on browser: also compute the inputs of this parity run, and compare"),
    ] = None,
    perf_binary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="with --on, for a device without Python: the runtime's benchmark program, onnxruntime_perf_test or "
            "benchmark_model",
        ),
    ] = None,
    timeout: Timeout = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="with --on: stop and remove this artifact's measurements on the device")
    ] = False,
    identity: Identity = None,
    ssh_config: SshConfig = None,
    accept_new_host_key: AcceptNewHostKey = False,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """Measure an artifact's latency: single queries one after the other, after a warm-up, every sample kept.

    The headline is p90. The clock includes checks, the mask, the choice of the capacity, and the run from host memory
    to host memory. A run that was interrupted continues with the same command. A machine that changes its clocks, runs
    other programs or holds queries up leaves a mark beside the figures.

    With --on browser it serves an artifact of the backend web and measures in the browser that opens its address, on
    this machine or, with --lan, on a phone in the same network.

    A device behind ssh needs sh, Python 3.8 with NumPy, and the runtime, but not ppexport. A measurement on a device
    outlives this command: the same command again waits for it and collects it.
    """
    from ppexport.device.jetson import clocks_locked, power_mode_set
    from ppexport.device.target import choose
    from ppexport.folders import run_folder
    from ppexport.imaging.deadline import Deadline
    from ppexport.imaging.images import pictures_in
    from ppexport.profile.by_layer import profile_layers
    from ppexport.profile.content import profile_frames, profile_routing
    from ppexport.profile.latency_run import RUN, measure, plan_of, prepare
    from ppexport.profile.real_time import profile_real_time
    from ppexport.profile.remote import Settings, parse_cores
    from ppexport.remote.address import parse_address
    from ppexport.remote.ssh import SshOptions

    in_browser, way = on == PLACE, Connection(lan, lan_address, adb, headless)
    local = not in_browser and parse_address(on) is None and devices is None
    own = bool(cores or device_python or perf_binary)
    refused = {
        "with --devices the file says where and how: leave --on and a device's options out":
            devices is not None and (on != "local" or own or lock_clocks or power_mode is not None),
        "--cores, --device-python, --perf-binary, --timeout and --clean are for a device: name it with --on":
            local and (own or clean or timeout is not None),
        "--lan, --adb, --headless and --against are for --on browser": not in_browser and bool(way or against),
        "a browser has no options of a device but --timeout: leave them out":
            in_browser and (own or clean or lock_clocks or power_mode is not None),
        "--layers, --routing and --frames are measured on this machine only: run them on the device":
            not local and (layers or (routing and not in_browser) or frames is not None),
        "--load is for the latency of an artifact in one of our runners: leave out what measures otherwise":
            load > 0 and (in_browser or perf_binary is not None or layers or routing or frames is not None),
        "--fps is for --frames: name a folder of frames": fps is not None and frames is None,
        "--versus is for --fps: name a rate": bool(versus) and fps is None,
        "which runtimes a device has is not known here: name them": not local and runtime == "all",
        "--layer-times is for --layers": layer_times is not None and not layers,
    }  # fmt: skip
    for why, applies in refused.items():
        if applies:
            raise InputError(why)
    settings = Settings(device_python, power_mode, lock_clocks, parse_cores(cores))
    check_threads(threads, here=local)
    console = people(json)
    folder = out or artifact.resolve().with_name(artifact.resolve().name + "-profile")
    run = RemoteRun(
        artifact=artifact, runtime=runtime, threads=threads, trust=trust, quick=quick, sustained=sustained,
        load=load, folder=folder, images=images, address=on,
        options=SshOptions(identity, ssh_config, accept_new_host_key),
        settings=settings, perf_binary=perf_binary, timeout=timeout,
    )  # fmt: skip
    if devices is not None:
        _profile_lab(devices, run, clean, json, console)
        return
    if clean:
        done = run.clean()
        emit_json(json, {"done": done})
        console.print("\n".join(done) or f"no measurement of {artifact} is on {on}")
        return
    if in_browser:
        _profile_in_browser(run, way, routing, against, json, console)
        return
    if not local:
        result = run.measure()
        show(result, console)
        emit_json(json, result.to_dict())
        return
    if frames is not None:
        pictures_in(frames)
    if fps is not None:
        Deadline(fps, ())
    targets = choose(artifact, runtime, threads, trust)
    others = [[choose(other, target.name, threads, trust)[0] for target in targets] for other in versus or ()]
    plan = plan_of(quick, sustained, load, targets)
    context.with_resource(run_folder(folder, RUN))
    job = prepare(targets, plan, folder, images)
    console.print(
        f"{counted(len(targets), 'runtime')}: warmed up, then timed for at least {duration(plan.seconds)} and "
        f"{plan.queries:,} queries"
    )

    def warn(text: str) -> None:
        console.print(f"warning: {text}")

    with continues_from(job.journal):
        with (
            progress_bar("queries") as progress,
            power_mode_set(settings.mode, str(folder), warn),
            clocks_locked(lock_clocks, str(folder), warn),
        ):
            result = measure(job, progress, console.print)
        show(result, console)
        summary = result.to_dict()
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
            show_frames(summary["frames"], console)
        if frames is not None and fps is not None:
            with stages("real time"):
                summary["real_time"] = profile_real_time(job, result, frames, fps, others)
            for data in summary["real_time"]:
                console.print("\n".join(data["sentences"]))
    emit_json(json, summary)


def _profile_in_browser(
    run: RemoteRun, way: Connection, routing: bool, against: Path | None, json: str | None, console: Console
) -> None:
    """Measure in a browser, show what was found, and end with the exit code of the comparison where one was made."""
    result, found, report = measure_in_browser(run, way, routing, against)
    show(result, console)
    show_routing(found, console)
    summary = {**result.to_dict(), **({"routing": found} if found else {})}
    if report is not None:
        show_parity(report, console)
        summary["parity"] = report.to_dict()
    emit_json(json, summary)
    if report is not None and not report.passed:
        raise typer.Exit(EXIT_GATE_FAILED)


def _profile_lab(devices: Path, run: RemoteRun, clean: bool, json: str | None, console: Console) -> None:
    """Measure on all devices of the lab file, or remove their measurements, and end with the exit code of all."""
    # PyYAML and pydantic are no part of the installation for devices.
    require("yaml", "export")
    require("pydantic", "export")
    from ppexport.profile.lab import read_lab

    lab = read_lab(devices)
    if clean:
        cleaned = clean_lab(lab, run)
        emit_json(json, {"done": cleaned})
        for name, lines in cleaned.items():
            console.print(f"{name}: {'; '.join(lines) or 'nothing to remove'}")
        return
    outcomes = measure_lab(lab, run)
    show_lab(outcomes, console)
    emit_json(json, lab_json(outcomes))
    raise typer.Exit(exit_code(outcomes))


def show_layers(found: list[dict[str, Any]], console: Console) -> None:
    """Print time by branch of every runtime."""
    from ppexport.profile.by_layer import branches, why_sum_differs

    rows = [
        [b, *(f"{d['branches'].get(b, 0):.2f} ({100 * d['branches'].get(b, 0) / d['total_ms']:.0f} %)" for d in found)]
        for b in branches()
        if any(b in d["branches"] for d in found)
    ]
    rows.append(["all operations", *(f"{d['total_ms']:.2f}" for d in found)])
    console.print(table("time by branch, ms", ["branch", *(d["subject"]["name"] for d in found)], rows))
    for d in found:
        why = why_sum_differs(d)
        if why is not None:
            console.print(f"{d['subject']['name']}: {why}")


def show_routing(found: list[dict[str, Any]], console: Console) -> None:
    """Print what pure pixels save."""
    for data in found:
        line, name = data["line"], data["subject"]["name"]
        shares = [100 * image["pure_share"] for image in data["images"]]
        if line is None:
            console.print(f"{name}: the pictures' pure shares hardly differ, so no line was drawn")
            continue
        low, middle, high = (100 * line["saving"][part] for part in ("low", "middle", "high"))
        console.print(
            f"{name}: {line['at_zero_ms']['middle']:.1f} ms without pure pixels; a wholly pure picture saves "
            f"{middle:.1f} % (95 %: {low:.1f} to {high:.1f}), from {len(shares)} pictures with {min(shares):.0f} to "
            f"{max(shares):.0f} % pure pixels"
        )


def show_frames(found: list[dict[str, Any]], console: Console) -> None:
    """Print the answer of every runtime, and how often each deadline is met."""
    for data in found:
        console.print(f"{data['subject']['name']}: {data['sentence']}")
        for rate, deadline in data["deadlines"].items():
            console.print(f"  {rate} fps: {100 * deadline['hit_rate']:.1f} % of the frames ready in time")


def _figures(subject: dict[str, Any]) -> dict[str, str]:
    s, memory = subject["summary"], subject["memory"]
    low, high = s["p90_interval_ms"]
    return {
        "p90, ms": f"{s['p90_ms']:.1f}", "95 % interval": f"{low:.1f} to {high:.1f}", "p50, ms": f"{s['p50_ms']:.1f}",
        "p99, ms": f"{s['p99_ms']:.1f}", "p90, ms per output megapixel": f"{s['p90_ms_per_megapixel']:.0f}",
        "queries": str(s["count"]), "loading, ms": f"{subject['load_ms']:.0f}",
        "first run, ms": f"{subject['first_ms']:.0f}",
        "peak memory, MB": "" if memory is None else f"{memory['peak'] / 1e6:.0f}",
    }  # fmt: skip


def show(result: Profile, console: Console) -> None:
    """Print the figures and the marks."""
    machine, figures = result.data["machine"], [_figures(subject) for subject in result.subjects]
    rows = [[name, *values] for name in figures[0] if any(values := [of_one[name] for of_one in figures])]
    console.print(table(machine["cpu"], ["latency", *(subject["name"] for subject in result.subjects)], rows))
    mode = (machine.get("jetson") or {}).get("power_mode")
    if mode is not None:
        console.print(f"power mode {mode['number']}: {mode['name']}")
    for subject in result.subjects:
        name, energy, droop = subject["name"], subject["summary"].get("energy"), subject["summary"]["droop"]
        if energy is not None:
            watts = f"{energy['joules_per_image']:.3f} J per image at {energy['watts']:.2f} W"
            console.print(f"{name}: {watts}, of the whole module")
        if droop is not None:
            first, last = droop["first_minute_ms"], droop["last_minute_ms"]
            console.print(f"{name}: first minute {first:.1f} ms, last minute {last:.1f} ms, ratio {droop['ratio']:.3f}")
    load = result.data["protocol"]["plan"].get("load", 0)
    if load:
        console.print(f"beside {counted(load, 'busy neighbour')}")
    for mark in result.data["marks"]:
        console.print(f"mark: {mark['text']}")
    console.print(f"{result.path}")
