"""Runs ONNX artifacts in OpenVINO, which needs no conversion; imports openvino when a model is opened.

CPUs without VNNI add two products of an unsigned and a signed byte in 16 bits (`vpmaddubsw`), which end at 32767, while
2 * 255 * 127 is 64770: large sums of int8 come out too small, without a word. Two products with weights of 7 bits stay
within, 2 * 255 * 64 = 32640. ONNX Runtime's kernels do not have this limit. So a model that would notice is refused
where products saturate.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ppexport.backends.onnx.run_external import refuse_external
from ppexport.device.artifact import Artifact
from ppexport.device.runner import Flushed, Prepared, Result, Runner, check_threads, feeds
from ppexport.device.target import Runtime, Target
from ppexport.errors import ArtifactError, UnavailableError, first_line, require

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

SAFE_WEIGHT = 64
"""The largest magnitude of an int8 weight whose products never saturate: that of 7 bits."""


def has_wide_weights(model: Any) -> bool:
    """Whether an int8 constant of *model*, an openvino.Model, goes beyond `SAFE_WEIGHT`."""
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    stored = (node.data for node in constants if node.get_output_element_type(0).get_type_name() == "i8")
    # Wider than int8, in which 128 is no number.
    return any(np.abs(values.astype(np.int16)).max(initial=0) > SAFE_WEIGHT for values in stored)


def saturates(core: Any, device: str, settings: dict[str, Any]) -> bool:
    """Whether *core*, an openvino.Core, computes 127 * 127 summed over eight inputs as anything else on *device*."""
    openvino, op = import_module("openvino"), import_module("openvino.opset13")
    depth, outputs = 8, 16
    x = op.parameter([1, depth], np.float32)
    low, high = (op.constant(np.float32(limit)) for limit in (-128, 127))
    weights = op.convert(op.constant(np.full((depth, outputs), 127, np.int8)), "f32")
    scaled = op.multiply(weights, op.constant(np.ones((1, outputs), np.float32)))
    product = op.matmul(op.fake_quantize(x, low, high, low, high, 256), scaled, False, False)
    compiled = core.compile_model(openvino.Model([op.result(product)], [x], "saturation"), device, settings)
    found = compiled.create_infer_request().infer([np.full((1, depth), 127, np.float32)])[0]
    return bool((found != depth * 127 * 127).any())


def reason(error: Exception) -> str:
    """What an error of OpenVINO says, which begins with the places in its sources where it was raised."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from ")]
    return first_line(RuntimeError(lines[0]) if lines else error)


class Session:
    """A compiled model and one request."""

    def __init__(
        self, model: bytes, where: str, device: str = "CPU", threads: int | None = None, *, counters: bool = False
    ) -> None:
        """Compile an ONNX model.

        Args:
            model: its bytes.
            where: what errors call it.
            device: an OpenVINO device.
            threads: as `check_threads` takes them, for the CPU.
            counters: time every operation, which costs time.

        Raises:
            ArtifactError: the model names another file, or OpenVINO refuses it.
            UnavailableError: OpenVINO or the device is missing, or would compute the int8 weights wrongly.
            InputError: threads are no such number.
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
        logging.getLogger("ppexport").debug("OpenVINO opens %s: device %s, %s", where, device, settings)
        try:
            with Flushed():
                graph = core.read_model(model, b"")
                wrong = has_wide_weights(graph) and saturates(core, device, settings)
                self.compiled: Any = None if wrong else core.compile_model(graph, device, settings)
        except Exception as error:  # OpenVINO raises RuntimeError and its own
            raise ArtifactError(f"OpenVINO {openvino.__version__} refuses {where}: {reason(error)}") from None
        if self.compiled is None:
            raise UnavailableError(
                f"OpenVINO's int8 products saturate on this machine, a CPU without VNNI, so that {where} would become "
                "another picture: run it in ONNX Runtime, or export it with a recipe of weight_bits: 7"
            )
        self.request = self.compiled.create_infer_request()
        self.inputs = {port.get_any_name() for port in self.compiled.inputs}

    def run(self, inputs: Arrays, outputs: Sequence[str] = ("sr", "impure_tokens")) -> Arrays:
        """The *outputs* for *inputs*, copied out."""
        with Flushed():
            self.request.infer(inputs)
        return {name: np.array(self.request.get_tensor(name).data) for name in outputs}


class OpenVinoRunner(Runner):
    """An ONNX artifact in OpenVINO."""

    calibrates = True

    def __init__(
        self, artifact: Artifact, device: str = "CPU", threads: int | None = None, *, counters: bool = False
    ) -> None:
        """Raises as `Session`, and ArtifactError where the graph is not what the manifest says."""
        super().__init__(artifact)
        file, m = artifact.graph_file, artifact.manifest
        self.session = Session(artifact.read(file), str(file), device, threads, counters=counters)
        expected = {"lr"} | ({"slots"} if len(m.capacities) > 1 else set()) | ({"mask"} if m.mask == "input" else set())
        if self.session.inputs != expected:
            raise ArtifactError(f"{file} takes {sorted(self.session.inputs)}, but the manifest says {sorted(expected)}")

    def _run(self, prepared: Prepared) -> Result:
        out = self.session.run(feeds(self.artifact.manifest, prepared))
        return Result(out["sr"], int(out["impure_tokens"][0]), prepared.capacity)


def open_target(artifact: Artifact, target: Target) -> OpenVinoRunner:
    """*artifact* on the target's device."""
    return OpenVinoRunner(artifact, target.device, target.threads)


RUNTIME = Runtime(
    "openvino",
    "onnx",
    ("openvino",),
    "CPU",
    open_target,
    lambda: ["CPU"] if find_spec("openvino") is not None else [],
    # Any: OpenVINO itself refuses one that it does not have.
    str,
    # It refuses what is written for ONNX Runtime's kernels.
    flavours=("portable", "tensorrt"),
    times="ppexport.backends.openvino.counters",
    threads_on=("CPU",),
)
