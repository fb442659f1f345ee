"""Attention to the dictionary, the category of every token, and the dictionary's refinement."""

from __future__ import annotations

import numpy as np

from floors.part import Draw, Formulation, Part
from floors.shape import Shape
from floors.tokens import EPSILON, linear

WRITTEN_UNIT_ROWS = """
    two = Constant <value_float = 2.0> ()
    axis = Constant <value_ints = [1]> ()
    least = Constant <value_float = 0.000000000001> ()
    squares = Pow (x, two)
    sums = ReduceSum (squares, axis)
    roots = Sqrt (sums)
    lengths = Max (roots, least)
    y = Div (x, lengths)"""


def unit_rows(shape: Shape, draw: Draw) -> Part:
    """The queries divided by their length."""
    return Part(
        key="unit-rows",
        name="dictionary: queries to unit length",
        count=shape.layers,
        macs=0,
        inputs={"x": draw.normal(shape.n, shape.r)},
        outputs={"y": "float"},
        formulations=(
            Formulation("LpNormalization", "y = LpNormalization <axis = 1, p = 2> (x)"),
            Formulation("Pow, ReduceSum, Sqrt, Max, Div", WRITTEN_UNIT_ROWS),
        ),
    )


def keys_and_values(shape: Shape, draw: Draw) -> Part:
    """Keys and values of the dictionary; a block's first layer has a constant one, for which both are constants."""
    wk, wv = draw.weight(shape.c, shape.r), draw.weight(shape.c, shape.c)
    bk, bv = draw.normal(shape.r), draw.normal(shape.c)
    factor = {"temperature": np.abs(draw.normal(shape.t, 1))}
    end = """
        unit = LpNormalization <axis = 1, p = 2> (keys)
        k = Mul (unit, temperature)"""
    apart = "keys = Gemm <transB = 1> (d, wk, bk)\nv = Gemm <transB = 1> (d, wv, bv)" + end
    one = f"""
        sizes = Constant <value_ints = [{shape.r}, {shape.c}]> ()
        both = Gemm (d, w, b)
        keys, v = Split <axis = 1> (both, sizes)"""
    turned = {"wk": np.ascontiguousarray(wk.T), "wv": np.ascontiguousarray(wv.T), "bk": bk, "bv": bv}
    joined = {"w": np.concatenate([wk, wv], axis=1), "b": np.concatenate([bk, bv])}
    return Part(
        key="dictionary",
        name="dictionary: its keys and values",
        count=shape.refining,
        macs=shape.t * shape.c * (shape.r + shape.c),
        inputs={"d": draw.normal(shape.t, shape.c)},
        outputs={"k": "float", "v": "float"},
        formulations=(
            Formulation("two Gemm", apart, {**turned, **factor}),
            Formulation("one Gemm, Split", one + end, {**joined, **factor}),
        ),
    )


def logits(shape: Shape, draw: Draw) -> Part:
    """Queries times keys."""
    return Part(
        key="similarity",
        name="dictionary: queries times keys",
        count=shape.layers,
        macs=shape.n * shape.t * shape.r,
        inputs={"q": draw.normal(shape.n, shape.r), "k": draw.normal(shape.t, shape.r)},
        outputs={"y": "float"},
        formulations=(
            Formulation("Transpose, MatMul", "turned = Transpose <perm = [1, 0]> (k)\ny = MatMul (q, turned)"),
            Formulation("Gemm", "y = Gemm <transB = 1> (q, k)"),
        ),
    )


def softmax(shape: Shape, draw: Draw) -> Part:
    """Softmax over the dictionary."""
    return Part(
        key="softmax",
        name="dictionary: softmax",
        count=shape.layers,
        macs=0,
        inputs={"x": draw.normal(shape.n, shape.t)},
        outputs={"y": "float"},
        formulations=(Formulation("Softmax", "y = Softmax <axis = 1> (x)"),),
    )


def values(shape: Shape, draw: Draw) -> Part:
    """Similarities times values, plus the tokens."""
    return Part(
        key="values",
        name="dictionary: similarities times values, plus tokens",
        count=shape.layers,
        macs=shape.n * shape.t * shape.c,
        inputs={"s": draw.similarity(), "v": draw.normal(shape.t, shape.c), "x": draw.tokens()},
        outputs={"y": "float"},
        formulations=(
            Formulation("Gemm with C", "y = Gemm (s, v, x)"),
            Formulation("MatMul, Add", "p = MatMul (s, v)\ny = Add (p, x)"),
        ),
    )


def category(shape: Shape, draw: Draw) -> Part:
    """The most similar token of the dictionary."""
    top = """
        one = Constant <value_ints = [1]> ()
        best, places = TopK <axis = 1> (s, one)
        places32 = Cast <to = 6> (places)
        flat = Constant <value_ints = [-1]> ()
        y = Reshape (places32, flat)"""
    return Part(
        key="argmax",
        name="category of every token",
        count=shape.layers,
        macs=0,
        inputs={"s": draw.similarity()},
        outputs={"y": "int32"},
        formulations=(
            Formulation("ArgMax, Cast", "m = ArgMax <axis = 1, keepdims = 0> (s)\ny = Cast <to = 6> (m)"),
            Formulation("TopK of 1, Cast", top),
        ),
        tolerance=0.0,
    )


def refining_weights(shape: Shape, draw: Draw) -> Part:
    """Similarities, normed over the tokens and through softmax over them."""
    weight, bias = np.abs(draw.normal(shape.t)) + np.float32(0.5), draw.normal(shape.t)
    whole = f"""
        first = Constant <value_ints = [0]> ()
        turned = Transpose <perm = [1, 0]> (s)
        turned3 = Unsqueeze (turned, first)
        normed3 = InstanceNormalization <{EPSILON}> (turned3, weight, bias)
        normed = Squeeze (normed3, first)
        y = Softmax <axis = 1> (normed)"""
    # Softmax ignores what is added to a whole row: mean and bias.
    scaled = """
        axis = Constant <value_ints = [1]> ()
        tiny = Constant <value_float = 0.00001> ()
        turned = Transpose <perm = [1, 0]> (s)
        mean = ReduceMean (turned, axis)
        centred = Sub (turned, mean)
        squares = Mul (centred, centred)
        variance = ReduceMean (squares, axis)
        more = Add (variance, tiny)
        deviation = Sqrt (more)
        factor = Div (column, deviation)
        logits = Mul (centred, factor)
        y = Softmax <axis = 1> (logits)"""
    return Part(
        key="refining-weights",
        name="refinement: weights of the tokens",
        count=shape.refining,
        macs=0,
        inputs={"s": draw.similarity()},
        outputs={"y": "float"},
        formulations=(
            Formulation("Transpose, InstanceNormalization, Softmax", whole, {"weight": weight, "bias": bias}),
            Formulation("Transpose, norm written out, Softmax", scaled, {"column": weight[:, None].copy()}),
        ),
    )


def refining_product(shape: Shape, draw: Draw) -> Part:
    """Weights times tokens."""
    return Part(
        key="refining-product",
        name="refinement: weights times tokens",
        count=shape.refining,
        macs=shape.t * shape.n * shape.c,
        inputs={"w": np.ascontiguousarray(draw.similarity().T), "x": draw.tokens()},
        outputs={"y": "float"},
        formulations=(
            Formulation("MatMul", "y = MatMul (w, x)"),
            Formulation("Gemm", "y = Gemm (w, x)"),
        ),
    )


def update(shape: Shape, draw: Draw, first: bool) -> Part:
    """The dictionary's update s * d + (1 - s) * new; *first*: s * d is a constant in a block's first layer."""
    s = 1 / (1 + np.exp(-draw.normal(shape.t, 1)))
    old, new = draw.normal(shape.t, shape.c), draw.normal(shape.t, shape.c)
    end = "moved = Mul (rest, new)\ny = Add (kept, moved)"
    return Part(
        key="update-first" if first else "update",
        name=f"refinement: the new dictionary{', first layer' if first else ''}",
        count=shape.blocks if first else shape.refining - shape.blocks,
        macs=0,
        inputs={"new": new} if first else {"new": new, "old": old},
        outputs={"y": "float"},
        formulations=(
            Formulation("Mul, Add", end, {"kept": s * old, "rest": 1 - s})
            if first
            else Formulation("two Mul, Add", f"kept = Mul (s, old)\n{end}", {"s": s, "rest": 1 - s}),
        ),
    )


def dictionary_parts(shape: Shape, draw: Draw) -> list[Part]:
    """All parts of this file."""
    return [
        linear(shape, draw, "query", "dictionary: queries", shape.r),
        unit_rows(shape, draw),
        keys_and_values(shape, draw),
        logits(shape, draw),
        softmax(shape, draw),
        values(shape, draw),
        category(shape, draw),
        refining_weights(shape, draw),
        refining_product(shape, draw),
        update(shape, draw, first=True),
        update(shape, draw, first=False),
    ]
