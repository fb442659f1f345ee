"""Runs one function of a package.

Numbers are handled so: a function of this package gets fp32 where the file says fp16, exactly converted, computes in
fp32, products and sums included, and its result is rounded once to the type that the file declares, to nearest even;
beyond 65504 that is infinity. So intermediate results *inside* an operation are fp32. A device may accumulate in fp16
as well: then its error is larger than what is seen here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppexport.backends.coreml.evaluator import OPERATIONS, elementwise, layout, sums, to_tensor
from ppexport.backends.coreml.program import Operation, Package, Port, Reference, Value
from ppexport.errors import ArtifactError, InputError, first_line

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

CONST = "const"
_INTEGERS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"}
_FILL_OPERATIONS = (elementwise, layout, sums)
"""These modules register what they know when they are imported."""


def _rounded(result: Tensor, port: Port, rounding: bool) -> Tensor:
    """*result* in the type and shape that the file declares, but fp32 for fp16 without *rounding*.

    Raises ArtifactError where it cannot be that.
    """
    if port.type is None:
        raise ArtifactError(f"output {port.name!r} is no tensor")
    kind = port.type.element.name
    shape = port.type.shape
    if len(shape) != result.dim() or any(n not in (None, m) for n, m in zip(shape, result.shape, strict=True)):
        raise ArtifactError(f"its result has shape {tuple(result.shape)}, the file says {port.type}")
    if kind in ("fp16", "fp32"):
        return result.to(torch.float16 if kind == "fp16" and rounding else torch.float32)
    if kind == "bool":
        return result if result.dtype == torch.bool else result != 0
    if kind not in _INTEGERS:
        raise ArtifactError(f"results of type {kind} are not known here")
    limits = np.iinfo(kind)
    if result.dtype == torch.bool:
        return result.to(torch.int32)
    if result.is_floating_point() and not torch.equal(result, result.trunc()):
        raise ArtifactError(f"its result holds fractions, the file says {kind}")
    if result.numel() and (int(result.min()) < limits.min or int(result.max()) > limits.max):
        raise ArtifactError(f"its result from {int(result.min())} to {int(result.max())} does not fit into {kind}")
    return result.to(torch.int64 if kind in ("int64", "uint32") else torch.int32)


def _widened(value: Tensor) -> Tensor:
    """fp16 as fp32; everything else as it is."""
    return value.float() if value.dtype == torch.float16 else value


class Evaluator:
    """One function of a package, ready to run."""

    def __init__(self, package: Package, function: str | None = None, *, rounding: bool = True) -> None:
        """Read the constants.

        Args:
            package: an opened package.
            function: its name; None is the package's default.
            rounding: False leaves fp16 results in fp32, to see which operation needs more bits.

        Raises:
            ArtifactError: operations are not known, which the message names.
            InputError: the package has no such function.
        """
        self.function = package.function(function)
        self.rounding = rounding
        opset = re.fullmatch(r"CoreML(\d+)", self.function.opset)
        if opset is None:
            raise ArtifactError(f"opset {self.function.opset!r} is not one of Core ML")
        self.opset = int(opset[1])
        unknown = Counter(
            op.type for op in self.function.operations if op.type != CONST and (op.type not in OPERATIONS or op.blocks)
        )
        if unknown:
            raise ArtifactError(
                "operations that the evaluator does not know: "
                + ", ".join(f"{kind} ({count})" for kind, count in sorted(unknown.items()))
            )
        self.constants: dict[str, Value | Tensor] = {}
        self.steps: list[Operation] = []
        for op in self.function.operations:
            if op.type == CONST:
                if op.value is None or len(op.outputs) != 1:
                    raise ArtifactError(f"the constant {op.name!r} has no value")
                value = op.value
                numbers = isinstance(value, np.ndarray) and value.ndim > 0
                self.constants[op.outputs[0].name] = to_tensor(value) if numbers else value
            elif op.type.startswith("constexpr_"):
                self.constants.update({k: _widened(v) for k, v in self._execute(op, self.constants).items()})
            else:
                self.steps.append(op)
        self._last_use = {name: i for i, op in enumerate(self.steps) for name in op.reads()}

    def _execute(self, op: Operation, known: Mapping[str, Value | Tensor]) -> dict[str, Tensor]:
        """The outputs of one operation. Raises ArtifactError, naming it."""
        try:
            entry = OPERATIONS[op.type]
            given: dict[str, list[Value | Tensor]] = {}
            for parameter, bindings in op.inputs.items():
                given[parameter] = [known[b.name] if isinstance(b, Reference) else b for b in bindings]
            results = entry.function(**entry.arguments(given, self.opset))
            results = results if isinstance(results, tuple) else (results,)
            if len(results) != len(op.outputs):
                raise ArtifactError(f"it gives {len(results)} results, the file says {len(op.outputs)}")
            return {port.name: _rounded(r, port, self.rounding) for r, port in zip(results, op.outputs, strict=True)}
        except KeyError as error:
            raise ArtifactError(f"operation {op.name!r} ({op.type}) reads {error}, which nothing computes") from None
        except (ArtifactError, RuntimeError, IndexError, ValueError, TypeError, OverflowError) as error:
            raise ArtifactError(f"operation {op.name!r} ({op.type}): {first_line(error)}") from None

    def _inputs(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The function's *inputs* as tensors. Raises InputError for other names, types or shapes, ArtifactError for an
        input that is no tensor.
        """
        expected = {port.name: port for port in self.function.inputs}
        if set(inputs) != set(expected):
            raise InputError(f"the function takes {sorted(expected)}, not {sorted(inputs)}")
        found = {}
        for name, array in inputs.items():
            kind = expected[name].type
            if kind is None:
                raise ArtifactError(f"input {name!r} of the package is no tensor, which the evaluator cannot feed")
            if kind.element.numpy != array.dtype or kind.shape != array.shape:
                raise InputError(f"input {name!r} is {kind}, not {array.dtype} {array.shape}")
            found[name] = to_tensor(array)
        return found

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        keep: Collection[str] = (),
        replace: Mapping[str, NDArray[Any]] | None = None,
    ) -> Arrays:
        """The function's outputs for *inputs*, by name.

        Args:
            inputs: arrays by name, of the declared types and shapes.
            keep: names of inner results that are returned as well.
            replace: results that stand in for what an operation computed; *keep* still returns what it computed.

        Raises:
            ArtifactError: an operation, which the message names, cannot be computed.
            InputError: the function has no such inputs or results.
        """
        wanted = {*self.function.outputs, *keep}
        unknown = sorted((replace or {}).keys() - {port.name for op in self.steps for port in op.outputs})
        if unknown:
            raise InputError(f"the function computes no {', '.join(unknown)}, which could be replaced")
        stand_in = {name: torch.from_numpy(np.array(array)) for name, array in (replace or {}).items()}
        live: dict[str, Value | Tensor] = {**self.constants, **self._inputs(inputs)}
        found: Arrays = {n: v.numpy() for n, v in live.items() if n in wanted and isinstance(v, Tensor)}
        with torch.no_grad():
            for number, op in enumerate(self.steps):
                for name, result in self._execute(op, live).items():
                    if name in wanted:
                        found[name] = result.numpy()
                    live[name] = _widened(stand_in.get(name, result))
                for name in op.reads():
                    if self._last_use[name] == number and name not in self.constants:
                        live.pop(name, None)
        missing = sorted(wanted - found.keys())
        if missing:
            raise InputError(f"the function computes no {', '.join(missing)}")
        return found
