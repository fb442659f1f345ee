"""PyTorch twin -> MIL program in coremltools' memory, with the converter's known faults worked around.

What is worked around (coremltools 9.0), each checked by the evaluator on the saved package:

* `torch.ones_like` and an integer `torch.div` give fp32, so that indices made with them are floats, which `gather`
  refuses. Both keep their type here.
* The pass `fuse_elementwise_to_batchnorm` fails on a constant that broadcasts over the channels of one channel.
* The pass `guard_negative_gather_indices` puts three integer operations, which leave the Neural Engine, before every
  gather; a twin's indices are never negative.
* The pass `add_int16_cast` makes indices 16 bits wide without looking at how large they get.
* A positive number that fp16 rounds to 0, such as the 1e-12 that keeps a twin from dividing by a length of 0, no longer
  keeps it from that. In half precision `torch.maximum` takes the smallest normal number of fp16 in its place.
* `const_elimination` folds the gathers of the position bias, 1 MB per layer, unless it is given a limit.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppexport.backends.coreml.apple import check_installed
from ppexport.errors import ExportError, first_line

DROPPED_PASSES = frozenset({"common::fuse_elementwise_to_batchnorm", "common::guard_negative_gather_indices"})
QUANTISE = "compression::linear_quantize_weights"
QUANTISED_FROM = 512
"""Elements of the smallest weight that is stored with 8 bits."""
SHORT_INDICES = 1 << 16
"""Tokens that 16 bits can number."""
SMALLEST_HALF = 2.0**-14
"""The smallest normal number of fp16."""
LARGEST_FOLDED = "1e4"
"""Elements of the largest constant that the converter may compute beforehand."""
Translation = Callable[[Any, Any], None]
"""Adds what a node of TorchScript computes to a program: (coremltools' context, node)."""


@contextmanager
def _log_from(level: int) -> Iterator[None]:
    """Log nothing of coremltools below *level*."""
    log = logging.getLogger("coremltools")
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


def coremltools() -> Any:
    """The package, imported without its warnings about what Linux lacks. Raises UnavailableError."""
    check_installed()
    with _log_from(logging.ERROR):
        import coremltools as ct
    return ct


@contextmanager
def quiet_converter() -> Iterator[None]:
    """Keep coremltools from warning of versions and of every constant it does not fold, and from progress bars."""
    with _log_from(logging.CRITICAL), warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


def _ones_like(original: Translation, context: Any, node: Any) -> None:
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    x = context[node.inputs[0]]
    context.add(Builder.const(val=np.ones(x.shape, types.nptype_from_builtin(x.dtype)), name=node.name))


def _div(original: Translation, context: Any, node: Any) -> None:
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    x, y = (context[name] for name in node.inputs[:2])
    mode = context[node.inputs[2]] if len(node.inputs) > 2 else None
    if types.is_int(x.dtype) and types.is_int(y.dtype) and mode is not None:
        # Truncation is rounding down for the numbers of slots that twins divide, none of which is negative.
        context.add(Builder.floor_div(x=x, y=y, name=node.name))
    else:
        original(context, node)


def _maximum(original: Translation, context: Any, node: Any) -> None:
    from coremltools.converters.mil import Builder

    x, y = (context[name] for name in node.inputs[:2])
    if y.val is not None and np.ndim(y.val) == 0 and 0 < y.val < SMALLEST_HALF:
        context.add(Builder.maximum(x=x, y=np.float32(SMALLEST_HALF), name=node.name))
    else:
        original(context, node)


@contextmanager
def _corrected_translations(half: bool) -> Iterator[None]:
    """Translate PyTorch's `ones_like`, integer `div` and, if *half*, `maximum` as this module says."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as registry

    known = registry.name_to_func_mapping
    kept = dict(known)
    corrected = {"ones_like": _ones_like, "div": _div, **({"maximum": _maximum} if half else {})}
    known.update({name: partial(translate, kept[name]) for name, translate in corrected.items()})
    try:
        yield
    finally:
        known.clear()
        known.update(kept)


def trace(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """*module* as TorchScript, whose scopes name its modules."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]


def convert(
    traced: Any,
    settings: Mapping[str, Any],
    *,
    half: bool,
    tokens: int,
    passes: Sequence[str] = (),
    weights_of_8_bits: bool = False,
) -> Any:
    """*traced* as an `MLModel` (an ML program) that is neither saved nor loaded.

    Args:
        traced: a module in TorchScript.
        settings: of `coremltools.convert`: inputs, outputs, target and precision.
        half: whether anything is computed in fp16.
        tokens: length of the longest axis that indices reach into.
        passes: registered passes to run before weights are quantised.
        weights_of_8_bits: symmetric, one scale for every output channel.

    Raises:
        ExportError: coremltools cannot convert it.
    """
    ct = coremltools()
    pipeline = ct.PassPipeline.DEFAULT
    dropped = {*DROPPED_PASSES} if tokens <= SHORT_INDICES else {*DROPPED_PASSES, "common::add_int16_cast"}
    pipeline.remove_passes(dropped & set(pipeline.passes))
    pipeline.set_options("common::const_elimination", {"skip_const_by_size": LARGEST_FOLDED})
    for name in passes:
        pipeline.append_pass(name)
    if weights_of_8_bits:
        from coremltools.optimize import coreml

        how = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=QUANTISED_FROM)
        # As the last pass: the function that quantises a finished package would run all dropped passes on it.
        pipeline.append_pass(QUANTISE)
        pipeline.set_options(QUANTISE, {"config": coreml.OptimizationConfig(global_config=how)})
    try:
        with quiet_converter(), _corrected_translations(half):
            return ct.convert(traced, convert_to="mlprogram", pass_pipeline=pipeline, skip_model_load=True, **settings)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, KeyError, AssertionError) as error:
        raise ExportError(f"coremltools cannot convert the twin: {first_line(error)}") from error
