"""Compares a model file with the twin that it was made from, on one fixed image, before an export is complete.

Whether a precision is good enough is for `parity` to say; what fails here was converted wrongly or is damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppexport.backends.backend import BuildJob, find_backend
from ppexport.device.capacities import smallest_capacity
from ppexport.device.picture import psnr
from ppexport.device.runner import way_out
from ppexport.errors import ExportError, present
from ppexport.networks.network import Trace
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

Compute = Callable[["Arrays", NDArray[np.int64] | None], tuple[NDArray[Any], int]]
"""The picture and impure_tokens that a model file computes from its inputs by name, and from the categories (layers, n)
of the twin, None for a network without routing: of many thousand tokens some are near ties, which may fall either way.
"""


def example(size: tuple[int, int]) -> Tensor:
    """A fixed image (1, 3, h, w) in [0, 1] of 8 bits, with a flat and a busy half."""
    h, w = size
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, h, w))
    noise[:, :, : (h + 1) // 2] = np.array([40, 90, 200]).reshape(1, 3, 1, 1)
    return torch.from_numpy(noise.astype(np.float32) / np.float32(255))


def ramp_example(size: tuple[int, int]) -> Tensor:
    """An even image (1, 3, h, w) in [0, 1]: in noise near ties flip where choices are made in fp16, and cost 40 dB."""
    h, w = size
    ramp = torch.linspace(0, 1, h * w).view(1, 1, h, w)
    return torch.cat([ramp, ramp.flip(2), torch.full_like(ramp, 0.5)], dim=1)


def example_inputs(
    twin: StaticTwin, *, lr: Tensor | None = None, mask: bool = False, slots: int = 0
) -> dict[str, Tensor]:
    """What a model file of *twin* takes, by name.

    Args:
        twin: the twin that the file is made from.
        lr: the image (1, 3, h, w) in [0, 1]; `example` if left out.
        mask: the Pure-Pass mask is an input, (1, 1, H', W') fp32.
        slots: the capacity of a capacity set, whose input `slots` is (1, slots) int32; 0 without that input.

    Raises:
        InputError: the mask is an input of a network that has none.
    """
    inputs = {"lr": example(twin.size) if lr is None else lr}
    if mask:
        pure_pass = present(twin.pure_pass, "the Pure-Pass of a network whose mask is an input")
        inputs["mask"] = pure_pass(twin.pad(inputs["lr"])).float().view(1, 1, *twin.padded)
    if slots:
        inputs["slots"] = torch.zeros(1, slots, dtype=torch.int32)
    return inputs


def check_finite(sr: NDArray[Any], kind: str, precision: str, backend: str) -> None:
    """Raise ExportError, which names the other arguments, where the picture *sr* holds NaN or infinite values."""
    if not np.isfinite(sr).all():
        made_by = find_backend(backend)
        calibrates = "fp16" in made_by.calibrated | made_by.may_calibrate
        why = way_out(precision, calibrates, "fp32" in made_by.precisions)
        raise ExportError(f"in {precision} the {kind} gives NaN or infinite values: {why}")


def self_check(
    compute: Compute,
    twin: StaticTwin,
    job: BuildJob,
    *,
    backend: str,
    kind: str,
    least: float,
    lr: Tensor | None = None,
    clipped: bool = False,
    full: bool = True,
) -> None:
    """Compare what *compute* gives with what *twin* gives.

    Args:
        compute: runs the model file.
        twin: of the largest capacity.
        job: what the file was built for. A capacity set is checked at the smallest capacity that holds the example.
        backend: that the file is for.
        kind: what the file is called in messages, such as "package".
        least: dB that the picture must reach, with a peak of 1.
        lr: the image; `example` if left out.
        clipped: the file clips its picture to [0, 1].
        full: a capacity set is also checked at its largest capacity.

    Raises:
        ExportError: the picture is not finite or too far off, or the number of impure tokens is another.
    """
    trace = Trace()
    with torch.no_grad():
        given = example_inputs(twin, lr=lr, mask=job.mask == "input")
        expected, count = twin(**given, trace=trace)
    inputs: Arrays = {name: value.numpy() for name, value in given.items()}
    reference, impure = expected.clamp(0, 1).numpy() if clipped else expected.numpy(), int(count)
    categories = torch.stack([c.reshape(-1) for c in trace.categories]).long().numpy() if trace.categories else None
    checked = {smallest_capacity(job.capacities, impure)} if job.capacities else {0}
    if full:
        checked.update(job.capacities[-1:])
    for capacity in sorted(checked):
        if len(job.capacities) > 1:
            inputs["slots"] = np.zeros((1, capacity), np.int32)
        sr, found = compute(inputs, categories)
        check_finite(sr, kind, job.precision, backend)
        decibel = psnr(reference, sr.astype(np.float32), 1.0)
        if not decibel >= least or found != impure:
            slots = f" with {capacity} slots" if capacity else ""
            raise ExportError(
                f"the exported {kind} differs from the twin ({decibel:.1f} dB{slots}): please report this model"
            )
