"""Norms, sums and linear layers of all tokens."""

from __future__ import annotations

import numpy as np

from floors.part import Arrays, Draw, Formulation, Part
from floors.shape import Shape

EPSILON = "epsilon = 0.00001"


def by_instance(source: str, out: str) -> str:
    """Rows of mean 0 and deviation 1 by InstanceNormalization with the tokens as channels; weights `ones`, `zeros`."""
    return f"""
        {out}_first = Constant <value_ints = [0]> ()
        {out}_in = Unsqueeze ({source}, {out}_first)
        {out}_out = InstanceNormalization <{EPSILON}> ({out}_in, ones, zeros)
        {out} = Squeeze ({out}_out, {out}_first)"""


def by_layer(source: str, out: str) -> str:
    """The same by LayerNormalization."""
    return f"{out} = LayerNormalization <axis = -1, {EPSILON}> ({source}, ones, zeros)"


def constants(length: int) -> Arrays:
    """`ones` and `zeros` (length,)."""
    return {"ones": np.ones(length, np.float32), "zeros": np.zeros(length, np.float32)}


def norm(shape: Shape, draw: Draw) -> Part:
    """Norm of a block's first layer: nothing that was added stands before it."""
    return Part(
        key="norm",
        name="norm of a block's first layer",
        count=shape.blocks,
        macs=0,
        inputs={"x": draw.tokens()},
        outputs={"z": "float"},
        formulations=(
            Formulation("InstanceNormalization", by_instance("x", "z"), constants(shape.n)),
            Formulation("LayerNormalization", by_layer("x", "z"), constants(shape.c)),
        ),
    )


def sum_and_norm(shape: Shape, draw: Draw) -> Part:
    """A sum and the norm of it, both of which are read later."""
    add = "total = Add (x, y)\n"
    # This operator takes tokens of rank 3.
    skip = f"""
        first = Constant <value_ints = [0]> ()
        x3 = Unsqueeze (x, first)
        y3 = Unsqueeze (y, first)
        z3, mean, deviation, total3 = com.microsoft.SkipLayerNormalization <{EPSILON}> (x3, y3, ones, zeros)
        z = Squeeze (z3, first)
        total = Squeeze (total3, first)"""
    return Part(
        key="sum-norm",
        name="sum of two branches and its norm",
        count=shape.layers + shape.layers - shape.blocks,
        macs=0,
        inputs={"x": draw.tokens(), "y": draw.tokens()},
        outputs={"total": "float", "z": "float"},
        formulations=(
            Formulation("Add, InstanceNormalization", add + by_instance("total", "z"), constants(shape.n)),
            Formulation("Add, LayerNormalization", add + by_layer("total", "z"), constants(shape.c)),
            Formulation("SkipLayerNormalization", skip, constants(shape.c)),
        ),
    )


def last_sum(shape: Shape, draw: Draw) -> Part:
    """The sum that ends a block's last layer."""
    return Part(
        key="sum",
        name="sum that ends a block's layers",
        count=shape.blocks,
        macs=0,
        inputs={"x": draw.tokens(), "y": draw.tokens()},
        outputs={"total": "float"},
        formulations=(Formulation("Add", "total = Add (x, y)"),),
    )


def affine_norm(shape: Shape, draw: Draw) -> Part:
    """The LayerNorm before the first block and the one after the last, which keep weight and bias."""
    weights = {"weight": draw.normal(shape.c), "bias": draw.normal(shape.c)}
    scaled = by_instance("x", "unit") + "\nscaled = Mul (unit, weight)\nz = Add (scaled, bias)"
    layer = f"z = LayerNormalization <axis = -1, {EPSILON}> (x, weight, bias)"
    return Part(
        key="affine-norm",
        name="norm before and after all blocks",
        count=2,
        macs=0,
        inputs={"x": draw.tokens()},
        outputs={"z": "float"},
        formulations=(
            Formulation("LayerNormalization", layer, weights),
            Formulation("InstanceNormalization, Mul, Add", scaled, {**weights, **constants(shape.n)}),
        ),
    )


def linear(shape: Shape, draw: Draw, key: str, name: str, width: int) -> Part:
    """A linear layer (n, c) -> (n, width) with bias, in every transformer layer."""
    weight, bias = draw.weight(shape.c, width), draw.normal(width)
    turned = np.ascontiguousarray(weight.T)
    return Part(
        key=key,
        name=name,
        count=shape.layers,
        macs=shape.n * shape.c * width,
        inputs={"x": draw.tokens()},
        outputs={"y": "float"},
        formulations=(
            Formulation("Gemm", "y = Gemm <transB = 1> (x, w, b)", {"w": turned, "b": bias}),
            Formulation("MatMul, Add", "p = MatMul (x, w)\ny = Add (p, b)", {"w": weight, "b": bias}),
        ),
    )


def linear_and_sum(shape: Shape, draw: Draw) -> Part:
    """The projection of window attention, added to what category attention gives."""
    weight = {"w": draw.weight(shape.c, shape.c)}
    return Part(
        key="window-projection",
        name="projection of windows, plus categories",
        count=shape.layers,
        macs=shape.n * shape.c**2,
        inputs={"x": draw.tokens(), "y": draw.tokens()},
        outputs={"total": "float"},
        formulations=(
            Formulation("Gemm with C", "total = Gemm (x, w, y)", weight),
            Formulation("MatMul, Add", "p = MatMul (x, w)\ntotal = Add (p, y)", weight),
        ),
    )


def gelu(shape: Shape, draw: Draw) -> Part:
    """GELU of the first linear layer of a ConvFFN."""
    return Part(
        key="gelu",
        name="GELU",
        count=shape.layers,
        macs=0,
        inputs={"x": draw.tokens()},
        outputs={"y": "float"},
        formulations=(
            Formulation("Erf and four others", written_gelu("x", "y")),
            Formulation("Gelu", "y = Gelu (x)"),
        ),
    )


def written_gelu(source: str, out: str) -> str:
    """GELU as the exporter writes it; ONNX Runtime makes it one operator."""
    return f"""
        {out}_root = Constant <value_float = 1.4142135381698608> ()
        {out}_one = Constant <value_float = 1.0> ()
        {out}_half = Constant <value_float = 0.5> ()
        {out}_part = Div ({source}, {out}_root)
        {out}_erf = Erf ({out}_part)
        {out}_more = Add ({out}_erf, {out}_one)
        {out}_twice = Mul ({source}, {out}_more)
        {out} = Mul ({out}_twice, {out}_half)"""


def token_parts(shape: Shape, draw: Draw) -> list[Part]:
    """All parts of this file."""
    return [
        norm(shape, draw),
        sum_and_norm(shape, draw),
        last_sum(shape, draw),
        affine_norm(shape, draw),
        linear_and_sum(shape, draw),
        linear(shape, draw, "category-projection", "projection of categories", shape.c),
        linear(shape, draw, "fc1", "ConvFFN: first linear layer", shape.c),
        gelu(shape, draw),
        linear(shape, draw, "fc2", "ConvFFN: second linear layer", shape.c),
    ]
