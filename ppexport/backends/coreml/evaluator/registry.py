"""The operations that the evaluator knows: one operation, one small function.

    @operation
    def add(x: Tensor, y: Tensor) -> Tensor: ...

The name is MIL's, and so are the parameters; a default is what MIL says of a missing one. What a parameter is comes
from its annotation: `Tensor`, `list[Tensor]` for a tuple, or plain numbers and text for what is always constant.
A function sees fp32 in place of fp16, int32 in place of shorter integers, and bool; the evaluator rounds its result
to the type that the file declares. `opset` is the number in the program's opset, 7 for CoreML7 (iOS 17).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from ppexport.backends.coreml.reading.program import Value
from ppexport.errors import ArtifactError

Argument = Any
"""A Tensor, a number, a text, or a list of one of these."""
Kernel = Callable[..., Any]
OPSET = "opset"


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


def _plain(value: Value | Tensor) -> Any:
    """A value as numbers and text."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    return value


def _as_list(bindings: list[Value | Tensor]) -> list[Any]:
    """The plain list that *bindings* are: one list, or several scalars."""
    values = [_plain(b) for b in bindings]
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def convert(bindings: list[Value | Tensor], wanted: Any) -> Argument:
    """*bindings* as what the annotation *wanted* says. Raises ArtifactError where they cannot be that."""
    kinds = [kind for kind in get_args(wanted) if kind is not type(None)]
    if type(None) in get_args(wanted):
        wanted = kinds[0]
    tensors = [b if isinstance(b, Tensor) else None for b in bindings]
    if wanted is Tensor or wanted == list[Tensor]:
        found = [to_tensor(b) if t is None else t for b, t in zip(bindings, tensors, strict=True)]  # type: ignore[arg-type]
        if wanted is Tensor and len(found) != 1:
            raise ArtifactError(f"one tensor is needed, not {len(found)}")
        return found[0] if wanted is Tensor else found
    if wanted in (list[int], list[bool]):
        return [get_args(wanted)[0](v) for v in _as_list(bindings)]
    value = _plain(bindings[0]) if len(bindings) == 1 else None
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    try:
        return wanted(value) if value is not None else None
    except (TypeError, ValueError):
        raise ArtifactError(f"a {wanted.__name__} is needed, not {value!r}") from None


@dataclass(frozen=True)
class Entry:
    """One known operation."""

    function: Kernel
    kinds: dict[str, Any]
    """{parameter: annotation}."""
    required: frozenset[str]

    def arguments(self, given: dict[str, list[Value | Tensor]], opset: int) -> dict[str, Argument]:
        """What to call the function with. Raises ArtifactError for parameters it lacks or does not know."""
        unknown = sorted(given.keys() - self.kinds.keys())
        missing = sorted(self.required - given.keys())
        if unknown or missing:
            raise ArtifactError(
                f"its parameters {unknown} are not known" if unknown else f"it lacks its parameters {missing}"
            )
        found = {name: convert(bindings, self.kinds[name]) for name, bindings in given.items()}
        return {**found, OPSET: opset} if OPSET in self.kinds else found


OPERATIONS: dict[str, Entry] = {}
"""By MIL name; filled when `operations` is imported."""


def operation(function: Kernel) -> Kernel:
    """Register *function* under its own name, without the underscore that avoids a Python name."""
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(function)
    OPERATIONS[function.__name__.rstrip("_")] = Entry(
        function,
        {name: hints[name] for name in parameters},
        frozenset(n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n != OPSET),
    )
    return function
