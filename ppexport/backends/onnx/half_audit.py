"""Which nodes that could be fp16 must not: calibration says what exceeds its range or loses its precision there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from ppexport.backends.onnx.tensors import sources_of
from ppexport.backends.tensorrt.half import LARGEST, computes_half, split_sum
from ppexport.networks.architecture import Architecture
from ppexport.quantize.calibration import Calibration

MARGIN = 8.0
"""What other pictures may exceed the calibrated ones by."""
LEAST_DB = 60.0
"""Least ratio of a tensor's power to that of its rounding error. fp16 keeps 73 to 76 dB of normal numbers."""


@dataclass(frozen=True)
class Finding:
    """A node that stays fp32, and why."""

    node: str
    tensor: str
    reason: str


def rounding_db(calibration: Calibration, name: str) -> float:
    """Power of tensor *name* over that of its rounding to fp16, in dB; infinite where nothing is rounded."""
    power, error = calibration.figure(name, "power"), calibration.figure(name, "half_error")
    return 10 * math.log10(power / error) if error and power else math.inf


def judge(calibration: Calibration, name: str) -> str | None:
    """Why tensor *name* cannot be fp16, None where it can."""
    largest = calibration.largest(name)
    if largest * MARGIN > LARGEST:
        return f"reaches {largest:.4g}, fp16 ends at {LARGEST:g}"
    decibel = rounding_db(calibration, name)
    if decibel < LEAST_DB:
        return f"keeps {decibel:.1f} dB in fp16: too many of its numbers are below 6e-5"
    return None


def audit(model: onnx.ModelProto, calibration: Calibration, architecture: Architecture) -> list[Finding]:
    """The nodes of *model* that fp16 is meant for and that *calibration* forbids, named as `write_half` names them.

    A tensor that was not recorded, such as a stored weight, is judged by nobody: `write_half` refuses weights that
    exceed fp16. Raises nothing.
    """
    recorded = set(calibration.names)
    split = onnx.ModelProto()
    split.CopyFrom(model)
    split_sum(split, architecture)
    candidates = [node for node in split.graph.node if computes_half(node, architecture)]
    sources = sources_of(split, {name for node in candidates for name in (*node.input, *node.output) if name})
    findings = []
    for node in candidates:
        parts = dict.fromkeys(s for name in (*node.input, *node.output) for s in sources.get(name, ()) if s in recorded)
        forbidden = ((source, judge(calibration, source)) for source in parts)
        findings += [Finding(node.name, source, reason) for source, reason in forbidden if reason][:1]
    return findings
