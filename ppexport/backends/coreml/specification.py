"""Finishes a model specification before it is saved: names, small constants, and what it says of itself.

before    %op_504 = gather(x=%var_499, axis=%op_504_axis_0, ...)     one constant for every parameter of every operation
after     %layers__0__...__router___gather_0 = gather(x=..., axis=%constant__3, ...)           one for every value

Names tell the PyTorch module (see `scopes`); without shared constants a twin's file would hold 4,400 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ppexport.backends.coreml.scopes import Namer

AUTHOR = "ppexport"
CONSTANT = "constant__"
"""Starts the names of shared constants; the converter makes no name with two underscores."""


@dataclass(frozen=True)
class Description:
    """What a package says of itself."""

    summary: str
    licence: str
    version: str
    facts: dict[str, str]
    features: dict[str, dict[str, str]]
    """By function: {input or output: what it is}."""


def blocks(spec: Any) -> Iterator[tuple[str, Any]]:
    """(function name, its block) of the specification."""
    for name, function in spec.mlProgram.functions.items():
        yield name, function.block_specializations[function.opset]


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


def module_names(program: Any, module_of: Callable[[Any], str | None]) -> dict[str, str]:
    """{result: new name} for the operations of *program* in coremltools' memory, but not for the function's outputs."""
    function, namer = program.functions["main"], Namer()
    kept = {output.name for output in function.outputs}
    new = {}
    for op in function.operations:
        if op.op_type == "const":
            continue
        base = namer.name(module_of(op) or "", op.op_type)
        for number, output in enumerate(op.outputs):
            if output.name not in kept:
                new[output.name] = base if len(op.outputs) == 1 else f"{base}__{number}"
    return new


def share_constants(block: Any) -> None:
    """Keep one constant for every value, under a short name unless it is a stored weight or an output."""
    first: dict[bytes, str] = {}
    new: dict[str, str] = {}
    kept = []
    for op in block.operations:
        if op.type == "const" and op.outputs[0].name not in block.outputs:
            value = op.attributes["val"]
            key = value.SerializeToString(deterministic=True)
            name = op.outputs[0].name
            if key in first:
                new[name] = first[key]
                continue
            stored = value.WhichOneof("value") == "blobFileValue"
            new[name] = first[key] = name if stored else f"{CONSTANT}{len(first)}"
            op.attributes["name"].immediateValue.tensor.strings.values[:] = [new[name]]
        copy = type(op)()
        copy.CopyFrom(op)
        kept.append(copy)
    del block.operations[:]
    block.operations.extend(kept)
    rename(block, new)


def describe(spec: Any, description: Description) -> None:
    """Fill the metadata and the descriptions of inputs and outputs."""
    metadata = spec.description.metadata
    metadata.author, metadata.license = AUTHOR, description.licence
    metadata.shortDescription, metadata.versionString = description.summary, description.version
    metadata.userDefined.update(description.facts)
    several = spec.description.functions
    for name, features in description.features.items():
        owner = next((f for f in several if f.name == name), spec.description)
        for feature in (*owner.input, *owner.output):
            feature.shortDescription = features.get(feature.name, "")
