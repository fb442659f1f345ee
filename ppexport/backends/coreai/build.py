"""Twin -> model.aimodel for iOS 27 and macOS 27, described, and compared with the twin in Apple's own runtime.

One function `main` for one capacity; a capacity set has a function per capacity over the same weights:

    capacity_1024, capacity_2048, capacity_3072, capacity_4096
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppexport.artifact import smallest_capacity
from ppexport.backends.apple import check_coreai
from ppexport.backends.base import way_out
from ppexport.backends.coreai.frontend import Front, OpenFront, convert
from ppexport.backends.coreai.halved import halved
from ppexport.backends.coreai.session import Session
from ppexport.backends.describing import function_name, model_facts
from ppexport.cards import Card
from ppexport.errors import ExportError, first_line, present
from ppexport.metrics import psnr
from ppexport.networks.atd import Trace
from ppexport.twin.build import StaticTwin, make_twin

MODEL = "model.aimodel"
AUTHOR = "ppexport"
LEAST_DB = {"fp32": 90.0, "fp16": 30.0}
"""Below this the conversion is wrong. Categories cannot be injected into an asset, and in fp16 near ties flip, hence
the second figure; whether a precision is good enough is for `parity` to say."""

Step = Callable[[str], None]
"""Told the name of every stage, for a progress display."""


def fronts(twin: StaticTwin, capacities: Sequence[int], precision: str, kind: type[Front]) -> dict[str, Front]:
    """{function name: what it computes}, in *precision*."""
    network, found = twin.__dict__["network"], {}
    for capacity in capacities:
        fitting = twin if capacity == twin.capacity else make_twin(network, twin.size, capacity)
        found[function_name(capacity, capacities)] = kind(halved(fitting) if precision == "fp16" else fitting)
    return found


def save(program: Any, target: Path, card: Card, facts: dict[str, str]) -> None:
    """Write *program* to *target* with its description. Raises ExportError."""
    from coreai.runtime import AIModelAssetMetadata

    metadata = AIModelAssetMetadata()
    metadata.author, metadata.license = AUTHOR, card.licence
    metadata.model_description = (
        f"{card.name}: super-resolution x{facts['ppexport.scale']} of {facts['ppexport.size']} images, "
        f"{facts['ppexport.precision']}. Input lr: float32 (1, 3, h, w) in [0, 1]. Outputs sr: float32, not clipped; "
        "impure_tokens: above the function's capacity, the picture is not the network's."
    )
    for key, value in facts.items():
        metadata.set_custom(key, value)
    try:
        program.save_asset(target, metadata)
    except (RuntimeError, ValueError, OSError) as error:
        raise ExportError(f"the asset cannot be written: {first_line(error)}") from error


def facts_of(twin: StaticTwin, card: Card, capacities: Sequence[int], precision: str) -> dict[str, str]:
    """This project's metadata of an asset."""
    return {**model_facts(twin, card, capacities), "ppexport.precision": precision}


def self_check(path: Path, twin: StaticTwin, capacities: Sequence[int], precision: str, mask: bool) -> None:
    """Raise ExportError unless the asset at *path* computes the twin's picture of a photograph-like example."""
    h, w = twin.size
    ramp = torch.linspace(0, 1, h * w).view(1, 1, h, w)
    lr = torch.cat([ramp, ramp.flip(2), torch.full_like(ramp, 0.5)], dim=1)
    trace = Trace()
    with torch.no_grad():
        expected, impure = twin(lr, trace=trace)
        inputs: dict[str, Any] = {"lr": lr.numpy()}
        if mask:
            pure_pass = present(twin.pure_pass, "the Pure-Pass of a network whose mask is an input")
            inputs["mask"] = pure_pass(twin.pad(lr)).float().view(1, 1, *twin.padded).numpy()
    if len(capacities) > 1:
        inputs["slots"] = np.zeros((1, smallest_capacity(capacities, int(impure))), np.int32)
    session = Session(path)
    try:
        found = session.run(inputs)
    finally:
        session.close()
    if not np.isfinite(found["sr"]).all():
        raise ExportError(f"in {precision} the asset gives NaN or infinite values: {way_out(precision, 'coreai')}")
    decibel = psnr(expected.numpy(), found["sr"].astype(np.float32), 1.0)
    if not decibel >= LEAST_DB[precision] or int(found["impure_tokens"].reshape(-1)[0]) != int(impure):
        raise ExportError(f"the converted asset differs from the twin ({decibel:.1f} dB): please report this model")


def build_for_coreai(
    twin: StaticTwin,
    card: Card,
    folder: Path,
    capacities: Sequence[int],
    mask: str,
    step: Step,
    precision: str = "fp32",
) -> str:
    """Write `model.aimodel` into *folder* and return its name.

    *twin* is of the portable flavour and of the largest of the ascending *capacities*; *mask* "input" adds the input
    `mask`. Raises InputError for an unknown precision, ExportError where a stage or the comparison with the twin
    fails, UnavailableError without coreai-torch.
    """
    check_coreai(precision)
    if twin.flavour != "portable" or twin.capacity != capacities[-1]:
        raise ExportError(f"Core AI takes the portable flavour with {capacities[-1]} slots")
    step("converting")
    program = convert(fronts(twin, capacities, precision, Front), mask == "input")
    save(program, folder / MODEL, card, facts_of(twin, card, capacities, precision))
    step("comparing with the twin, in Apple's runtime")
    self_check(folder / MODEL, twin, capacities, precision, mask == "input")
    return MODEL


def build_for_looking(
    twin: StaticTwin, card: Card, target: Path, capacities: Sequence[int], mask: str, precision: str
) -> None:
    """Write to *target* an asset of the same program that also gives what its layers chose, and from what."""
    program = convert(fronts(twin, capacities, precision, OpenFront), mask == "input")
    save(program, target, card, facts_of(twin, card, capacities, precision))
