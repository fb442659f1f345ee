"""ONNX -> TensorRT engine, as a job of the archive: Python 3.8 and TensorRT alone, no NumPy.

The request, beside what every job has (`ppexport.device.agent`):

    onnx_sha256         hash of `model.onnx`, which has its precision written into it
    precision, tf32     "fp32" or "fp16", for the record; whether fp32 products may run in TF32
    slots               null, or {"name": "slots", "lengths": [..]}: one optimisation profile for every length
    workspace_mb, optimization_level, runtime
                        null, or the limit, the level, and "tensorrt" or "tensorrt_rtx"
    activation_bytes    what the tensors of a run take, estimated, or null; an error where that is not free

It writes `model.engine`, `build.log`, `timing.cache` (one that is there already is read first) and `layers.json`
({"Layers": [..]}, as trtexec does). A failure is of kind "no-tensorrt", "parse", "build", "memory" or "io".

TensorRT 10.3 to 11 and TensorRT-RTX differ in little that a strongly typed network meets; the differences are in
`_make_network`, `_load_timing_cache` and `RUNTIMES`.
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
import threading
import time
import warnings
from pathlib import Path

# Subscripted when the module is loaded, which the other Callable of Python 3.8 does not allow.
from typing import Any, Callable

from ppexport.device.agent import JobError, event
from ppexport.device.machine import memory_bytes, read_text
from ppexport.errors import EXIT_GATE_FAILED, EXIT_UNAVAILABLE
from ppexport.files import atomic_path, sha256_file, write_text

MODEL, ENGINE, LOG, TIMING_CACHE, LAYERS = "model.onnx", "model.engine", "build.log", "timing.cache", "layers.json"
RUNTIMES = ("tensorrt", "tensorrt_rtx")
LISTING = re.compile(r"^(Layers:|Engine Layer Information:?)$", re.MULTILINE)
"""The title of the layer list in the log: TensorRT-RTX's, TensorRT's."""
OUT_OF_MEMORY = re.compile(r"out of ?memory|memory allocation|MEM_ALLOC", re.IGNORECASE)
ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")
Say = Callable[[str, str], object]


class BuildError(JobError):
    """Why there is no engine."""

    def __init__(self, kind: str, message: str, errors: Any = ()) -> None:
        super().__init__(kind, message, errors)
        self.exit_code = EXIT_UNAVAILABLE if kind == "no-tensorrt" else EXIT_GATE_FAILED


def import_tensorrt(runtime: str | None) -> Any:
    """The module *runtime*, or the first of RUNTIMES that works. Raises BuildError of kind "no-tensorrt"."""
    for name in (runtime,) if runtime else RUNTIMES:
        try:
            trt = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):
            continue
        # The wheels `tensorrt` of some package indexes are empty shells.
        if hasattr(trt, "Builder"):
            return trt
    wanted = runtime or " or ".join(RUNTIMES)
    raise BuildError(
        "no-tensorrt",
        f"this machine has no {wanted} for {sys.executable}: on a Jetson TensorRT comes with JetPack, for the Python "
        "of the system (a venv needs --system-site-packages)",
    )


class Log:
    """What TensorRT says: warnings and errors to the caller, the layer list aside, everything worth keeping in a text.

    Verbose messages, a hundred thousand per network, are dropped but for the layer list that ends a build.
    """

    def __init__(self, trt: Any, say: Say) -> None:
        """*say* receives the severity, "warning" or "error", and the text of what a caller should know."""
        self.lines: list[str] = []
        self.listing: list[str] = []
        self.errors: list[str] = []
        names = {trt.ILogger.INTERNAL_ERROR: "error", trt.ILogger.ERROR: "error", trt.ILogger.WARNING: "warning"}
        lock = threading.Lock()
        outer = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            """Called by TensorRT, from several threads."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity == trt.ILogger.VERBOSE:
                    if LISTING.search(text):
                        outer.listing = text.splitlines()
                    return
                name = names.get(severity, "info")
                with lock:
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

    def activation_bytes(self) -> int | None:
        """What a run takes beside the weights, as the builder says."""
        found = [int(number) for number in ACTIVATIONS.findall("\n".join(self.lines))]
        return max(found) if found else None

    def text(self) -> str:
        """The messages and the layer list."""
        return "\n".join([*self.lines, *self.listing]) + "\n"


def _make_monitor(trt: Any) -> Any:
    """A progress monitor that prints an event for every phase, at most one per percent."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called by TensorRT, from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.told: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase], self.told[phase] = steps, 0
            event("progress", phase=phase, step=0, steps=steps)

        def step_complete(self, phase: str, step: int) -> bool:
            steps = max(self.steps.get(phase, 1), 1)
            percent = 100 * (step + 1) // steps
            if percent > self.told.get(phase, 0):
                self.told[phase] = percent
                event("progress", phase=phase, step=step + 1, steps=steps)
            return True

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.get(phase, 1)
            if self.told.get(phase, 0) < 100:
                event("progress", phase=phase, step=steps, steps=steps)

    return Monitor()


def _make_network(trt: Any, builder: Any) -> Any:
    """A strongly typed network: from TensorRT 11 on, and in TensorRT-RTX, there is no other, and maybe no flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def _parser_errors(parser: Any) -> list[dict[str, str]]:
    """What the parser objects to: node, operator and text."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        texts = {"node": "node_name", "operator": "node_operator", "text": "desc"}
        # TensorRT 10.3 has all three; a method that a version lacks leaves its text empty.
        found.append({key: str(getattr(error, name, str)()) for key, name in texts.items()})
    return found


def _parse(trt: Any, builder: Any, log: Log, model: bytes) -> Any:
    """The network of the ONNX *model*. Raises BuildError of kind "parse"."""
    network = _make_network(trt, builder)
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse(model):
        # The parser owns the weights that the network refers to.
        return network, parser
    errors = _parser_errors(parser)
    first = errors[0] if errors else {"node": "", "operator": "", "text": (log.errors or ["no reason given"])[0]}
    where = f" at {first['operator']} {first['node']}".rstrip() if first["operator"] or first["node"] else ""
    raise BuildError("parse", f"TensorRT {trt.__version__} cannot read the model{where}: {first['text']}", errors)


def _load_timing_cache(trt: Any, config: Any, path: Path) -> None:
    """Let the builder use the timings in *path*, if there are some of this version and device, and keep new ones."""
    kept = path.read_bytes() if path.is_file() else b""
    # A cache of another version is refused by one of these two; an empty one always works.
    for data in (kept, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _configure(trt: Any, builder: Any, request: dict[str, Any], cache: Path) -> Any:
    """The builder's configuration, and the monitor, which must live as long."""
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
    _load_timing_cache(trt, config, cache)
    slots = request["slots"]
    for length in slots["lengths"] if slots else ():
        profile = builder.create_optimization_profile()
        profile.set_shape(slots["name"], (1, length), (1, length), (1, length))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError("build", f"TensorRT refuses {length} as a length of {slots['name']}")
    monitor = _make_monitor(trt)
    config.progress_monitor = monitor
    return config, monitor


def _driver_call(library: Any, name: str, *arguments: Any) -> bool:
    """Whether a function of the CUDA driver worked."""
    return bool(getattr(library, name)(*arguments) == 0)


def describe_gpu() -> dict[str, str | None]:
    """GPU name, compute capability and driver version, by the CUDA driver; null where there is none."""
    unknown: dict[str, str | None] = {"gpu": None, "compute_capability": None, "driver": None}
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return unknown
    number, device = ctypes.c_int(), ctypes.c_int()
    if not _driver_call(cuda, "cuInit", 0) or not _driver_call(cuda, "cuDeviceGet", ctypes.byref(device), 0):
        return unknown
    name = ctypes.create_string_buffer(256)
    parts = []
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    for attribute in (75, 76):
        if not _driver_call(cuda, "cuDeviceGetAttribute", ctypes.byref(number), attribute, device):
            return unknown
        parts.append(str(number.value))
    _driver_call(cuda, "cuDeviceGetName", name, len(name), device)
    _driver_call(cuda, "cuDriverGetVersion", ctypes.byref(number))
    return {
        "gpu": name.value.decode(errors="replace"),
        "compute_capability": ".".join(parts),
        "driver": f"{number.value // 1000}.{number.value % 1000 // 10}",
    }


def _check_memory(request: dict[str, Any]) -> None:
    """Raise BuildError of kind "memory" where the model cannot fit."""
    need, free = request["activation_bytes"], memory_bytes("MemAvailable")
    if need and free is not None and need > free:
        raise BuildError(
            "memory",
            f"a run takes about {need / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: export a smaller size",
        )


def _inspect(trt: Any, log: Log, plan: bytes) -> list[Any] | None:
    """The layers of the engine by its inspector; None where there is no GPU to load it on."""
    if describe_gpu()["gpu"] is None:
        return None
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return layers if isinstance(layers, list) else []


def _listed_layers(listing: list[str]) -> list[dict[str, str]] | None:
    """The layers as the builder's log lists them, for a machine without a GPU."""
    layers = []
    for line in listing:
        found = re.match(r"Name: (.*?), LayerType: (\w+)", line)
        if found:
            tactic = re.search(r"TacticName: ([^,]*)", line)
            layers.append(
                {"Name": found.group(1), "LayerType": found.group(2), "TacticName": tactic.group(1) if tactic else ""}
            )
    return layers or None


def _build_plan(trt: Any, request: dict[str, Any], log: Log, folder: Path) -> tuple[bytes, float]:
    """The serialised engine and the seconds it took; the timing cache is kept."""
    model = (folder / MODEL).read_bytes()
    if hashlib.sha256(model).hexdigest() != request["onnx_sha256"]:
        raise BuildError("io", f"{MODEL} does not match the hash in the request: send it again")
    _check_memory(request)
    builder = trt.Builder(log.logger)
    network, parser = _parse(trt, builder, log, model)
    cache = folder / TIMING_CACHE
    config, monitor = _configure(trt, builder, request, cache)
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

    Returns the outcome: what the engine depends on (`run_facts`), its hash, the seconds it took, the bytes that a run
    takes beside the weights, and the device. Raises BuildError; the log is written all
    the same.
    """
    trt = import_tensorrt(request["runtime"])
    # TensorRT-RTX has timing caches that do nothing, and says so at every call.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*Timing cache")
    log = Log(trt, lambda severity, text: event("log", severity=severity, text=text))
    try:
        plan, seconds = _build_plan(trt, request, log, folder)
        layers = _inspect(trt, log, plan) or _listed_layers(log.listing)
    finally:
        write_text(folder / LOG, log.text())
    with atomic_path(folder / ENGINE) as temporary:
        temporary.write_bytes(plan)
    write_text(folder / LAYERS, json.dumps({"Layers": layers}) + "\n")
    return {
        "runtime": trt.__name__,
        "tensorrt": trt.__version__,
        **describe_gpu(),
        "engine_sha256": sha256_file(folder / ENGINE),
        "seconds": round(seconds, 3),
        "activation_bytes": log.activation_bytes(),
        "device": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "board": read_text(Path("/proc/device-tree/model")),
            "l4t": (read_text(Path("/etc/nv_tegra_release")) or "").partition("\n")[0] or None,
            "memory_bytes": memory_bytes("MemTotal"),
        },
    }
