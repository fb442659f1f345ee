"""An ONNX file compiled by OpenVINO. Imports openvino when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from ppexport.backends.base import check_threads
from ppexport.backends.denormals import Flushed
from ppexport.backends.onnx.external import refuse_external
from ppexport.backends.openvino.saturation import has_wide_weights, saturates
from ppexport.errors import ArtifactError, UnavailableError, first_line, require

if TYPE_CHECKING:
    from ppexport.backends.base import Arrays


def reason(error: Exception) -> str:
    """What an error of OpenVINO says, which begins with the places in its sources where it was raised."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from ")]
    return first_line(RuntimeError(lines[0])) if lines else first_line(error)


class Session:
    """A compiled model and one request."""

    def __init__(
        self, model: bytes, where: str, device: str = "CPU", threads: int | None = None, *, counters: bool = False
    ) -> None:
        """The ONNX file with the bytes *model*; *where* names it in errors. *counters* True times every operation,
        which costs time. Raises UnavailableError without OpenVINO or the device, and where the device would compute
        the file's int8 weights wrongly; ArtifactError where the graph names another file or OpenVINO refuses it;
        InputError as `check_threads`.
        """
        # Also of bytes: OpenVINO would open the files that they name, looked for from the current folder on.
        refuse_external(model, where)
        check_threads(threads)
        require("openvino", "openvino")
        # Imported by name: type checkers would ask for a package that few have.
        openvino = import_module("openvino")
        core = openvino.Core()
        devices = list(core.available_devices)
        if device not in devices:
            raise UnavailableError(f"OpenVINO sees {', '.join(devices) or 'no device'} here, not {device}")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": counters}
        if device == "CPU":
            # A matmul in bfloat16 would be faster, and another network.
            settings.update({"INFERENCE_PRECISION_HINT": "f32", "CPU_DENORMALS_OPTIMIZATION": True})
            # A pinned thread would be the caller's, which other runtimes of the same process need.
            settings["ENABLE_CPU_PINNING"] = False
            if threads is not None:
                settings["INFERENCE_NUM_THREADS"] = threads
        try:
            with Flushed():
                graph = core.read_model(model, b"")
                wrong = has_wide_weights(graph) and saturates(core, device, settings)
                self.compiled = None if wrong else core.compile_model(graph, device, settings)
        except Exception as error:  # OpenVINO raises RuntimeError and its own
            raise ArtifactError(f"OpenVINO {openvino.__version__} refuses {where}: {reason(error)}") from None
        if self.compiled is None:
            raise UnavailableError(
                f"OpenVINO's int8 products saturate on this machine, a CPU without VNNI, so that {where} would become "
                "another picture: run it in ONNX Runtime, or export it with a recipe of weight_bits: 7"
            )
        self.request = self.compiled.create_infer_request()
        self.inputs = [port.get_any_name() for port in self.compiled.inputs]

    def run(self, inputs: Arrays, outputs: Sequence[str] = ("sr", "impure_tokens")) -> Arrays:
        """The *outputs* for *inputs*, copied out."""
        with Flushed():
            self.request.infer(inputs)
        return {name: np.array(self.request.get_tensor(name).data) for name in outputs}
