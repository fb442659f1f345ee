"""PyTorch twin -> MIL program in coremltools' memory, with the converter's known faults worked around.

What is worked around (coremltools 9.0), each checked by the evaluator on the saved package:

* `torch.ones_like` and an integer `torch.div` give fp32, so that indices made with them are floats, which `gather`
  refuses. Both keep their type here.
* The pass `fuse_elementwise_to_batchnorm` fails on a constant that broadcasts over the channels of one channel.
* The pass `guard_negative_gather_indices` puts three integer operations, which leave the Neural Engine, before every
  gather; a twin's indices are never negative.
* The pass `add_int16_cast` makes indices 16 bits wide without looking at how large they get.
* A twin divides by no less than 1e-12, so that a length of 0 does no harm, but fp16 rounds such a number to 0. In half
  precision `torch.maximum` takes the smallest normal number of fp16 in its place.
* `const_elimination` folds the gathers of the position bias, 1 MB per layer, unless it is given a limit.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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


@contextmanager
def quiet_converter() -> Iterator[None]:
    """Keep coremltools from warning of what Linux lacks, of versions and of every constant it does not fold, and from
    progress bars.
    """
    log = logging.getLogger("coremltools")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def coremltools() -> Any:
    """The package, imported without its warnings."""
    with quiet_converter():
        import coremltools as ct
    return ct


@contextmanager
def _corrected_translations(half: bool) -> Iterator[None]:
    """Translate PyTorch's `ones_like`, integer `div` and, if *half*, `maximum` as this module says."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as registry
    from coremltools.converters.mil.mil import types

    known = registry.name_to_func_mapping
    kept = dict(known)

    def ones_like(context: Any, node: Any) -> None:
        x = context[node.inputs[0]]
        context.add(Builder.const(val=np.ones(x.shape, types.nptype_from_builtin(x.dtype)), name=node.name))

    def div(context: Any, node: Any) -> None:
        x, y = (context[name] for name in node.inputs[:2])
        mode = context[node.inputs[2]] if len(node.inputs) > 2 else None
        if types.is_int(x.dtype) and types.is_int(y.dtype) and mode is not None:
            # Truncation is rounding down for the numbers of slots that twins divide, none of which is negative.
            context.add(Builder.floor_div(x=x, y=y, name=node.name))
        else:
            kept["div"](context, node)

    def maximum(context: Any, node: Any) -> None:
        x, y = (context[name] for name in node.inputs[:2])
        if y.val is not None and np.ndim(y.val) == 0 and 0 < y.val < SMALLEST_HALF:
            context.add(Builder.maximum(x=x, y=np.float32(SMALLEST_HALF), name=node.name))
        else:
            kept["maximum"](context, node)

    known.update(ones_like=ones_like, div=div)
    if half:
        known["maximum"] = maximum
    try:
        yield
    finally:
        known.clear()
        known.update(kept)


def path_of_scope(module: nn.Module, scope: Sequence[str]) -> str:
    """The dotted path below *module* of a tracing *scope*, as far as it can be followed."""
    path: list[str] = []
    for name in scope:
        # The name may hold the list it comes from: layers.0.
        for part in name.split("."):
            children = dict(module.named_children())
            if part in children:
                path.append(part)
                module = children[part]
                continue
            lists = [k for k, child in children.items() if isinstance(child, nn.ModuleList) and part in child._modules]
            if len(lists) != 1:
                return ".".join(path)
            path += [lists[0], part]
            module = children[lists[0]].get_submodule(part)
    return ".".join(path)


def module_paths(root: nn.Module, within: str) -> Callable[[Any], str | None]:
    """Gives the dotted path of the module below *root* that an operation in coremltools' memory comes from.

    Paths below the submodule *within* have no such prefix. The path of *root* or *within* itself is "", and it is None
    where no scope is known.
    """
    from coremltools.converters.mil.mil.scope import ScopeSource

    find = cache(lambda scope: path_of_scope(root, scope))

    def module_of(operation: Any) -> str | None:
        scope = operation.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME)
        if not scope:
            return None
        # The last entry is the operation's own name.
        path = find(tuple(scope[:-1]))
        return path.removeprefix(within).removeprefix(".") if path.partition(".")[0] == within else path

    return module_of


def make_pipeline(tokens: int, passes: Sequence[str], weights_of_8_bits: bool) -> Any:
    """coremltools' passes.

    Args:
        tokens: length of the longest axis that indices reach into.
        passes: registered passes to run before weights are quantised.
        weights_of_8_bits: symmetric, one scale for every output channel.
    """
    pipeline = coremltools().PassPipeline.DEFAULT
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
    return pipeline


def convert(module: nn.Module, example: tuple[Tensor, ...], *, half: bool, **settings: Any) -> Any:
    """*module* as an `MLModel` (an ML program) that is neither saved nor loaded.

    Args:
        module: in eval mode.
        example: its inputs, with which it is traced: the scopes of TorchScript name its modules.
        half: whether anything is computed in fp16.
        settings: of `coremltools.convert`: inputs, outputs, target, precision and passes.

    Raises:
        ExportError: coremltools cannot convert it.
    """
    with quiet_converter(), torch.no_grad():
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
    try:
        with quiet_converter(), _corrected_translations(half):
            return coremltools().convert(traced, convert_to="mlprogram", skip_model_load=True, **settings)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, KeyError, AssertionError) as error:
        raise ExportError(f"coremltools cannot convert the twin: {first_line(error)}") from error
