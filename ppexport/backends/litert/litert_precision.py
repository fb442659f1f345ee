"""Fewer bits for a LiteRT file, by Google's `ai-edge-quantizer`.

    fp16    weights of the layers that a half-precision file computes in half (`Architecture.half`) are stored in 16
            bits, and widened before they are used. What chooses categories is none of them
    int8    those that a search has chosen have weights of 8 bits, a scale for each output; their inputs are rounded to
            8 bits while the model runs, by the range of every image. No calibration is needed

The recipes that come with the quantiser were tried and are not offered: `dynamic_wi8_afp32` and `static_wi8_ai16` make
files that do not load, because they also take products whose left operand is a constant, and `static_wi8_ai8` rounds
the image.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

from ppexport.backends.litert.gpu_constants import match_ranks
from ppexport.backends.litert.tflite import edit, kind_of, read_model, text
from ppexport.device.quiet import quiet
from ppexport.errors import ExportError, first_line, require
from ppexport.networks.architecture import find_architecture, place_of
from ppexport.networks.card import Card
from ppexport.quantize.recipe import group_of, recipe_for

KINDS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
"""Operators with weights; the second input is the weight."""


def chosen_outputs(model: Any, role_of: Callable[[str], str | None]) -> dict[str, str]:
    """{name of what is computed by an operator of *model* with weights: the role of its module}, where it has one."""
    found = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            if kind_of(model, operator) in KINDS:
                weight, result = (text(graph.tensors[int(t)].name) for t in (operator.inputs[1], operator.outputs[0]))
                role = role_of(weight.rpartition("/")[2].rpartition(":")[0])
                if role is not None:
                    found[result] = role
    return found


def roles(precision: str, card: Card) -> Callable[[str], str | None]:
    """Tells the role of a module whose weights *precision* stores in fewer bits, None for the others."""
    if precision == "int8":
        groups = recipe_for(card, None)[0].groups
        return lambda module: group if (group := group_of(module)) in groups else None
    half = find_architecture(card.arch).half
    return lambda module: next((role for role in half if place_of(role, module) is not None), None)


def number_names(model: Any) -> None:
    """Put the number of its graph before the name of every tensor: the quantiser needs names that are unique."""
    for number, graph in enumerate(model.subgraphs):
        for tensor in graph.tensors:
            tensor.name = f"{number}/{text(tensor.name)}"


def restore_names(model: Any) -> None:
    """Remove what `number_names` put there, also from what the quantiser has added to the names."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = text(tensor.name).partition("/")[2]


def narrow_weights(content: bytes, precision: str, card: Card) -> tuple[bytes, dict[str, Any]]:
    """The LiteRT file *content* of the model of *card* in fp16 or int8, and what the manifest says of it.

    Raises:
        ExportError: the quantiser fails, or no layer may be int8.
        UnavailableError: it is not installed.
    """
    require("ai_edge_quantizer", "litert")
    with quiet():
        from ai_edge_quantizer import quantizer
        from ai_edge_quantizer.algorithm_manager import AlgorithmName
        from ai_edge_quantizer.qtyping import OpQuantizationConfig, TensorDataType, TensorQuantizationConfig

    about: dict[str, Any] = {}
    numbered = edit(content, number_names)
    names = chosen_outputs(read_model(numbered), roles(precision, card))
    if not names:
        raise ExportError(f"no layer of {card.arch} may be {precision}: export it in another precision")
    worker, pattern = quantizer.Quantizer(numbered), "^(" + "|".join(map(re.escape, names)) + ");?$"
    if precision == "int8":
        about = {"int8": {"groups": sorted(set(names.values())), "activations": "rounded while the model runs"}}
        for kind in KINDS:
            worker.add_dynamic_config(pattern, kind, 8)
    else:
        half = TensorQuantizationConfig(num_bits=16, dtype=TensorDataType.FLOAT)
        config = OpQuantizationConfig(weight_tensor_config=half, explicit_dequantize=True)
        for kind in KINDS:
            worker.update_quantization_recipe(pattern, kind, config, AlgorithmName.FLOAT_CASTING)
    try:
        # Its progress bars.
        with redirect_stderr(io.StringIO()):
            done = worker.quantize(enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, IndexError, NotImplementedError) as error:
        raise ExportError(f"ai-edge-quantizer cannot make {precision} of the file: {first_line(error)}") from error
    return edit(bytes(done.quantized_model), restore_names, match_ranks), about
