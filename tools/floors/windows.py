"""Window attention: of a plain layer, and of a shifted one, cut along the wrap into its kinds of block."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from floors.attention import STYLES, Call, Style, fused
from floors.layouts import reorder
from floors.part import WINDOWS, Arrays, Draw, FloatArray, Formulation, Part
from floors.shape import Shape
from ppexport.twin.blocks import Kind, partition, to_blocks

MOST_WINDOWS = 64
"""A mask for every window of a larger picture takes too much memory."""


def token_grid(shape: Shape) -> NDArray[np.int64]:
    """(H, W) numbers of the tokens."""
    return np.arange(shape.n).reshape(shape.padded)


def block_order(shape: Shape, shifted: bool) -> NDArray[np.int64]:
    """(n,) the token at every position in the order of the blocks."""
    image = torch.from_numpy(token_grid(shape))[..., None]
    return torch.cat([to_blocks(image, kind).reshape(-1) for kind in shape.kinds(shifted)]).numpy()


def rolled(shape: Shape, image: NDArray[np.int64]) -> NDArray[np.int64]:
    """*image* (H, W), not yet rolled by the shift, cut into windows (count, area)."""
    shift, window = shape.shift(shifted=True), shape.config.window
    moved = torch.from_numpy(np.roll(image, (-shift, -shift), (0, 1)))[..., None]
    return partition(moved, window, window)[..., 0].numpy()


def kind_bias(table: FloatArray, kind: Kind) -> FloatArray:
    """Position bias (heads, area, area) of a block, from *table* (heads, 2 * window - 1, 2 * window - 1)."""
    rows, columns = np.divmod(np.arange(kind.area), kind.width)
    middle = table.shape[1] // 2
    chosen = table[:, rows[:, None] - rows + middle, columns[:, None] - columns + middle]
    return np.ascontiguousarray(chosen, np.float32)


def masked_bias(shape: Shape, table: FloatArray) -> FloatArray:
    """Bias (windows, heads, area, area) of all rolled windows, minus infinity across the wrap."""
    height, width = shape.padded
    shift, window = shape.shift(shifted=True), shape.config.window
    rows, columns = np.divmod(token_grid(shape), width)
    # What is rolled to the end came from the first rows and columns.
    piece = rolled(shape, 2 * (rows < shift) + (columns < shift))
    # Windows in the middle hold no border; in the last ones both sides of it meet.
    same = piece[:, :, None] == piece[:, None, :]
    bias = kind_bias(table, Kind(window, window, ((0, height),), ((0, width),)))
    return np.where(same[:, None], bias, np.float32(-np.inf))


def write(style: Style, shape: Shape, kinds: list[Kind]) -> str:
    """Attention of all *kinds*, one after the other."""

    def call(kind: Kind, end: str) -> str:
        number = end or "0"
        return style.write(Call(f"q{end}", f"k{end}", f"v{end}", f"out{end}", kind.area, f"bias{number}", 1.0, shape))

    if len(kinds) == 1:
        return call(kinds[0], "")
    lines = [f"sizes = Constant <value_ints = [{', '.join(str(kind.tokens) for kind in kinds)}]> ()"]
    for name in "qkv":
        parts = ", ".join(f"{name}{i}" for i in range(len(kinds)))
        lines.append(f"{parts} = Split <axis = {style.axis}> ({name}, sizes)")
    lines += [call(kind, str(i)) for i, kind in enumerate(kinds)]
    lines.append(f"out = Concat <axis = {style.axis}> ({', '.join(f'out{i}' for i in range(len(kinds)))})")
    return "\n".join(lines)


def masked(shape: Shape, table: FloatArray) -> Formulation:
    """All rolled windows at once with a mask: three quarters of the logits of the last windows are thrown away."""
    order, moved = block_order(shape, shifted=True), rolled(shape, token_grid(shape)).reshape(-1)
    place = np.argsort(order)
    call = Call("q", "k", "v", "out", shape.config.window**2, "bias", 1.0, shape)
    return Formulation(
        "Attention, rolled windows and a mask",
        fused(call),
        {"bias": masked_bias(shape, table)},
        WINDOWS,
        reorder(place[moved]),
        reorder(np.argsort(moved)[order]),
    )


def rows_in(shape: Shape, draw: Draw) -> Arrays:
    """q, k, v (n, c), q already scaled."""
    return {"q": draw.tokens() * np.float32(shape.width**-0.5), "k": draw.tokens(), "v": draw.tokens()}


def windows(shape: Shape, draw: Draw, shifted: bool) -> Part:
    """Window attention of one layer, without projections."""
    kinds = shape.kinds(shifted)
    side = 2 * shape.config.window - 1
    table = draw.normal(shape.heads, side, side)
    biases = [kind_bias(table, kind) for kind in kinds]
    formulations = [
        Formulation(
            style.name,
            write(style, shape, kinds),
            {f"bias{i}": style.bias(bias) for i, bias in enumerate(biases)},
            style.layout,
            style.take(shape),
            style.give(),
            style.rewrite,
        )
        for style in STYLES
    ]
    if shifted and shape.n <= MOST_WINDOWS * shape.config.window**2:
        formulations.append(masked(shape, table))
    return Part(
        key="windows-shifted" if shifted else "windows",
        name=f"window attention, {'shifted' if shifted else 'plain'} layer",
        count=shape.shifted if shifted else shape.plain,
        macs=sum(2 * kind.tokens * kind.area * shape.c for kind in kinds),
        inputs=rows_in(shape, draw),
        outputs={"out": "float"},
        formulations=tuple(formulations),
        attention=True,
    )
