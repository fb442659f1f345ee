"""ONNX -> TensorRT engine, as a job of the archive: Python 3.8 and TensorRT alone, no NumPy.

The request, beside what every job has (`ppexport.device.agent`):

    onnx_sha256         hash of `model.onnx`, which has its precision written into it
    tf32                whether fp32 products may run in TF32
    slots               lengths of the input `slots`, one optimisation profile for each; [] for a fixed capacity
    workspace_mb, optimization_level, runtime
                        null, or the limit, the level, and "tensorrt" or "tensorrt_rtx"
    activation_bytes    what the tensors of a run take, estimated, or null; an error where that is not free

It writes `model.engine`, `build.log`, `timing.cache` (an earlier one is read first) and `layers.json`
({"Layers": [..]}, as trtexec does). A failure is of kind "no-tensorrt", "parse", "build", "memory" or "io".

TensorRT 10.3 to 11 and TensorRT-RTX differ in little that a strongly typed network meets; the differences are in
`_parse`, `_load_timing_cache` and `RUNTIMES`.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppexport.device.agent import JobError, event
from ppexport.device.machine import memory_bytes, read_text
from ppexport.errors import EXIT_GATE_FAILED, UnavailableError
from ppexport.files import atomic_path, sha256_file, write_text

MODEL, ENGINE, LOG, TIMING_CACHE, LAYERS = "model.onnx", "model.engine", "build.log", "timing.cache", "layers.json"
RUNTIMES = ("tensorrt", "tensorrt_rtx")
LISTING = re.compile(r"^(Layers:|Engine Layer Information:?)$", re.MULTILINE)
"""The title of the layer list in the log: TensorRT-RTX's, TensorRT's."""
LAYER = re.compile(r"^Name: (.*?), LayerType: (\w+)(?:.*?TacticName: ([^,\n]*))?", re.MULTILINE)
"""A line of that list."""
OUT_OF_MEMORY = re.compile(r"out of ?memory|memory allocation|MEM_ALLOC", re.IGNORECASE)
ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")


class BuildError(JobError):
    """Why there is no engine."""

    exit_code = EXIT_GATE_FAILED


class NoTensorRTError(JobError, UnavailableError):
    """This Python has no TensorRT."""


def import_tensorrt(runtime: str | None) -> Any:
    """The module *runtime*, or the first of RUNTIMES that works. Raises NoTensorRTError."""
    for name in (runtime,) if runtime else RUNTIMES:
        try:
            trt = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):
            continue
        # The wheels `tensorrt` of some package indexes are empty shells.
        if hasattr(trt, "Builder"):
            return trt
    raise NoTensorRTError(
        "no-tensorrt",
        f"this machine has no {runtime or ' or '.join(RUNTIMES)} for {sys.executable}: on a Jetson TensorRT comes with "
        "JetPack, for the Python of the system (a venv needs --system-site-packages)",
    )


class Log:
    """What TensorRT says: warnings and errors to the caller, the layer list aside, everything worth keeping in a text.

    Verbose messages, a hundred thousand per network, are dropped but for the layer list that ends a build.
    """

    def __init__(self, trt: Any, say: Callable[[str, str], object]) -> None:
        """*say* receives the severity, "warning" or "error", and the text of what a caller should know."""
        self.lines: list[str] = []
        self.listing = ""
        self.errors: list[str] = []
        names = {trt.ILogger.INTERNAL_ERROR: "error", trt.ILogger.ERROR: "error", trt.ILogger.WARNING: "warning"}
        outer = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            """Called by TensorRT from several threads, which append to lists and print whole lines only."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity == trt.ILogger.VERBOSE:
                    if LISTING.search(text):
                        outer.listing = text
                    return
                name = names.get(severity, "info")
                outer.lines.append(f"{name}: {text}")
                if name == "error":
                    outer.errors.append(text)
                if name != "info":
                    say(name, text)

        self.logger = Logger()

    @property
    def out_of_memory(self) -> bool:
        """Whether some error says that there was not enough memory."""
        return bool(OUT_OF_MEMORY.search(" ".join(self.errors)))


def _make_monitor(trt: Any) -> Any:
    """A progress monitor that prints an event for every phase and percent."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called by TensorRT, from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = max(steps, 1)
            event("progress", phase=phase, step=0, steps=self.steps[phase])

        def step_complete(self, phase: str, step: int) -> bool:
            steps = self.steps.get(phase, 1)
            if 100 * (step + 1) // steps > 100 * step // steps:
                event("progress", phase=phase, step=step + 1, steps=steps)
            return True

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.get(phase, 1)
            event("progress", phase=phase, step=steps, steps=steps)

    return Monitor()


def _parse(trt: Any, builder: Any, log: Log, model: bytes) -> Any:
    """The network of the ONNX *model*, and its parser, which owns the weights. Raises BuildError of kind "parse"."""
    # From TensorRT 11 on, and in TensorRT-RTX, there are only strongly typed networks, and maybe no flag for them.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse(model):
        return network, parser
    errors = []
    for error in map(parser.get_error, range(parser.num_errors)):
        # TensorRT 10.3 has all three; a method that a version lacks leaves its text empty.
        methods = {"node": "node_name", "operator": "node_operator", "text": "desc"}
        errors.append({key: str(getattr(error, name, str)()) for key, name in methods.items()})
    reason = (log.errors or ["no reason given"])[0]
    raise BuildError("parse", f"TensorRT {trt.__version__} cannot read the model: {reason}", errors)


def _load_timing_cache(config: Any, path: Path) -> None:
    """Let the builder use the timings in *path*, if there are some of this version and device, and keep new ones."""
    # A cache of another version is refused by one of the two methods; an empty one always works.
    for data in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _configure(trt: Any, builder: Any, request: dict[str, Any]) -> Any:
    """The builder's configuration, but for timing cache and monitor."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["tf32"]:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if request["workspace_mb"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mb"] << 20)
    if request["optimization_level"] is not None:
        config.builder_optimization_level = request["optimization_level"]
    for length in request["slots"]:
        profile = builder.create_optimization_profile()
        profile.set_shape("slots", (1, length), (1, length), (1, length))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError("build", f"TensorRT refuses {length} as a length of slots")
    return config


def describe_gpu() -> dict[str, str | None]:
    """GPU name, compute capability and driver version, by the CUDA driver; null where there is none."""
    unknown: dict[str, str | None] = {"gpu": None, "compute_capability": None, "driver": None}
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return unknown
    name, device = ctypes.create_string_buffer(256), ctypes.c_int()
    major, minor, driver = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    # 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    worked = (
        cuda.cuInit(0) == 0
        and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
        and cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device) == 0
        and cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device) == 0
        and cuda.cuDeviceGetName(name, len(name), device) == 0
        and cuda.cuDriverGetVersion(ctypes.byref(driver)) == 0
    )
    if not worked:
        return unknown
    return {
        "gpu": name.value.decode(errors="replace"),
        "compute_capability": f"{major.value}.{minor.value}",
        "driver": f"{driver.value // 1000}.{driver.value % 1000 // 10}",
    }


def _layers(trt: Any, log: Log, plan: bytes) -> list[Any] | None:
    """The engine's layers, by its inspector or, without a GPU to load it on, as the log lists them."""
    if describe_gpu()["gpu"] is not None:
        engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
        if engine is not None:
            text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
            layers = json.loads(text).get("Layers")
            if isinstance(layers, list) and layers:
                return layers
    return [dict(zip(("Name", "LayerType", "TacticName"), found)) for found in LAYER.findall(log.listing)] or None


def _build_plan(trt: Any, request: dict[str, Any], log: Log, folder: Path) -> tuple[bytes, float]:
    """The serialised engine and the seconds it took; the timing cache is kept."""
    model = (folder / MODEL).read_bytes()
    if hashlib.sha256(model).hexdigest() != request["onnx_sha256"]:
        raise BuildError("io", f"{MODEL} does not match the hash in the request: send it again")
    need, free = request["activation_bytes"], memory_bytes("MemAvailable")
    if need and free is not None and need > free:
        raise BuildError(
            "memory",
            f"a run takes about {need / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: export a smaller size",
        )
    builder = trt.Builder(log.logger)
    network, parser = _parse(trt, builder, log, model)
    config, cache = _configure(trt, builder, request), folder / TIMING_CACHE
    _load_timing_cache(config, cache)
    config.progress_monitor = monitor = _make_monitor(trt)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    # Alive until here: the builder calls the monitor and reads the parser's weights.
    del monitor, parser
    if plan is None:
        reason = (log.errors or ["TensorRT gave no reason"])[0]
        raise BuildError("memory" if log.out_of_memory else "build", reason)
    kept = config.get_timing_cache()
    with atomic_path(cache) as temporary:
        temporary.write_bytes(b"" if kept is None else bytes(kept.serialize()))
    return bytes(plan), seconds


def build(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build the engine of *request* in *folder*: the job of the archive.

    Returns:
        The outcome: what the engine depends on (`run_facts`), its hash, the seconds it took, the bytes that a run takes
        beside the weights, and the device.

    Raises:
        NoTensorRTError: there is no TensorRT.
        BuildError: it built no engine; the log is written all the same.
    """
    trt = import_tensorrt(request["runtime"])
    # TensorRT-RTX has timing caches that do nothing, and says so at every call.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*Timing cache")
    log = Log(trt, lambda severity, text: event("log", severity=severity, text=text))
    try:
        plan, seconds = _build_plan(trt, request, log, folder)
        layers = _layers(trt, log, plan)
    finally:
        write_text(folder / LOG, "\n".join([*log.lines, log.listing]) + "\n")
    with atomic_path(folder / ENGINE) as temporary:
        temporary.write_bytes(plan)
    write_text(folder / LAYERS, json.dumps({"Layers": layers}) + "\n")
    activations = [int(number) for number in ACTIVATIONS.findall("\n".join(log.lines))]
    return {
        "runtime": trt.__name__,
        "tensorrt": trt.__version__,
        **describe_gpu(),
        "engine_sha256": sha256_file(folder / ENGINE),
        "seconds": round(seconds, 3),
        "activation_bytes": max(activations, default=None),
        "device": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "board": read_text(Path("/proc/device-tree/model")),
            "l4t": (read_text(Path("/etc/nv_tegra_release")) or "").partition("\n")[0] or None,
            "memory_bytes": memory_bytes("MemTotal"),
        },
    }
