"""What is measured: parts of a network, each written in one or more ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from floors.shape import Shape

Arrays: TypeAlias = dict[str, NDArray[Any]]
Arrange: TypeAlias = Callable[[Arrays], Arrays]
FloatArray: TypeAlias = NDArray[np.float32]

ROWS = "rows"
"""The layout of the flavour `ort`: tokens are rows (n, c), q, k and v apart."""
HEADS = "heads"
"""(heads, n, width): what stands beside it would have to leave or take this layout too."""
PACKED = "packed"
"""q, k and v side by side: (n, 3c)."""
WINDOWS = "windows"
"""Rows in the order of the rolled windows, not of the blocks that they are cut into."""


def unchanged(arrays: Arrays) -> Arrays:
    """*arrays*."""
    return arrays


@dataclass(frozen=True)
class Formulation:
    """One way to compute a part: nodes in ONNX's text form, with the names of the part's inputs and outputs."""

    name: str
    body: str
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Initializers, which ONNX Runtime packs when it opens a session."""
    layout: str = ROWS
    """Where it is not ROWS, neighbours would have to be of this layout, and what that takes is not counted."""
    take: Arrange = unchanged
    """The part's inputs, in rows -> those of this formulation. Not timed."""
    give: Arrange = unchanged
    """Its outputs -> those of the part, in rows. Not timed."""
    rewrite: Callable[[onnx.ModelProto], None] | None = None
    """A graph pass that makes what runs of the text."""
    leaves: Mapping[str, str] | None = None
    """Its outputs and their types, where they are not the part's."""


@dataclass(frozen=True)
class Part:
    """Something that a network computes *count* times."""

    key: str
    name: str
    count: int
    macs: int
    """Multiply-adds of one time, 0 for what is no product."""
    inputs: Arrays
    """Activations."""
    outputs: Mapping[str, str]
    """Name -> type, as ONNX's text form names it."""
    formulations: tuple[Formulation, ...]
    """The first is the artefact's."""
    attention: bool = False
    """Whether it is the softmax attention of windows or categories."""
    tolerance: float = 1e-4
    """How far formulations may be apart, as a share of the largest value."""


class Draw:
    """Random arrays, the same in every run."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape = shape
        self._generator = np.random.default_rng(seed)

    def normal(self, *sides: int, scale: float = 1.0) -> FloatArray:
        """Of mean 0 and deviation *scale*."""
        return np.asarray(scale * self._generator.standard_normal(sides), np.float32)

    def weight(self, *sides: int) -> FloatArray:
        """(in, out), which keeps the deviation of what it multiplies; of a convolution (out, in, h, w)."""
        fan = sides[0] if len(sides) < 4 else int(np.prod(sides[1:]))
        return self.normal(*sides, scale=fan**-0.5)

    def tokens(self) -> FloatArray:
        """(n, c)."""
        return self.normal(self.shape.n, self.shape.c)

    def similarity(self) -> FloatArray:
        """(n, t) softmax of every row."""
        logits = np.exp(self.normal(self.shape.n, self.shape.t))
        return np.asarray(logits / logits.sum(axis=1, keepdims=True), np.float32)

    def permutation(self) -> NDArray[np.int32]:
        """(n,) a random order of the tokens, int32."""
        return self._generator.permutation(self.shape.n).astype(np.int32)

    def categories(self) -> NDArray[np.int32]:
        """(n,) int32 in [0, t)."""
        return self._generator.integers(0, self.shape.t, self.shape.n).astype(np.int32)
