"""A program -> the same with int8 inputs of chosen convolutions and linear layers, by ranges that were measured.

Before:

    x -> linear(w)

After, one scale for the tensor and no zero point; the result stays float:

    x -> quantize(scale) -> dequantize(scale) -> linear(w)

coremltools' own `linear_quantize_activations` finds ranges by running the model, which it can on a Mac only, and by
minimum and maximum alone (of the last sample: 9.0 overwrites those before). Here they come from `ppexport calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ppexport.backends.coreml.mil_program import SMALLEST_HALF
from ppexport.errors import ExportError

LEVELS = 127
READERS = frozenset({"conv", "linear"})
"""MIL's convolution and linear layer."""


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


def quantise_inputs(program: Any, ranges: Mapping[str, float], module_of: Callable[[Any], str | None]) -> None:
    """Quantise what the layers of *ranges* read, in *program* in coremltools' memory.

    *ranges* is {dotted module path: magnitude that 127 stands for}, *module_of* tells an operation's path. Raises
    ExportError for a module that the program holds no convolution or linear layer of.
    """
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    placed = set()
    for function in program.functions.values():
        with function:
            for op in list(function.operations):
                module = module_of(op) if op.op_type in READERS else None
                if module is None or module not in ranges:
                    continue
                x = op.inputs["x"]
                scale = scale_of(ranges[module], x.dtype == types.fp16, module)
                levels = Builder.quantize(input=x, scale=scale, output_dtype="int8", before_op=op)
                number = Builder.dequantize(input=levels, scale=scale, before_op=op)
                function.replace_uses_of_var_after_op(number.op, x, number, end_op=op)
                # Names tell the module, and come from the scopes.
                levels.op.scopes = number.op.scopes = op.scopes
                placed.add(module)
    missing = sorted(ranges.keys() - placed)
    if missing:
        raise ExportError(f"the Core ML program holds no layer {missing[0]} to quantise ({len(missing)} are missing)")


def quantising_pass(ranges: Mapping[str, float], module_of: Callable[[Any], str | None]) -> str:
    """Registers `quantise_inputs` as a pass of coremltools; its name."""
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass

    @register_pass(namespace="ppexport", override=True)
    class quantise_layer_inputs(AbstractGraphPass):  # type: ignore[misc]
        def apply(self, prog: Any) -> None:
            quantise_inputs(prog, ranges, module_of)

    return f"ppexport::{quantise_layer_inputs.__name__}"
