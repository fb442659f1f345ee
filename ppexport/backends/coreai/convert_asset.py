"""A twin of which the modules that `coreml.precision` names compute in half precision.

Before                                        After
    y = module(x)                                 y = float(half module(half(x)))

Weights of these modules are stored in fp16. Everything else, the sum through all layers included, stays fp32, as in a
Core ML package; whole numbers stay what they are.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppexport.backends.coreai.asset import Session
from ppexport.backends.coreml.apple import check_coreai
from ppexport.backends.coreml.precision import HALF
from ppexport.device.artifact import function_name, model_facts, smallest_capacity
from ppexport.device.picture import psnr
from ppexport.device.runner import way_out
from ppexport.errors import ExportError, first_line, present, require
from ppexport.networks.card import Card
from ppexport.networks.network import Trace
from ppexport.twin.twin import StaticTwin, layer_inputs, make_twin


def narrowed(value: Any) -> Any:
    """*value* in half precision, if it is a tensor of fp32."""
    return value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


class Halved(nn.Module):
    """A module that computes in fp16 between fp32 inputs and outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, *given: Any) -> Tensor:
        """What the module gives, computed in fp16."""
        out: Tensor = self.module(*map(narrowed, given)).float()
        return out


def halved(twin: StaticTwin) -> StaticTwin:
    """A copy of *twin* in half precision; the outermost of nested modules is taken."""
    network = twin.network
    copied = copy.deepcopy(twin)
    copied.__dict__["network"] = network
    chosen = [name for name, _ in copied.named_modules() if HALF.fullmatch(name)]
    for name in chosen:
        if not any(name.startswith(f"{other}.") for other in chosen):
            parent, _, own = name.rpartition(".")
            setattr(copied.get_submodule(parent), own, Halved(copied.get_submodule(name)))
    return copied


# PyTorch twin -> Core AI program, by `coreai-torch`.


EXTRA = "coreai"


class Front(nn.Module):
    """A twin whose inputs are positional: `lr`, and `mask` where it has one."""

    outputs: tuple[str, ...] = ("sr", "impure_tokens")

    def __init__(self, twin: StaticTwin) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, lr: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the twin gives."""
        out: tuple[Tensor, ...] = self.twin(lr, mask)
        return out


class OpenFront(Front):
    """The same, and what every layer chose and chose from, for looking into."""

    def __init__(self, twin: StaticTwin) -> None:
        super().__init__(twin)
        inside = ("categories", "tokens", "dictionaries")
        self.outputs = (*Front.outputs, *inside, *(() if twin.pure_pass is None else ("pure", "labels")))

    def forward(self, lr: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Also categories (layers, n), the layers' input tokens (layers, n, c) and dictionaries (layers, t, c).

        With Pure-Pass also the mask (n,) and the labels (n,) that it comes from.
        """
        trace = Trace()
        with layer_inputs(self.twin) as found:
            sr, impure = self.twin(lr, mask, trace=trace)
        tokens, dictionaries = ([given[i] for given in found] for i in (0, 1))
        inside = (torch.stack(trace.categories), torch.stack(tokens), torch.stack(dictionaries))
        if self.twin.pure_pass is None:
            return sr, impure, *inside
        padded = self.twin.pad(lr)
        pure, labels = self.twin.pure_pass(padded), self.twin.pure_pass.labels(padded)
        return sr, impure, *inside, pure.to(torch.int32), labels.to(torch.int32).reshape(-1)


def example_inputs(twin: StaticTwin, mask: bool) -> tuple[Tensor, ...]:
    """Arguments of `Front` for tracing."""
    lr = torch.zeros(1, 3, *twin.size)
    return (lr, torch.zeros(1, 1, *twin.padded)) if mask else (lr,)


def convert(fronts: Mapping[str, Front], mask: bool) -> Any:
    """One program with a function for each of *fronts*, by name. Raises ExportError, or UnavailableError."""
    require("coreai_torch", EXTRA)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            from coreai_torch import TorchConverter, get_decomp_table

            converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
            for name, front in fronts.items():
                with torch.no_grad():
                    program = torch.export.export(front.eval(), example_inputs(front.twin, mask))
                    program = program.run_decompositions(get_decomp_table())
                converter.add_exported_program(
                    program,
                    input_names=["lr", "mask"] if mask else ["lr"],
                    output_names=list(front.outputs),
                    entrypoint_name=name,
                )
            return converter.to_coreai()
    except (ValueError, TypeError, NotImplementedError, RuntimeError, KeyError, AssertionError) as error:
        raise ExportError(f"coreai-torch cannot convert the twin: {first_line(error)}") from error


# Twin -> model.aimodel for iOS 27 and macOS 27, described, and compared with the twin in Apple's own runtime.
#
# One function `main` for one capacity; a capacity set has a function per capacity over the same weights:
#
#     capacity_1024, capacity_2048, capacity_3072, capacity_4096


MODEL = "model.aimodel"
AUTHOR = "ppexport"
LEAST_DB = {"fp32": 90.0, "fp16": 30.0}
"""Below this the conversion is wrong. Categories cannot be injected into an asset, and in fp16 near ties flip, hence
the second figure; whether a precision is good enough is for `parity` to say."""

Step = Callable[[str], None]
"""Told the name of every stage, for a progress display."""


def fronts(twin: StaticTwin, capacities: Sequence[int], precision: str, kind: type[Front]) -> dict[str, Front]:
    """{function name: what it computes}, in *precision*."""
    network, found = twin.network, {}
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
