"""Candidates in OpenVINO, which is optional."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from peers.candidate import Candidate, Image
from ppexport.errors import UnavailableError, first_line


class OpenVino(Candidate):
    """An ONNX graph, input `lr` and output `sr`, in OpenVINO's CPU plugin."""

    flush = True
    reference = "dense"

    def __init__(self, key: str, name: str, lr: Image, path: Path, threads: int) -> None:
        super().__init__(key, name, lr)
        self.path, self.threads = path, threads
        self._request: Any = None

    def prepare(self) -> None:
        """Compile for the CPU. Raises UnavailableError where OpenVINO is missing or refuses the graph."""
        if find_spec("openvino") is None:
            raise UnavailableError("not installed: pip install openvino")
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "CPU_DENORMALS_OPTIMIZATION": True,
            # A pinned thread would be the caller's, which the other candidates need.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            # Imported by name: type checkers would ask for a package that few have.
            compiled = import_module("openvino").Core().compile_model(str(self.path), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError and its own
            raise UnavailableError(f"OpenVINO refuses the graph: {first_line(error)}") from None
        self._request = compiled.create_infer_request()

    def run(self) -> Image:
        """One inference, its result copied out."""
        self._request.infer({"lr": self.lr})
        return np.array(self._request.get_tensor("sr").data, np.float32)
