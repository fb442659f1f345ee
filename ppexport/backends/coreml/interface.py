"""What an app feeds to a package and gets from it: tensors, or pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppexport.backends.coreml.mil_program import coremltools
from ppexport.twin.twin import StaticTwin

INPUT, MASK, SR, IMPURE = "lr", "mask", "sr", "impure_tokens"
DESCRIPTIONS = {
    "tensor": {
        INPUT: "Low-resolution RGB image, float32 (1, 3, {h}, {w}) in [0, 1].",
        SR: "Super-resolved RGB image, float32 (1, 3, {H}, {W}), not clipped to [0, 1].",
    },
    "image": {
        INPUT: "Low-resolution RGB image, {h} rows of {w} pixels.",
        SR: "Super-resolved RGB image, {H} rows of {W} pixels.",
    },
}
COMMON = {
    MASK: "Pure-Pass mask of the padded image, float32 (1, 1, H', W'): 1 is pure and skips category attention.",
    IMPURE: "Number of impure pixels, int32 (1). Above the capacity, {capacity}, the picture is not the network's.",
}


class Picture(nn.Module):
    """Bytes -> numbers in [0, 1], in a module of its own so that its precision can be chosen."""

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, h, w) in 0 ... 255 -> in [0, 1]."""
        return image / 255


class Front(nn.Module):
    """A twin whose inputs are positional, and pictures if *images*."""

    def __init__(self, twin: StaticTwin, images: bool) -> None:
        super().__init__()
        self.twin = twin
        self.picture = Picture() if images else None

    def forward(self, lr: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the twin gives; of a picture whole numbers from 0 to 255, so that no runtime has to round."""
        if self.picture is None:
            plain: tuple[Tensor, Tensor] = self.twin(lr, mask)
            return plain
        sr, impure = self.twin(self.picture(lr), mask)
        return (sr.clamp(0, 1) * 255).round(), impure


def example_inputs(twin: StaticTwin, mask: bool) -> tuple[Tensor, ...]:
    """Arguments of `Front` for tracing."""
    lr = torch.zeros(1, 3, *twin.size)
    return (lr, torch.zeros(1, 1, *twin.padded)) if mask else (lr,)


def input_types(twin: StaticTwin, images: bool, mask: bool) -> list[Any]:
    """coremltools' inputs. Numbers are fp32 at every precision: the labels of the mask are exact in nothing less."""
    ct = coremltools()
    shape = (1, 3, *twin.size)
    lr = ct.ImageType(name=INPUT, shape=shape, color_layout=ct.colorlayout.RGB) if images else None
    found = [lr or ct.TensorType(name=INPUT, shape=shape, dtype=np.float32)]
    if mask:
        found.append(ct.TensorType(name=MASK, shape=(1, 1, *twin.padded), dtype=np.float32))
    return found


def output_types(images: bool) -> list[Any]:
    """coremltools' outputs."""
    ct = coremltools()
    sr = ct.ImageType(name=SR, color_layout=ct.colorlayout.RGB) if images else ct.TensorType(name=SR, dtype=np.float32)
    return [sr, ct.TensorType(name=IMPURE)]


def descriptions(twin: StaticTwin, interface: str, capacity: int) -> dict[str, str]:
    """{input or output: what it is}, for the package."""
    (h, w), s = twin.size, twin.scale
    texts = {**DESCRIPTIONS[interface], **COMMON}
    return {name: text.format(h=h, w=w, H=h * s, W=w * s, capacity=capacity) for name, text in texts.items()}
