"""ONNX Runtime sessions, configured the same everywhere. Imports onnxruntime when a session is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppexport.errors import ArtifactError, first_line, require


def make_session_from(model: bytes, where: str, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU for the bytes *model*; *where* names it in errors.

    *threads* None lets ONNX Runtime choose. Raises ArtifactError where it cannot load the model.
    """
    require("onnxruntime", "onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = first_line(error)
        raise ArtifactError(f"ONNX Runtime {onnxruntime.__version__} cannot load {where}: {reason}") from None


def make_session(path: Path, threads: int | None = None) -> Any:
    """A session for the model file *path*. It is read as bytes: external files that a graph names are never opened."""
    return make_session_from(path.read_bytes(), str(path), threads)
