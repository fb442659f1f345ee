"""Twin -> model.aimodel for iOS 27 and macOS 27, by `coreai-torch`: described, and compared with the twin.

One function `main` for one capacity; a capacity set has a function per capacity over the same weights:

    capacity_1024, capacity_2048, capacity_3072, capacity_4096

In fp16 the modules that `coreml.precision` names compute in half precision, and their weights are stored in it:

    before    y = module(x)
    after     y = float(half module(half(x)))

Everything else, the sum through all layers included, stays fp32, as in a Core ML package; whole numbers stay what they
are.
"""

from __future__ import annotations

import copy
import io
import warnings
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ppexport.backends.backend import BuildJob, model_facts
from ppexport.backends.coreai.asset import Session
from ppexport.backends.coreml.precision import computes_half
from ppexport.backends.open_front import Front
from ppexport.backends.self_check import example_inputs, ramp_example, self_check
from ppexport.device.artifact import Manifest
from ppexport.device.capacities import function_name
from ppexport.errors import ExportError, first_line, require
from ppexport.networks.card import Card
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

MODEL = "model.aimodel"
LEAST_DB = {"fp32": 90.0, "fp16": 30.0}
"""Below this the conversion is wrong. Categories cannot be injected into an asset, and in fp16 near ties flip, hence
the second figure."""


class Halved(nn.Module):
    """A module that computes in fp16 between fp32 inputs and outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, *given: Any) -> Tensor:
        """What the module gives, computed in fp16."""
        narrowed = [x.half() if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in given]
        out: Tensor = self.module(*narrowed).float()
        return out


def halved(twin: StaticTwin) -> StaticTwin:
    """A copy of *twin* in half precision; the outermost of nested modules is taken."""
    # The network that it was made from is not copied.
    copied = copy.deepcopy(twin, {id(twin.source): twin.source})
    half = computes_half(twin)
    chosen = [name for name, _ in copied.named_modules() if half(name)]
    for name in chosen:
        if not any(name.startswith(f"{other}.") for other in chosen):
            parent, _, own = name.rpartition(".")
            setattr(copied.get_submodule(parent), own, Halved(copied.get_submodule(name)))
    return copied


def write_asset(
    target: Path, twin: StaticTwin, card: Card, given: BuildJob | Manifest, kind: type[Front] = Front
) -> None:
    """Write *twin* to *target*, in the precision and with the capacities and the mask of *given*.

    Raises:
        ExportError: it cannot be converted or written.
        UnavailableError: coreai-torch is not installed.
    """
    capacities, precision = given.capacities, given.precision
    require("coreai_torch", "coreai")
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            from coreai.runtime import AIModelAssetMetadata
            from coreai_torch import TorchConverter, get_decomp_table

            converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
            for capacity in capacities or (twin.capacity,):
                fitting = twin.with_capacity(capacity)
                front = kind(halved(fitting) if precision == "fp16" else fitting).eval()
                inputs = example_inputs(twin, mask=given.mask == "input")
                with torch.no_grad():
                    program = torch.export.export(front, tuple(inputs.values()))
                    program = program.run_decompositions(get_decomp_table())
                converter.add_exported_program(
                    program,
                    input_names=list(inputs),
                    output_names=list(front.outputs),
                    entrypoint_name=function_name(capacity, capacities),
                )
            facts = {**model_facts(twin, card, capacities), "ppexport.precision": precision}
            metadata = AIModelAssetMetadata()
            metadata.author, metadata.license = "ppexport", card.licence
            metadata.model_description = (
                f"{card.name}: super-resolution x{facts['ppexport.scale']} of {facts['ppexport.size']} images, "
                f"{precision}. Input lr: float32 (1, 3, h, w) in [0, 1]. Outputs sr: float32, not clipped; "
                "impure_tokens: above the function's capacity, the picture is not the network's."
            )
            for key, value in facts.items():
                metadata.set_custom(key, value)
            converter.to_coreai().save_asset(target, metadata)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, KeyError, AssertionError, OSError) as error:
        raise ExportError(f"coreai-torch cannot make an asset of the twin: {first_line(error)}") from error


def build_for_coreai(job: BuildJob) -> str:
    """Write `model.aimodel` into the job's folder, and return its name.

    Raises:
        ExportError: a stage or the comparison with the twin failed.
        UnavailableError: coreai-torch is not installed.
    """
    twin = job.twin()
    job.step("converting")
    write_asset(job.folder / MODEL, twin, job.card, job)
    job.step("comparing with the twin, in Apple's runtime")
    with closing(Session(job.folder / MODEL)) as session:

        def compute(inputs: Arrays, _: Any) -> tuple[Any, int]:
            found = session.run(inputs)
            return found["sr"], int(found["impure_tokens"].reshape(-1)[0])

        self_check(
            compute,
            twin,
            job,
            backend="coreai",
            kind="asset",
            least=LEAST_DB[job.precision],
            lr=ramp_example(twin.size),
            full=False,
        )
    return MODEL
