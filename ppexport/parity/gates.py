"""What every pair of a parity run must meet; a model's card may ask for more, never for less."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ppexport.device.artifact import Manifest
from ppexport.errors import InputError

NEAR_TIE = 1e-6
"""Two categories closer than this may fall either way in fp32."""
HALF_TIE = 1e-3
"""The same in fp16, whose roundings reach the similarities through the tokens, where what a choice was made from cannot
be seen (`--against`, without torch); more where the saved run has measured more. Measured on all inputs: of the flips
that no earlier flip explains, the surest led by 2.1e-4 for the bundled x2 at 32x32, by 1.5e-3 for x4 at 64x64."""
TIE_MARGIN = 2.0
"""Another machine rounds by as much, but not the same numbers: how much surer its surest flip may be than that of the
saved run."""

FLIP_MARGIN = 6.0
"""In dB, twice the error: how much further off than in the saved run, where its flips were examined and passed, a
input may be that flips otherwise on another machine. Measured for the bundled x4 in fp16 at 64x64, on the same
photographs in two ways of rounding: from 3.7 dB less to 2.4 dB more."""


@dataclass(frozen=True)
class Gate:
    """What a pair of columns must meet on every input."""

    psnr: float
    """Least PSNR between the outputs, in dB, peak 1."""
    max_abs: float = math.inf
    """Largest absolute error."""
    task_change: float = math.inf
    """Largest change of the mean PSNR-Y against ground truth, in dB: as it runs, and with the same routing."""
    near_tie: float = NEAR_TIE
    """Two categories closer than this may fall either way."""

    @property
    def flips_count(self) -> bool:
        """Whether any flip is allowed; PSNR-Y is then judged with them, not with the reference's categories."""
        return math.isinf(self.near_tie)


def with_measured_tie(gate: Gate, surest: float) -> Gate:
    """*gate* of half precision where nothing tells what a choice was made from; others are returned as they are.

    A run that could see that has shown that the flip of which the twin was *surest* is a rounding. So are flips up to
    `TIE_MARGIN` times as sure here.
    """
    if gate.near_tie <= NEAR_TIE or gate.flips_count:
        return gate
    return replace(gate, near_tie=max(gate.near_tie, TIE_MARGIN * surest))


TWIN = "twin"
"""What a card calls the gate between network and twin."""
TWIN_GATE = Gate(psnr=110.0, max_abs=2e-5)
INT8_GATE = Gate(psnr=0.0, task_change=0.10, near_tie=math.inf)
"""Of int8 only the picture's quality is judged, flips and all: how far it is from fp32, and how many tokens chose
another category, is reported."""
ARTIFACT_GATES = {
    "fp32": Gate(psnr=90.0, task_change=0.001),
    "fp16": Gate(psnr=55.0, task_change=0.02, near_tie=HALF_TIE),
    # Weights of 8 bits are judged by the task; below 30 dB they are not these weights.
    "w8": Gate(psnr=30.0, task_change=0.10, near_tie=HALF_TIE),
    "w8a8": INT8_GATE,
    "int8": INT8_GATE,
    "mixed": INT8_GATE,
}


def tighten(gate: Gate, asked: Mapping[str, Any], what: str) -> Gate:
    """*gate* with the limits *asked* for instead, {"psnr", "max_abs", "task_change": number}.

    Raises InputError for a limit that is looser than the gate's, or is not a valid limit; *what* names it.
    """
    for name, value in asked.items():
        if (
            name not in ("psnr", "max_abs", "task_change")
            or isinstance(value, bool)
            or not isinstance(value, (int, float))
        ):
            raise InputError(
                f"{what}: {name}: {value!r} is not a valid limit; a gate has psnr, max_abs and task_change"
            )
        least = getattr(gate, name)
        # Written so that NaN is refused.
        if not (value >= least if name == "psnr" else value <= least):
            raise InputError(
                f"{what}: {name} {value:g} asks for less than ppexport's own gate, {least:g}: a card may only tighten "
                "a gate, leave it out"
            )
    return replace(gate, **{name: float(value) for name, value in asked.items()})


def twin_gate(manifest: Manifest) -> Gate:
    """The gate between network and twin of the model of *manifest*. Raises InputError."""
    return tighten(TWIN_GATE, manifest.gates.get(TWIN, {}), f"the gate {TWIN!r} of {manifest.name}")


def artifact_gate(manifest: Manifest) -> Gate:
    """The gate of an artefact's precision. Raises InputError."""
    precision = manifest.precision
    if precision not in ARTIFACT_GATES:
        raise InputError(f"no parity gate is known for precision {precision!r}")
    asked = manifest.gates.get(precision, {})
    return tighten(ARTIFACT_GATES[precision], asked, f"the gate {precision!r} of {manifest.name}")


def check_gates(manifest: Manifest) -> tuple[Gate, Gate]:
    """The gates between network and twin, and between twin and artefact. Raises InputError where one is loosened."""
    return twin_gate(manifest), artifact_gate(manifest)
