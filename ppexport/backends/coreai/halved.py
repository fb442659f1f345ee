"""A twin of which the modules that `coreml.precision` names compute in half precision.

Before                                        After
    y = module(x)                                 y = float(half module(half(x)))

Weights of these modules are stored in fp16. Everything else, the sum through all layers included, stays fp32, as in a
Core ML package; whole numbers stay what they are.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ppexport.backends.coreml.precision import HALF
from ppexport.twin.build import StaticTwin


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
    network = twin.__dict__["network"]
    copied = copy.deepcopy(twin)
    copied.__dict__["network"] = network
    chosen = [name for name, _ in copied.named_modules() if HALF.fullmatch(name)]
    for name in chosen:
        if not any(name.startswith(f"{other}.") for other in chosen):
            parent, _, own = name.rpartition(".")
            setattr(copied.get_submodule(parent), own, Halved(copied.get_submodule(name)))
    return copied
