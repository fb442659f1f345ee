"""What every pair of a parity run must meet; a model's card may ask for more, never for less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ppexport.backends.backend import NEAR_TIE, Gate, find_backend
from ppexport.device.artifact import Manifest
from ppexport.errors import InputError

TIE_MARGIN = 2.0
"""Another machine rounds by as much, but not the same numbers: how much surer its surest flip may be than that of the
saved run."""
FLIP_MARGIN = 6.0
"""In dB, twice the error: how much further off than in the saved run, where its flips were examined and passed, an
input may be that flips otherwise on another machine. Measured for the bundled x4 in fp16 at 64x64, on the same
photographs in two ways of rounding: from 3.7 dB less to 2.4 dB more."""
TWIN = "twin"
"""What a card calls the gate between network and twin."""
TWIN_GATE = Gate(psnr=110.0, max_abs=2e-5)


def with_measured_tie(gate: Gate, surest: float) -> Gate:
    """*gate* of half precision where nothing tells what a choice was made from; others are returned as they are.

    A run that could see that has shown that the flip of which the twin was *surest* is a rounding. So are flips up to
    `TIE_MARGIN` times as sure here.
    """
    if gate.near_tie <= NEAR_TIE or gate.flips_count:
        return gate
    return replace(gate, near_tie=max(gate.near_tie, TIE_MARGIN * surest))


def tighten(gate: Gate, asked: Mapping[str, Any], what: str) -> Gate:
    """*gate* with the limits *asked* for instead, {"psnr", "max_abs", "task_change": number}.

    Raises InputError for a limit that is looser than the gate's, or is not a valid limit; *what* names it.
    """
    for name, value in asked.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name not in ("psnr", "max_abs", "task_change") or not number:
            raise InputError(
                f"{what}: {name}: {value!r} is not a valid limit; a gate has psnr, max_abs and task_change"
            )
        own = getattr(gate, name)
        # Written so that NaN is refused.
        if not (value >= own if name == "psnr" else value <= own):
            raise InputError(
                f"{what}: {name} {value:g} asks for less than ppexport's own gate, {own:g}: a card may only tighten "
                "a gate, leave it out"
            )
    return replace(gate, **{name: float(value) for name, value in asked.items()})


def twin_gate(manifest: Manifest) -> Gate:
    """The gate between network and twin of the model of *manifest*. Raises InputError where its card loosens it."""
    return tighten(TWIN_GATE, manifest.gates.get(TWIN, {}), f"the gate {TWIN!r} of {manifest.name}")


def artifact_gate(manifest: Manifest) -> Gate:
    """The gate between twin and artifact, of the artifact's precision. Raises InputError where its card loosens it."""
    precision = manifest.precision
    gates = find_backend(manifest.backend).precisions
    if precision not in gates:
        raise InputError(f"no parity gate is known for precision {precision!r}")
    asked = manifest.gates.get(precision, {})
    return tighten(gates[precision], asked, f"the gate {precision!r} of {manifest.name}")


def check_gates(manifest: Manifest) -> tuple[Gate, Gate]:
    """The gates between network and twin, and between twin and artifact. Raises InputError where one is loosened."""
    return twin_gate(manifest), artifact_gate(manifest)
