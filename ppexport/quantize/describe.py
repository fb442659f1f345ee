"""A calibration for people: how tokens grow from block to block, and what fp16 must not hold."""

from __future__ import annotations

import re

from ppexport.artifact import Artifact
from ppexport.backends.onnx.model_file import artifact_model
from ppexport.quantize.audit import audit, rounding_db
from ppexport.quantize.calibration import PERCENTILES, Calibration

TOKENS = re.compile(r"^/layers\.(\d+)/residual_group/layers\.(\d+)/output/Add_output_0$")


def audit_rows(artifact: Artifact, calibration: Calibration) -> list[list[str]]:
    """[node, reason] of everything that fp16 is meant for and that the audit keeps in fp32."""
    findings = audit(artifact_model(artifact), calibration)
    return [[f.node, f"{f.tensor} {f.reason}"] for f in findings]


def block_rows(calibration: Calibration) -> list[list[str]]:
    """[block, largest magnitude, 99.99 %, dB] of the tokens behind the last layer of every block."""
    last: dict[int, tuple[int, str]] = {}
    for name in calibration.names:
        if match := TOKENS.match(name):
            block, layer = int(match[1]), int(match[2])
            last[block] = max(last.get(block, (-1, "")), (layer, name))
    column = PERCENTILES.index(0.9999)
    return [
        [
            str(block),
            f"{calibration.largest(name):.4g}",
            f"{calibration.percentiles[calibration.row(name), column]:.4g}",
            f"{rounding_db(calibration, name):.1f}",
        ]
        for block, (_, name) in sorted(last.items())
    ]
