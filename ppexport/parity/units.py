"""Compares a Core ML package with the twin on every compute unit of a Mac."""

from __future__ import annotations

from collections.abc import Sequence

from ppexport.backends.coreml.run_mac import UNITS
from ppexport.backends.coreml.trial import CHILD, TrialError
from ppexport.device.runner import Runner
from ppexport.errors import InputError
from ppexport.parity.columns import Column
from ppexport.parity.gates import artifact_gate
from ppexport.parity.inputs import ParityInput
from ppexport.parity.run import ParityReport, compare_with_engine
from ppexport.parity.unit_column import unit_column


def parse_units(text: str) -> list[str]:
    """ "cpu,gpu" -> units in that order. Raises InputError."""
    units = list(dict.fromkeys(text.split(",")))
    unknown = [unit for unit in units if unit not in UNITS]
    if unknown:
        raise InputError(f"compute units are {', '.join(UNITS)}, not {unknown[0]!r}")
    return units


def run_units(
    report: ParityReport,
    runner: Runner,
    units: Sequence[str],
    inputs: list[ParityInput],
    reference: Column,
    command: Sequence[str] = CHILD,
) -> dict[str, Column]:
    """Add a pair to *report* for every unit, and return the columns. A trial that fails fails the run, not the rest."""
    columns: dict[str, Column] = {}
    artifact = runner.artifact
    for unit in units:
        try:
            name, column, plan = unit_column(runner, unit, inputs, command)
        except TrialError as error:
            report.units[unit] = {"failed": str(error)}
            continue
        report.units[unit] = plan
        columns[name] = column
        pair = compare_with_engine(
            ("twin", name), inputs, reference, column, artifact_gate(artifact.manifest), artifact.scale
        )
        report.pairs.append(pair)
    return columns
