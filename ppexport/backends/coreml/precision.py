"""Which operations of a twin are computed in half precision, and which read int8.

Half precision is what costs time and is safe: the projections, products and softmaxes of window and category
attention, the feed-forward part, and the values of the dictionary (`Architecture.half_modules`). In fp32 stay

    the Pure-Pass mask                     its labels are exact in nothing less
    counts, ranks                          fp16 counts exactly to 2048 only
    similarity to the dictionary, argmax   they choose the category, and one flip regroups thousands of tokens
    the refined dictionary                 its weights are 1 / n, subnormal in fp16 for large images
    the sum that runs through all layers   72 roundings, one on the other
    the convolutions between blocks        five operations, whose output is all that a block adds: in fp16 they are
                                           most of the picture's error (bundled x4, a photograph: 89 dB, else 98)
    norms, the image, the first and last convolutions

Whole numbers (slots, ranks, indices) are int32 at every precision.

In w8a8 chosen convolutions and linear layers read int8, with one scale for the tensor and no zero point, by ranges that
were measured; the result stays float:

    before    x -> linear(w)
    after     x -> quantize(scale) -> dequantize(scale) -> linear(w)

coremltools' own `linear_quantize_activations` finds ranges by running the model, which it can on a Mac only, and by
minimum and maximum alone (of the last sample: 9.0 overwrites those before). Here they come from `ppexport calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ppexport.backends.coreml.mil_program import SMALLEST_HALF
from ppexport.errors import ExportError
from ppexport.networks.architecture import find_architecture, place_of
from ppexport.twin.twin import StaticTwin

ModuleOf = Callable[[Any], "str | None"]
"""The dotted path of the module that an operation in coremltools' memory comes from, None where it is not known."""
LEVELS = 127
READERS = frozenset({"conv", "linear"})
"""MIL's convolution and linear layer."""


def _reads_int8(op: Any) -> bool:
    """A convolution or linear layer, or one that the converter leaves as a product with stored weights."""
    return op.op_type in READERS or (op.op_type == "matmul" and op.inputs["y"].val is not None)


def computes_half(twin: StaticTwin) -> Callable[[str], bool]:
    """Tells whether the module at a dotted path of *twin* is computed in fp16 in a half-precision file."""
    roles = find_architecture(twin.network.arch).half_modules
    return lambda module: any(place_of(role, module) is not None for role in roles)


def scale_of(limit: float, half: bool, module: str) -> np.float16 | np.float32:
    """The scale, in fp16 if *half*, at which 127 is *limit*; what *module* reads is as wide.

    Raises ExportError where fp16 does not hold it precisely.
    """
    if half and limit / LEVELS < SMALLEST_HALF:
        raise ExportError(
            f"{module} reads numbers below {limit:.2g}, whose int8 scale fp16 does not hold: leave its group out of "
            "the recipe"
        )
    scale: np.float16 | np.float32 = (np.float16 if half else np.float32)(limit / LEVELS)
    return scale


def _quantise_inputs(program: Any, ranges: Mapping[str, float], module_of: ModuleOf) -> None:
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    placed = set()
    for function in program.functions.values():
        with function:
            for op in list(function.operations):
                module = module_of(op) if _reads_int8(op) else None
                if module is None or module not in ranges:
                    continue
                x = op.inputs["x"]
                scale = scale_of(ranges[module], x.dtype == types.fp16, module)
                levels = Builder.quantize(input=x, scale=scale, output_dtype="int8", before_op=op)
                number = Builder.dequantize(input=levels, scale=scale, before_op=op)
                function.replace_uses_of_var_after_op(number.op, x, number, end_op=op)
                # Names contain the module, and come from the scopes.
                levels.op.scopes = number.op.scopes = op.scopes
                placed.add(module)
    missing = sorted(ranges.keys() - placed)
    if missing:
        raise ExportError(f"the Core ML program holds no layer {missing[0]} to quantise ({len(missing)} are missing)")


def quantising_pass(ranges: Mapping[str, float], module_of: ModuleOf) -> str:
    """Register the pass of coremltools that quantises what the layers of *ranges* read, and return its name.

    *ranges* is {dotted module path: magnitude that 127 stands for}. The pass raises ExportError for a module that the
    program holds no convolution or linear layer of.
    """
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass

    @register_pass(namespace="ppexport", override=True)
    class quantise_layer_inputs(AbstractGraphPass):  # type: ignore[misc]
        def apply(self, prog: Any) -> None:
            _quantise_inputs(prog, ranges, module_of)

    return f"ppexport::{quantise_layer_inputs.__name__}"
