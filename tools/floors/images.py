"""Convolutions, with what brings tokens into an image and back."""

from __future__ import annotations

import numpy as np

from floors.part import Arrays, Draw, Formulation, Part
from floors.shape import Shape
from floors.tokens import written_gelu
from ppexport.device.mask import mirror_index
from ppexport.networks.atd.network import RGB_MEAN


def to_image(source: str, out: str, shape: Shape) -> str:
    """Rows (n, c) -> image (1, c, H, W)."""
    height, width = shape.padded
    return f"""
        {out}_sides = Constant <value_ints = [1, {shape.c}, {height}, {width}]> ()
        {out}_turned = Transpose <perm = [1, 0]> ({source})
        {out} = Reshape ({out}_turned, {out}_sides)"""


def to_tokens(source: str, out: str, shape: Shape) -> str:
    """Image (1, c, H, W) -> rows (n, c)."""
    return f"""
        {out}_sides = Constant <value_ints = [{shape.c}, {shape.n}]> ()
        {out}_flat = Reshape ({source}, {out}_sides)
        {out} = Transpose <perm = [1, 0]> ({out}_flat)"""


def conv(source: str, out: str, kernel: int, group: int = 1, weights: str = "") -> str:
    """A convolution of the weights w and b, with *weights* behind their names, that keeps height and width."""
    half = kernel // 2
    attributes = f"kernel_shape = [{kernel}, {kernel}], pads = [{half}, {half}, {half}, {half}], group = {group}"
    return f"\n{out} = Conv <{attributes}> ({source}, w{weights}, b{weights})"


def first(shape: Shape, draw: Draw) -> Part:
    """The picture, padded, to features, as an image and as tokens."""
    weights: Arrays = {}
    body, source = "", "lr"
    for axis, name in ((2, "taller"), (3, "wider")):
        have, want = shape.size[axis - 2], shape.padded[axis - 2]
        if have != want:
            body += f"{name} = Gather <axis = {axis}> ({source}, {name}_index)\n"
            weights[f"{name}_index"] = mirror_index(have, want).astype(np.int32)
            source = name
    body += f"centred = Sub ({source}, mean)" + conv("centred", "image", 3) + to_tokens("image", "tokens", shape)
    weights |= {
        "mean": np.array(RGB_MEAN, np.float32).reshape(1, 3, 1, 1),
        "w": draw.weight(shape.c, 3, 3, 3),
        "b": draw.normal(shape.c),
    }
    return Part(
        key="conv-first",
        name="first convolution, to tokens",
        count=1,
        macs=27 * shape.n * shape.c,
        inputs={"lr": draw.normal(1, 3, *shape.size)},
        outputs={"image": "float", "tokens": "float"},
        formulations=(Formulation("Conv", body, weights),),
    )


def depthwise(shape: Shape, draw: Draw) -> Part:
    """x + GELU(depthwise 7x7) of a ConvFFN, from rows to rows."""
    kernel = shape.config.kernel
    weights: Arrays = {"w": draw.weight(shape.c, 1, kernel, kernel), "b": draw.normal(shape.c)}
    begin = to_image("x", "image", shape) + conv("image", "mixed", kernel, shape.c)
    rows = begin + to_tokens("mixed", "rows", shape)
    return Part(
        key="depthwise",
        name="ConvFFN: depthwise convolution with GELU and sum",
        count=shape.layers,
        macs=kernel**2 * shape.n * shape.c,
        inputs={"x": draw.tokens()},
        outputs={"y": "float"},
        formulations=(
            Formulation(
                "GELU as an image",
                begin + written_gelu("mixed", "curved") + to_tokens("curved", "rows", shape) + "\ny = Add (x, rows)",
                weights,
            ),
            Formulation("GELU as rows", rows + written_gelu("rows", "curved") + "\ny = Add (x, curved)", weights),
            Formulation(
                "GELU and sum as an image",
                begin
                + written_gelu("mixed", "curved")
                + "\ntotal = Add (image, curved)"
                + to_tokens("total", "y", shape),
                weights,
            ),
        ),
    )


def block(shape: Shape, draw: Draw) -> Part:
    """The convolution that ends a block, and the block's residual."""
    weights: Arrays = {"w": draw.weight(shape.c, shape.c, 3, 3), "b": draw.normal(shape.c)}
    begin = to_image("x", "image", shape) + conv("image", "mixed", 3)
    whole = begin + to_tokens("mixed", "rows", shape) + "\ny = Add (rows, residual)"
    in_image = begin + to_image("residual", "other", shape) + "\ntotal = Add (mixed, other)"
    return Part(
        key="conv-block",
        name="convolution of a block and its sum",
        count=shape.blocks,
        macs=9 * shape.n * shape.c**2,
        inputs={"x": draw.tokens(), "residual": draw.tokens()},
        outputs={"y": "float"},
        formulations=(
            Formulation("Conv, sum of rows", whole, weights),
            Formulation("Conv, sum of images", in_image + to_tokens("total", "y", shape), weights),
        ),
    )


def reconstruction(shape: Shape, draw: Draw) -> Part:
    """Tokens and the first features -> the picture: what lies between the convolutions stays in their own layout."""
    scale = shape.config.scale
    colours = 3 * scale**2
    weights: Arrays = {
        "w_body": draw.weight(shape.c, shape.c, 3, 3),
        "b_body": draw.normal(shape.c),
        "w_up": draw.weight(colours, shape.c, 3, 3),
        "b_up": draw.normal(colours),
    }
    height, width = (side * scale for side in shape.size)
    body = (
        to_image("x", "image", shape)
        + conv("image", "mixed", 3, weights="_body")
        + "\ndeep = Add (mixed, features)"
        + conv("deep", "fine", 3, weights="_up")
        + f"""
        large = DepthToSpace <blocksize = {scale}, mode = "CRD"> (fine)
        begin = Constant <value_ints = [0, 0]> ()
        end = Constant <value_ints = [{height}, {width}]> ()
        axes = Constant <value_ints = [2, 3]> ()
        sr = Slice (large, begin, end, axes)"""
    )
    return Part(
        key="reconstruction",
        name="last convolutions, to the picture",
        count=1,
        macs=9 * shape.n * shape.c**2 + 9 * shape.n * shape.c * colours,
        inputs={"x": draw.tokens(), "features": draw.normal(1, shape.c, *shape.padded)},
        outputs={"sr": "float"},
        formulations=(Formulation("two Conv, DepthToSpace", body, weights),),
    )


def image_parts(shape: Shape, draw: Draw) -> list[Part]:
    """All parts of this file."""
    return [first(shape, draw), depthwise(shape, draw), block(shape, draw), reconstruction(shape, draw)]
