"""Names and constants of a saved package: every operation's name contains the PyTorch module that it comes from.

    before    %op_504 = gather(x=%var_499, axis=%op_504_axis_0, ...)        a constant for every parameter
    after     %layers__0__...__router___gather_0 = gather(x=..., axis=%constant__3, ...)   one for every value

coremltools keeps TorchScript's scopes while it converts, and drops them when it saves. A tracing scope is a path of
calls, in which lists do not appear (`0/residual_group/3` is `layers.0.residual_group.layers.3`); `mil_program` finds
them again. In the saved package the path is part of every name, as an identifier, which is all that MIL allows:

    layers__0__residual_group__layers__3__attn_aca___matmul_2       the third matmul of that module
    ___reshape                                                      the first reshape of the network itself

Without shared constants a twin's file would hold 4,400 of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

DOT, END = "__", "___"
_NAME = re.compile(r"(?P<path>(?:[A-Za-z0-9]\w*?)?)___(?P<op>[a-z]\w*?)(?:_(?P<number>\d+))?")
CONSTANT = "constant__"
"""Starts the names of shared constants; the converter makes no name with two underscores."""


def encode(path: str, operation: str, number: int) -> str:
    """The name of the *number*-th *operation* of the module *path*."""
    return path.replace(".", DOT) + END + operation + (f"_{number}" if number else "")


def decode(name: str) -> str | None:
    """The module's path in a name that `encode` made, None for another name."""
    match = _NAME.fullmatch(name)
    return None if match is None else match["path"].replace(DOT, ".")


def module_names(program: Any, module_of: Callable[[Any], str | None]) -> dict[str, str]:
    """{result: new name} for the operations of *program* in coremltools' memory, but not for the function's outputs."""
    function = program.functions["main"]
    kept = {output.name for output in function.outputs}
    counts: Counter[tuple[str, str]] = Counter()
    new = {}
    for op in function.operations:
        if op.op_type == "const":
            continue
        key = module_of(op) or "", op.op_type
        base = encode(*key, counts[key])
        counts[key] += 1
        for number, output in enumerate(op.outputs):
            if output.name not in kept:
                new[output.name] = base if len(op.outputs) == 1 else f"{base}__{number}"
    return new


def blocks(spec: Any) -> Iterator[Any]:
    """The block of every function of the specification."""
    for function in spec.mlProgram.functions.values():
        yield function.block_specializations[function.opset]


def rename(block: Any, new: Mapping[str, str]) -> None:
    """Give results new names wherever they are written and read."""
    for op in block.operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = new.get(binding.name, binding.name)
        for output in op.outputs:
            output.name = new.get(output.name, output.name)
        if op.type != "const" and op.outputs:
            op.attributes["name"].immediateValue.tensor.strings.values[:] = [op.outputs[0].name]
    block.outputs[:] = [new.get(name, name) for name in block.outputs]


def share_constants(block: Any) -> None:
    """Keep one constant for every value, under a short name unless it is a stored weight or an output."""
    first: dict[bytes, str] = {}
    new: dict[str, str] = {}
    repeated = []
    for number, op in enumerate(block.operations):
        if op.type == "const" and op.outputs[0].name not in block.outputs:
            value, name = op.attributes["val"], op.outputs[0].name
            key = value.SerializeToString(deterministic=True)
            if key in first:
                new[name] = first[key]
                repeated.append(number)
                continue
            stored = value.WhichOneof("value") == "blobFileValue"
            new[name] = first[key] = name if stored else f"{CONSTANT}{len(first)}"
            op.attributes["name"].immediateValue.tensor.strings.values[:] = [new[name]]
    for number in reversed(repeated):
        del block.operations[number]
    rename(block, new)
