"""Category attention, the sort before it, and the gathers around both kinds of attention."""

from __future__ import annotations

import numpy as np

from floors.attention import STYLES, Call, scale_of
from floors.layouts import from_heads, pack, to_heads
from floors.part import HEADS, PACKED, Arrays, Draw, Formulation, Part
from floors.shape import GROUP, Shape
from floors.windows import block_order
from ppexport.twin.counting_sort import BLOCK

INSIDE = f"""
    flat = Constant <value_ints = [-1]> ()
    last = Constant <value_ints = [2]> ()
    across = Constant <value_ints = [-1, 1, {BLOCK}]> ()
    down = Constant <value_ints = [-1, {BLOCK}, 1]> ()
    keys_across = Reshape (keys, across)
    keys_down = Reshape (keys, down)
    equal = Equal (keys_down, keys_across)
    before = And (equal, earlier)
    before_float = Cast <to = 1> (before)
    before_block = ReduceSum <keepdims = 0> (before_float, last)
    inside = Reshape (before_block, flat)
"""
"""How many equal keys of a block of 32 stand before every key."""
PLACE = """
    rank = Add (begin, inside)
    place = Cast <to = 7> (rank)
    source = ScatterElements <axis = 0> (position, place, position)
    back = Gather <axis = 0> (place, order)
"""
"""From where the keys of every block begin to the two lists that are read."""
SCATTERED = """
    wide = Mul (keys, blocks)
    cell32 = Add (wide, block)
    cell = Cast <to = 7> (cell32)
    counts = ScatterElements <axis = 0, reduction = "add"> (empty, cell, ones)
    axis = Constant <value_int = 0> ()
    ends = CumSum (counts, axis)
    begins = Sub (ends, counts)
    begin = Gather <axis = 0> (begins, cell)
"""
"""One histogram over keys and blocks, filled by a scatter."""
ONE_HOT = """
    middle = Constant <value_ints = [1]> ()
    rows = Constant <value_ints = [0]> ()
    axis0 = Constant <value_int = 0> ()
    axis1 = Constant <value_int = 1> ()
    hot = Equal (keys_down, values)
    hot_float = Cast <to = 1> (hot)
    counts = ReduceSum <keepdims = 0> (hot_float, middle)
    totals = ReduceSum (counts, rows)
    starts = CumSum <exclusive = 1> (totals, axis1)
    earlier_blocks = CumSum <exclusive = 1> (counts, axis0)
    begins2 = Add (earlier_blocks, starts)
    begins = Reshape (begins2, flat)
    cell = Add (first_cell, keys)
    begin = Gather <axis = 0> (begins, cell)
"""
"""A histogram of every block by comparing its keys with all values."""
SORTED = """
    wide = Mul (keys, n)
    unique = Add (wide, token)
    axis = Constant <value_int = 0> ()
    found, turn = TopK <axis = 0, largest = 0, sorted = 1> (unique, length)
    source = Gather <axis = 0> (position, turn)
    place = ScatterElements <axis = 0> (token64, turn, token64)
    back = Gather <axis = 0> (place, order)
"""
"""A sort by key and number of the token, and the inverse of what it gives."""


def sort(shape: Shape, draw: Draw) -> Part:
    """Categories -> what every slot reads, and which slot holds what every row of the blocks takes."""
    n, count = shape.n, shape.n // BLOCK
    token = np.arange(n, dtype=np.int32)
    order = block_order(shape, shifted=False).astype(np.int32)
    lists: Arrays = {"order": order, "position": np.argsort(order).astype(np.int32)}
    inside: Arrays = {**lists, "earlier": np.tri(BLOCK, k=-1, dtype=np.bool_)}
    scattered: Arrays = {
        **inside,
        "blocks": np.array([count], np.int32),
        "block": token // BLOCK,
        "empty": np.zeros(shape.t * count, np.float32),
        "ones": np.ones(n, np.float32),
    }
    one_hot: Arrays = {
        **inside,
        "values": np.arange(shape.t, dtype=np.int32),
        "first_cell": token // BLOCK * np.int32(shape.t),
    }
    whole: Arrays = {
        **lists,
        "n": np.array([n], np.int32),
        "token": token,
        "token64": token.astype(np.int64),
        "length": np.array([n], np.int64),
    }
    return Part(
        key="sort",
        name="sort of the categories",
        count=shape.layers,
        macs=0,
        inputs={"keys": draw.categories()},
        outputs={"source": "int32", "back": "int64"},
        formulations=(
            Formulation("counting sort, scattered histogram", SCATTERED + INSIDE + PLACE, scattered),
            Formulation("counting sort, one-hot histogram", INSIDE + ONE_HOT + PLACE, one_hot),
            Formulation("TopK of all", SORTED, whole),
        ),
        tolerance=0.0,
    )


def projections(shape: Shape, draw: Draw) -> Part:
    """q with its bias, k and v of all tokens."""
    c, heads = shape.c, shape.heads
    weight = draw.weight(c, 3 * c)
    bias = np.concatenate([draw.normal(c), np.zeros(2 * c, np.float32)])
    wq, wk, wv = (part.copy() for part in np.split(weight, 3, axis=1))
    apart: Arrays = {"wq": np.ascontiguousarray(wq.T), "wk": wk, "wv": wv, "bq": bias[:c]}
    plain: Arrays = {"wq": wq, "wk": wk, "wv": wv, "bq": bias[:c]}
    by_head: Arrays = {
        name: x.reshape(*x.shape[:-1], heads, shape.width).swapaxes(0, -2).reshape(heads, -1, shape.width).copy()
        for name, x in plain.items()
    }
    whole: Arrays = {"w": weight, "b": bias}
    lone = "\n{0} = MatMul (z, w{0})"
    matmuls = lone.format("k") + lone.format("v")
    packed = "qkv = Gemm (z, w, b)"
    split = "\nq, k, v = Split <axis = 1, num_outputs = 3> (qkv)"
    queries = "p = MatMul (z, wq)\nq = Add (p, bq)"

    def unpack(arrays: Arrays) -> Arrays:
        return dict(zip("qkv", np.split(arrays["qkv"], 3, axis=1), strict=True))

    return Part(
        key="qkv",
        name="q, k and v",
        count=shape.layers,
        macs=shape.n * c * 3 * c,
        inputs={"z": draw.tokens()},
        outputs={"q": "float", "k": "float", "v": "float"},
        formulations=(
            Formulation("Gemm, two MatMul", "q = Gemm <transB = 1> (z, wq, bq)" + matmuls, apart),
            Formulation("three MatMul, Add", queries + matmuls, plain),
            Formulation("one Gemm, Split", packed + split, whole),
            Formulation("one Gemm", packed, whole, PACKED, give=unpack, leaves={"qkv": "float"}),
            Formulation("product of every head", queries + matmuls, by_head, HEADS, give=from_heads),
        ),
    )


def gather_rows(shape: Shape, draw: Draw) -> Part:
    """q, k and v of every slot."""
    weights: Arrays = {"i": draw.permutation()}
    split = "qkv_i = Gather <axis = 0> (qkv, i)\nq_i, k_i, v_i = Split <axis = 1, num_outputs = 3> (qkv_i)"
    rows, heads = ("\n".join(f"{x}_i = Gather <axis = {axis}> ({x}, i)" for x in "qkv") for axis in (0, 1))
    return Part(
        key="gather-qkv",
        name="gather of q, k and v",
        count=shape.layers,
        macs=0,
        inputs={name: draw.tokens() for name in "qkv"},
        outputs={f"{name}_i": "float" for name in "qkv"},
        formulations=(
            Formulation("three Gather", rows, weights),
            Formulation("one Gather, Split", split, weights, PACKED, take=pack),
            Formulation("three Gather of heads", heads, weights, HEADS, to_heads(shape.heads), from_heads),
        ),
    )


def categories(shape: Shape, draw: Draw) -> Part:
    """Attention inside groups of 128 slots."""
    return Part(
        key="categories",
        name="category attention",
        count=shape.layers,
        macs=2 * shape.n * GROUP * shape.c,
        inputs={name: draw.tokens() for name in "qkv"},
        outputs={"out": "float"},
        formulations=tuple(
            Formulation(
                style.name,
                style.write(Call("q", "k", "v", "out", GROUP, "", scale_of(shape), shape)),
                layout=style.layout,
                take=style.take(shape),
                give=style.give(),
                rewrite=style.rewrite,
            )
            for style in STYLES
        ),
        attention=True,
    )


def gather_back(shape: Shape, draw: Draw) -> Part:
    """Results of the slots to rows of the blocks; the list comes from the sort."""
    return Part(
        key="gather-back",
        name="gather back to the rows",
        count=shape.layers,
        macs=0,
        inputs={"x": draw.tokens(), "i": draw.permutation().astype(np.int64)},
        outputs={"y": "float"},
        formulations=(Formulation("Gather", "y = Gather <axis = 0> (x, i)"),),
    )


def block_rows(shape: Shape, draw: Draw, shifted: bool, back: bool) -> Part:
    """Rows in the order of the tokens -> in that of the blocks, or *back*."""
    order = block_order(shape, shifted)
    weights = {"i": (np.argsort(order) if back else order).astype(np.int32)}
    formulations = [Formulation("Gather", "y = Gather <axis = 0> (x, i)", weights)]
    if not shifted:
        (height, width), window, c = shape.padded, shape.config.window, shape.c
        outer = (height // window, width // window, window) if back else (height // window, window, width // window)
        turned = f"""
            sides = Constant <value_ints = [{", ".join(map(str, outer))}, {window * c}]> ()
            rows = Constant <value_ints = [-1, {c}]> ()
            image = Reshape (x, sides)
            other = Transpose <perm = [0, 2, 1, 3]> (image)
            y = Reshape (other, rows)"""
        formulations.append(Formulation("Transpose", turned))
    names = ("blocks to tokens" if back else "tokens to blocks", "shifted" if shifted else "plain")
    return Part(
        key="-".join(names).replace(" ", "-"),
        name=", ".join(names) + " layer",
        count=shape.shifted if shifted else shape.plain,
        macs=0,
        inputs={"x": draw.tokens()},
        outputs={"y": "float"},
        formulations=tuple(formulations),
    )


def category_parts(shape: Shape, draw: Draw) -> list[Part]:
    """All parts of this file."""
    return [
        sort(shape, draw),
        *(block_rows(shape, draw, shifted, back=False) for shifted in (False, True)),
        projections(shape, draw),
        gather_rows(shape, draw),
        categories(shape, draw),
        gather_back(shape, draw),
        *(block_rows(shape, draw, shifted, back=True) for shifted in (False, True)),
    ]
