"""Runs the program of a saved package on any machine, operation by operation, with PyTorch.

It checks the *converted program*: its operations, constants, types and roundings. It does not check Apple's kernels,
which sum in another order, may keep more or fewer bits inside an operation, and differ between CPU, GPU and Neural
Engine: what they compute is known on a device only.

Every operation is one small function, registered here: as a line of a table, where the kind of a parameter follows from
its name (`KINDS`), or as a function with annotations:

    operations({"transpose": lambda x, perm: x.permute(perm)})

    @operation
    def gelu(x: Tensor, mode: str = "EXACT") -> Tensor: ...

The name is MIL's, and so are the parameters; a default is what MIL says of a missing one. A kind is `Tensor`,
`list[Tensor]` for a tuple, or plain numbers and text for what is always constant. A function sees fp32 in place of
fp16, int32 in place of shorter integers, and bool; the evaluator rounds its result to the type that the file declares.
`opset` is the number in the program's opset, 7 for CoreML7 (iOS 17).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from ppexport.backends.coreml.program import Value
from ppexport.errors import ArtifactError

Kernel = Callable[..., Any]
K = TypeVar("K", bound=Kernel)
OPSET = "opset"
KINDS: dict[str, Any] = {
    **dict.fromkeys(("x", "y", "cond", "a", "b", "weight", "bias", "ref_tensor", "source_val"), Tensor),
    "values": list[Tensor],
    **dict.fromkeys(("shape", "perm", "reps", "axes"), list[int]),
    **dict.fromkeys(("axis", "upscale_factor", "downscale_factor"), int),
    **dict.fromkeys(("keep_dims", "ascending", "transpose_x", "transpose_y"), bool),
    "output_dtype": str,
}
"""What the parameters of a function in a table are, by name; all others are floats."""


def to_tensor(value: Value) -> Tensor:
    """A constant as the functions see it. Raises ArtifactError where it is no tensor."""
    if not isinstance(value, (np.ndarray, np.generic)):
        raise ArtifactError(f"a tensor is needed, not {type(value).__name__}")
    if value.dtype == np.bool_:
        return torch.from_numpy(np.array(value))
    if np.issubdtype(value.dtype, np.floating):
        return torch.from_numpy(np.array(value, np.float32))
    wide = np.array(value, np.int64)
    fits = wide.size == 0 or (wide.min() >= -(2**31) and wide.max() < 2**31)
    return torch.from_numpy(wide.astype(np.int32) if fits else wide)


def _convert(bindings: list[Value | Tensor], kind: Any) -> Any:
    """*bindings* as a *kind* of parameter. Raises ArtifactError where they cannot be that."""
    if kind is Tensor or kind == list[Tensor]:
        found = [b if isinstance(b, Tensor) else to_tensor(b) for b in bindings]
        if kind is Tensor and len(found) != 1:
            raise ArtifactError(f"one tensor is needed, not {len(found)}")
        return found[0] if kind is Tensor else found
    plain = [b.tolist() if isinstance(b, (Tensor, np.ndarray, np.generic)) else b for b in bindings]
    if kind in (list[int], list[bool]):
        # One list, or several scalars.
        values = plain[0] if len(plain) == 1 and isinstance(plain[0], list) else plain
        return [get_args(kind)[0](v) for v in values]
    value: Any = plain[0] if len(plain) == 1 else None
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    try:
        return kind(value) if value is not None else None
    except (TypeError, ValueError):
        raise ArtifactError(f"a {kind.__name__} is needed, not {value!r}") from None


@dataclass(frozen=True)
class Entry:
    """One known operation."""

    function: Kernel
    kinds: dict[str, Any]
    """{parameter: kind}."""
    required: frozenset[str]

    def arguments(self, given: dict[str, list[Value | Tensor]], opset: int) -> dict[str, Any]:
        """What to call the function with. Raises ArtifactError for parameters it lacks or does not know."""
        unknown = sorted(given.keys() - self.kinds.keys())
        missing = sorted(self.required - given.keys())
        if unknown or missing:
            raise ArtifactError(
                f"its parameters {unknown} are not known" if unknown else f"it lacks its parameters {missing}"
            )
        found = {name: _convert(bindings, self.kinds[name]) for name, bindings in given.items()}
        return {**found, OPSET: opset} if OPSET in self.kinds else found


OPERATIONS: dict[str, Entry] = {}
"""By MIL name; filled when the modules with the operations are imported."""


def operation(function: K) -> K:
    """Register *function* under its own name without a last underscore; its annotations are the kinds."""
    kinds = {}
    for name, hint in get_type_hints(function).items():
        choices = get_args(hint)
        kinds[name] = next(k for k in choices if k is not NoneType) if NoneType in choices else hint
    _register(function.__name__.rstrip("_"), function, kinds)
    return function


def operations(functions: Mapping[str, Kernel]) -> None:
    """Register *functions* by name, whose parameters have the kinds in `KINDS`."""
    for name, function in functions.items():
        _register(name, function, KINDS)


def _register(name: str, function: Kernel, kinds: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    required = frozenset(n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n != OPSET)
    OPERATIONS[name] = Entry(function, {n: kinds.get(n, float) for n in parameters}, required)
