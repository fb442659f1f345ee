"""Attention in ONNX's text form, in all the ways that ONNX Runtime has kernels for.

Every function writes the attention among every *size* consecutive tokens: of names q, k, v to a name out, plus a bias
of that name ("" for none). Of rows (n, c), or with heads outermost of (heads, n, c / heads).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx

from floors.layouts import from_heads, to_heads
from floors.part import HEADS, ROWS, Arrange, FloatArray, unchanged
from floors.shape import Shape
from ppexport.backends.onnx.strip_attention import strip_attention


class Call(NamedTuple):
    """One attention to write."""

    q: str
    k: str
    v: str
    out: str
    size: int
    """Tokens that attend to each other."""
    bias: str
    scale: float
    shape: Shape


def _views(call: Call, sides: str, back: str) -> tuple[str, str]:
    """Reshapes of q, k and v to *sides*, and of `<out>_mixed` to *back*."""
    lines = [f"{call.out}_sides = Constant <value_ints = [{sides}]> ()"]
    lines += [
        f"{call.out}_{label} = Reshape ({name}, {call.out}_sides)"
        for label, name in zip("qkv", (call.q, call.k, call.v), strict=True)
    ]
    last = f"{call.out}_back = Constant <value_ints = [{back}]> ()\n"
    return "\n".join(lines), f"{last}{call.out} = Reshape ({call.out}_mixed, {call.out}_back)"


def fused(call: Call) -> str:
    """Attention of opset 23 with tensors of rank 3."""
    c, heads, o = call.shape.c, call.shape.heads, call.out
    before, after = _views(call, f"-1, {call.size}, {c}", f"-1, {c}")
    bias = f", {call.bias}" if call.bias else ""
    attributes = f"q_num_heads = {heads}, kv_num_heads = {heads}, scale = {call.scale!r}"
    return f"{before}\n{o}_mixed = Attention <{attributes}> ({o}_q, {o}_k, {o}_v{bias})\n{after}"


def contributed(call: Call) -> str:
    """MultiHeadAttention of ONNX Runtime."""
    c, o = call.shape.c, call.out
    before, after = _views(call, f"-1, {call.size}, {c}", f"-1, {c}")
    bias = f', "", "", {call.bias}' if call.bias else ""
    attributes = f"num_heads = {call.shape.heads}, scale = {call.scale!r}"
    mixed = f"{o}_mixed = com.microsoft.MultiHeadAttention <{attributes}> ({o}_q, {o}_k, {o}_v{bias})"
    return f"{before}\n{mixed}\n{after}"


def _products(call: Call, q: str, k: str, v: str, mixed: str) -> str:
    """Two products around a softmax; *k* is transposed already."""
    o, lines = call.out, []
    if call.scale != 1:
        lines += [f"{o}_scale = Constant <value_float = {call.scale!r}> ()", f"{o}_scaled = Mul ({q}, {o}_scale)"]
        q = f"{o}_scaled"
    lines.append(f"{o}_logits = MatMul ({q}, {k})")
    logits = f"{o}_logits"
    if call.bias:
        lines.append(f"{o}_biased = Add ({logits}, {call.bias})")
        logits = f"{o}_biased"
    lines += [f"{o}_weights = Softmax <axis = -1> ({logits})", f"{mixed} = MatMul ({o}_weights, {v})"]
    return "\n".join(lines)


def written(call: Call) -> str:
    """Single operators, with the permutations that bring the heads outside."""
    c, heads, o = call.shape.c, call.shape.heads, call.out
    before, after = _views(call, f"-1, {call.size}, {heads}, {call.shape.width}", f"-1, {c}")
    turned = f"""
        {o}_qt = Transpose <perm = [0, 2, 1, 3]> ({o}_q)
        {o}_kt = Transpose <perm = [0, 2, 3, 1]> ({o}_k)
        {o}_vt = Transpose <perm = [0, 2, 1, 3]> ({o}_v)"""
    products = _products(call, f"{o}_qt", f"{o}_kt", f"{o}_vt", f"{o}_inner")
    return f"{before}{turned}\n{products}\n{o}_mixed = Transpose <perm = [0, 2, 1, 3]> ({o}_inner)\n{after}"


def fused_heads(call: Call) -> str:
    """Attention of opset 23 with tensors of rank 4, heads outermost."""
    heads, width, o = call.shape.heads, call.shape.width, call.out
    before, after = _views(call, f"{heads}, -1, {call.size}, {width}", f"{heads}, -1, {width}")
    bias = f", {call.bias}" if call.bias else ""
    return f"{before}\n{o}_mixed = Attention <scale = {call.scale!r}> ({o}_q, {o}_k, {o}_v{bias})\n{after}"


def written_heads(call: Call) -> str:
    """Single operators, heads outermost."""
    heads, width, o = call.shape.heads, call.shape.width, call.out
    before, after = _views(call, f"{heads}, -1, {call.size}, {width}", f"{heads}, -1, {width}")
    products = _products(call, f"{o}_q", f"{o}_kt", f"{o}_v", f"{o}_mixed")
    return f"{before}\n{o}_kt = Transpose <perm = [0, 1, 3, 2]> ({o}_k)\n{products}\n{after}"


class Style(NamedTuple):
    """A way to write attention."""

    name: str
    write: Callable[[Call], str]
    layout: str = ROWS
    rewrite: Callable[[onnx.ModelProto], None] | None = None

    @property
    def axis(self) -> int:
        """That of the tokens."""
        return 1 if self.layout == HEADS else 0

    def bias(self, bias: FloatArray) -> FloatArray:
        """*bias* (heads, size, size) as this style takes it."""
        return np.expand_dims(bias, 1 if self.layout == HEADS else 0)

    def take(self, shape: Shape) -> Arrange:
        """From rows."""
        return to_heads(shape.heads) if self.layout == HEADS else unchanged

    def give(self) -> Arrange:
        """To rows."""
        return from_heads if self.layout == HEADS else unchanged


def in_strips(model: onnx.ModelProto) -> None:
    """The pass of the flavour `ort`; all lengths are plain numbers here."""
    strip_attention(model, ())


STYLES = (
    Style("Attention in strips", fused, rewrite=in_strips),
    Style("Attention", fused),
    Style("MultiHeadAttention", contributed),
    Style("single operators", written),
    Style("Attention, heads outermost", fused_heads, HEADS),
    Style("single operators, heads outermost", written_heads, HEADS),
)


def scale_of(shape: Shape) -> float:
    """One divided by the root of a head's width, as fp32 has it."""
    return float(np.float32(shape.width**-0.5))
