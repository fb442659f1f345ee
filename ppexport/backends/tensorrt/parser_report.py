"""What TensorRT's parser objects to, as one sentence that names the PyTorch module.

Standard library only, but for a better guess at the module where the onnx package is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppexport.errors import EXIT_GATE_FAILED, ExportError, PpexportError, UnavailableError

SHOWN = 3
"""Errors that a sentence holds; the log has all."""


class BuildFailed(ExportError):
    """TensorRT made no engine of a model; the files and options were good."""

    exit_code = EXIT_GATE_FAILED


def module_of_node(name: str) -> str | None:
    """The PyTorch module that the node *name* of an exported graph comes from, None where the name does not tell."""
    if not name.startswith("/"):
        return None
    try:
        from ppexport.backends.onnx.modules import module_of_name
    except ModuleNotFoundError:
        return ".".join(name.split("/")[1:-1])
    return module_of_name(name)


def describe_error(error: Mapping[str, Any]) -> str:
    """One of the parser's errors."""
    node, operator, text = (" ".join(str(error.get(key, "")).split()) for key in ("node", "operator", "text"))
    module = module_of_node(node)
    where = f"module {module or 'the network itself'}" if module is not None else node or "an unnamed node"
    return f"{operator or 'an operator'} in {where}: {text or 'no reason given'}"


def failure(event: Mapping[str, Any]) -> PpexportError:
    """The error to raise for the builder's event "failed": UnavailableError where TensorRT is missing."""
    kind, message = event.get("kind"), " ".join(str(event.get("message", "")).split())
    if kind == "no-tensorrt":
        return UnavailableError(message)
    errors = event.get("errors")
    if kind != "parse" or not isinstance(errors, list) or not errors:
        return BuildFailed(message or "TensorRT built no engine and gave no reason")
    told = "; ".join(describe_error(error) for error in errors[:SHOWN] if isinstance(error, Mapping))
    more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return BuildFailed(f"TensorRT cannot read the model: {told}{more}")
