"""Compares a saved package with its twin, in the evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ppexport.backends.coreml.debug import DebugPackage
from ppexport.device.artifact import smallest_capacity
from ppexport.device.picture import psnr
from ppexport.device.runner import way_out
from ppexport.errors import ExportError, present
from ppexport.networks.network import Trace
from ppexport.twin.twin import StaticTwin

LEAST_DB = {"fp32": 90.0, "fp16": 55.0, "w8": 30.0, "w8a8": 25.0}
"""Below this the conversion is wrong; whether a precision is good enough is for `parity` to say."""
PICTURE_DB = 45.0
"""The same for pictures, whose 8 bits are all they can hold."""


def example(size: tuple[int, int]) -> torch.Tensor:
    """A fixed image (1, 3, h, w) of 8 bits with flat and busy parts."""
    h, w = size
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, h, w))
    noise[:, :, : (h + 1) // 2] = np.array([40, 90, 200]).reshape(1, 3, 1, 1)
    return torch.from_numpy(noise.astype(np.float32) / np.float32(255))


def self_check(path: Path, twin: StaticTwin, capacities: Sequence[int], precision: str) -> None:
    """Raise ExportError unless the package at *path* computes the twin's picture.

    A capacity set is checked at full capacity and at the smallest one that holds the example. The twin's categories
    are injected: of many thousand tokens some are near ties, which may fall either way.
    """
    debug, traced = DebugPackage(path), Trace()
    lr = example(twin.size)
    with torch.no_grad():
        expected, impure = twin(lr, trace=traced)
        inputs = {"lr": lr.numpy()}
        if "mask" in {port.name for port in debug.session.evaluator().function.inputs}:
            pure_pass = present(twin.pure_pass, "the Pure-Pass of a network whose mask is an input")
            inputs["mask"] = pure_pass(twin.pad(lr)).float().view(1, 1, *twin.padded).numpy()
    categories = torch.stack([c.reshape(-1) for c in traced.categories]).numpy()
    least = LEAST_DB[precision]
    reference = expected.numpy()
    if debug.session.images:
        least, reference = min(least, PICTURE_DB), reference.clip(0, 1)
    for capacity in sorted({smallest_capacity(capacities, int(impure)), capacities[-1]}):
        if len(capacities) > 1:
            inputs["slots"] = np.zeros((1, capacity), np.int32)
        inside = debug.run(inputs, categories)
        if not np.isfinite(inside.sr).all():
            raise ExportError(
                f"in {precision} the package gives NaN or infinite values: {way_out(precision, 'coreml')}"
            )
        decibel = psnr(reference, inside.sr, 1.0)
        if not decibel >= least or inside.impure_tokens != int(impure):
            raise ExportError(
                f"the converted package differs from the twin ({decibel:.1f} dB with {capacity} slots): "
                "please report this model"
            )
