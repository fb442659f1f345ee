"""`ppexport parity`: network against twin against artifact."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.cli.browser import PLACE, Adb, Connection, Headless, Lan, LanAddress, opened_in_browser
from ppexport.cli.console import continues_from, decibel, emit_json, people, progress_bars, table
from ppexport.cli.options import ArtifactFolder, Checkpoint, Json, Trust
from ppexport.errors import EXIT_GATE_FAILED, InputError, UnavailableError, change, how_to_install

if TYPE_CHECKING:
    from rich.console import Console

    from ppexport.parity.pair import Pair
    from ppexport.parity.run import ParityReport

EXAMPLE = "Example: ppexport parity x2_64 -o x2_64-parity"


def _pair_table(pair: Pair) -> Any:
    rows = []
    for row in pair.rows:
        flips = "–" if row.flips is None else str(sum(row.flips))
        task = change(row.task[1] - row.task[0], 4) if row.task else ""
        verdict = "pass" if row.passed else "FAIL"
        slots = "" if row.capacity is None else str(row.capacity)
        rows.append([row.name, verdict, slots, decibel(row.errors.psnr), f"{row.errors.max_abs:.1e}", flips, task])
    title = f"{pair.reference} against {pair.other} as it runs (gate {pair.gate.psnr:g} dB)"
    # Narrow enough for 80 columns: longer headings would break the names of the inputs.
    columns = ["input", "verdict", "slots", "PSNR dB", "max\nerror", "flips", "PSNR-Y\nchange"]
    return table(title, columns, rows, numbers=2)


def parity(
    artifact: ArtifactFolder,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="folder that keeps the run; ARTIFACT-parity if left out")
    ] = None,
    checkpoint: Checkpoint = None,
    against: Annotated[
        Path | None, typer.Option(help="compare with the twin in this saved run of the same model; needs no torch")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            help="also run the artifact on these compute units of this machine: cpu,gpu,ne,all of a Mac for a Core ML "
            "package, gpu for a LiteRT file"
        ),
    ] = None,
    on: Annotated[
        str, typer.Option(help="local, or browser for a page: in the browser that opens its address")
    ] = "local",
    lan: Lan = False,
    lan_address: LanAddress = None,
    adb: Adb = None,
    headless: Headless = False,
    runtime: Annotated[
        str | None, typer.Option(help="with --on browser: browser:webgpu computes on the GPU; the CPU if left out")
    ] = None,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """Prove that network, static twin and artifact compute the same picture.

    The exit code is 1 if a gate fails. A Core AI asset takes minutes for a picture on Linux: after an interruption the
    same command continues where the run stopped. A page is run in a browser of this machine without a window, or with
    --on browser in any.
    """
    from ppexport.backends.backend import find_backend, open_artifact
    from ppexport.parity.against import run_against
    from ppexport.parity.run import UNFINISHED, run_parity

    if against is not None and (out is not None or checkpoint is not None):
        raise InputError(
            "--against compares with a saved run and writes into its folder: leave --out and --checkpoint out"
        )
    if against is not None and units is not None:
        raise InputError("--units needs the twin, not a saved run: leave --against out")
    way = Connection(lan, lan_address, adb, headless)
    if on not in ("local", PLACE):
        raise InputError(f"parity runs --on local or --on {PLACE}, not on {on!r}: see --against for other machines")
    if on == "local" and (way or runtime):
        raise InputError(f"--lan, --adb, --headless and --runtime are for --on {PLACE}")
    opened = open_artifact(artifact, trust=trust) if on == "local" else opened_in_browser(artifact, runtime, way)
    with opened as runner, progress_bars() as progress:
        if against is not None:
            report = run_against(runner, against, progress)
        else:
            backend, names = find_backend(runner.artifact.manifest.backend), dict.fromkeys((units or "").split(","))
            runs = {} if units is None else backend.unit_runs(runner, list(names))
            if find_spec("torch") is None:
                raise UnavailableError(
                    f"torch is not installed, and the network and its twin need it: {how_to_install('export')}; or "
                    "compare with a run that was saved on a machine with torch: ppexport parity ARTIFACT --against RUN"
                )
            from ppexport.parity.references import reference_network

            folder = out or artifact.resolve().with_name(artifact.resolve().name + "-parity")
            network = reference_network(runner.artifact, checkpoint)
            # Only a slow artifact, which takes minutes for a picture, leaves anything there.
            with continues_from(folder / UNFINISHED):
                report = run_parity(network, runner, folder, progress, runs)
    emit_json(json, report.to_dict())
    show(report, people(json))
    if not report.passed:
        raise typer.Exit(EXIT_GATE_FAILED)


def _print_quality(pair: Pair, console: Console) -> None:
    """Print how PSNR-Y and SSIM-Y change, as it runs and with the same routing."""
    for kind, how in (("", "as it runs"), ("_same_routing", "with the same routing")):
        psnr, ssim = pair.mean_change(f"task{kind}"), pair.mean_change(f"task_ssim{kind}")
        if psnr is None:
            continue
        similar = "" if ssim is None else f", SSIM-Y by {change(ssim, 6)}"
        over = f": more than {pair.gate.task_change:g} dB" if f"task{kind}" in pair.failed_tasks else ""
        console.print(f"PSNR-Y against ground truth changes by {change(psnr, 4)} dB on average {how}{similar}{over}")


def show(report: ParityReport, console: Console) -> None:
    """Print the tables and the verdict of a run."""
    for pair in report.pairs:
        console.print(_pair_table(pair))
        # Below the table: inside it a narrow terminal would break a reason into syllables.
        for row in pair.rows:
            if row.reason:
                console.print(f"{row.name}: {'pass' if row.passed else 'FAIL'}, {row.reason}")
        if report.routes and any(row.flips is None for row in pair.rows):
            console.print(f"flips were not measured: {pair.other} does not tell its categories")
        if pair.agreement is not None and min(pair.agreement) < 1:
            shares = " ".join(f"{100 * share:.1f}" for share in pair.agreement)
            console.print(f"equal categories of impure tokens as it runs, per layer, in %: {shares}")
        _print_quality(pair, console)
        if not pair.passed:
            worst, layer = pair.worst, pair.first_bad_layer or "not measured"
            at = worst.errors.at
            place = "" if at is None else f", most at row {at[0]}, column {at[1]} of the result"
            console.print(f"worst input: {worst.name}{place}; first bad layer: {layer}")
    for unit, plan in report.units.items():
        reason = plan.get("failed") or plan.get("unknown")
        placed = ", ".join(f"{count} on {device}" for device, count in plan.get("operations", {}).items())
        crossings = plan.get("crossings", "unknown")
        console.print(f"compute unit {unit}: {reason or f'{placed}; crossings: {crossings}'}")
    if report.over_capacity:
        console.print(
            f"more impure tokens than slots, not compared with the network: {', '.join(report.over_capacity)}"
        )
    if report.left_out:
        console.print(
            "between the levels of 8 bits, which fp16 does not tell apart where the mask is computed, not compared: "
            + ", ".join(report.left_out)
        )
    if report.host_mask_differs:
        console.print(f"the NumPy mask differs on: {', '.join(report.host_mask_differs)}")
    console.print(f"{'pass' if report.passed else 'FAIL'}: {report.file}, {report.error_map}")
