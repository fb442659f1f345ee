"""`ppexport parity`: network against twin against artefact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.commands.options import ArtifactFolder, Checkpoint, Json, Trust
from ppexport.console import continues_from, decibel, emit_json, people, progress_bars, table
from ppexport.errors import EXIT_GATE_FAILED, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ppexport.parity.compare import Pair
    from ppexport.parity.run import ParityReport

EXAMPLE = "Example: ppexport parity x2_64 -o x2_64-parity"


def _pair_table(pair: Pair) -> Any:
    rows = []
    for row in pair.rows:
        flips = "not measured" if row.flips is None else str(sum(row.flips))
        task = f"{row.task[1] - row.task[0]:+.4f}" if row.task else ""
        verdict = ("pass" if row.passed else "FAIL") + (f": {row.reason}" if row.reason else "")
        slots = "" if row.capacity is None else str(row.capacity)
        rows.append([row.name, verdict, slots, decibel(row.errors.psnr), f"{row.errors.max_abs:.1e}", flips, task])
    gate = f"gate {pair.gate.psnr:g} dB"
    columns = ["input", "verdict", "slots", "PSNR dB", "max error", "flips", "PSNR-Y change"]
    return table(f"{pair.reference} against {pair.other} ({gate})", columns, rows, numbers=2)


def _units(text: str | None, against: Path | None) -> list[str]:
    """The compute units to try. Raises InputError, and UnavailableError where this is no Mac."""
    if text is None:
        return []
    from ppexport.backends.coreml.device import check_platform
    from ppexport.parity.units import parse_units

    if against is not None:
        raise InputError("--units runs with the twin, not against a saved run")
    chosen = parse_units(text)
    check_platform()
    return chosen


def parity(
    artifact: ArtifactFolder,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="folder of the run; ARTIFACT-parity if left out")
    ] = None,
    checkpoint: Checkpoint = None,
    against: Annotated[Path | None, typer.Option(help="compare with this saved run instead; needs no torch")] = None,
    units: Annotated[
        str | None, typer.Option(help="on a Mac: compute units that a Core ML package is also run on: cpu,gpu,ne,all")
    ] = None,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """Prove that network, static twin and artefact compute the same picture.

    A Core AI asset takes minutes for a picture on Linux: a run that was ended goes on with the same command.
    """
    from ppexport.opening import open_artifact
    from ppexport.parity.run import run_against, run_parity

    if against is not None and (out is not None or checkpoint is not None):
        raise InputError(
            "--against compares with a saved run and writes into its folder: leave --out and --checkpoint out"
        )
    chosen = _units(units, against)
    runner = open_artifact(artifact, trust=trust)
    if chosen and runner.artifact.manifest.backend != "coreml":
        raise InputError("--units is for Core ML packages")
    with progress_bars() as progress:
        if against is not None:
            report = run_against(runner, against, progress)
        else:
            from ppexport.parity.kept import UNFINISHED
            from ppexport.parity.reference import reference_network

            folder = out or artifact.resolve().with_name(artifact.resolve().name + "-parity")
            network = reference_network(runner.artifact, checkpoint)
            # Kept for assets alone, which take minutes for a picture.
            with continues_from(folder / UNFINISHED):
                report = run_parity(network, runner, folder, progress, chosen)
    emit_json(json, report.to_dict())
    show(report, people(json))
    if not report.passed:
        raise typer.Exit(EXIT_GATE_FAILED)


def show(report: ParityReport, console: Console) -> None:
    """Print the tables and the verdict of a run."""
    for pair in report.pairs:
        console.print(_pair_table(pair))
        if pair.agreement is not None and min(pair.agreement) < 1:
            shares = " ".join(f"{100 * share:.1f}" for share in pair.agreement)
            console.print(f"equal categories of impure tokens as it runs, per layer, in %: {shares}")
        if pair.task_change is not None:
            similar = "" if pair.ssim_change is None else f", SSIM-Y by {pair.ssim_change:+.6f}"
            over = "" if pair.task_ok else f": more than {pair.gate.task_change:g} dB"
            console.print(
                f"PSNR-Y against ground truth changes by {pair.task_change:+.4f} dB on average{similar}{over}"
            )
        if not pair.passed:
            layer = pair.first_bad_layer or "not measured"
            console.print(f"worst input: {pair.worst.name}{pair.place}; first bad layer: {layer}")
    for unit, plan in report.units.items():
        told = plan.get("failed") or plan.get("unknown")
        placed = ", ".join(f"{count} on {device}" for device, count in plan.get("operations", {}).items())
        crossings = plan.get("crossings", "unknown")
        console.print(f"compute unit {unit}: {told or f'{placed}; crossings: {crossings}'}")
    if report.over_capacity:
        console.print(
            f"more impure tokens than slots, not compared with the network: {', '.join(report.over_capacity)}"
        )
    if report.host_mask_differs:
        console.print(f"the NumPy mask differs on: {', '.join(report.host_mask_differs)}")
    console.print(f"{'pass' if report.passed else 'FAIL'}: {report.file}, {report.error_map}")
