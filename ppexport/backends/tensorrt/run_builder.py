"""ONNX -> TensorRT engine, in one file that needs Python 3.8 and TensorRT alone, so that it can be sent to a board.

    python3 engine_builder.py request.json

It is run in a work folder; every name in the request is a plain file name in that folder. The request:

    version             1
    onnx, onnx_sha256   the model, with its precision written into it, and its hash
    engine, log, timing_cache, device, result
                        the files to write; a timing cache that is there already is read first
    precision, tf32     "fp32" or "fp16", for the record; whether fp32 products may run in TF32
    slots               null, or {"name": "slots", "lengths": [..]}: one optimisation profile for every length
    workspace_mb, optimization_level, runtime
                        null, or the limit, the level, and "tensorrt" or "tensorrt_rtx"
    activation_bytes    (may be left out) what the tensors of a run take, estimated; an error where that is not free

It prints one JSON object per line: {"event": "progress", "phase", "step", "steps"}, {"event": "log", "severity",
"text"} for warnings and errors, and at last {"event": "done", ...} or {"event": "failed", "kind", "message",
"errors"}, kind "no-tensorrt", "parse", "build", "memory" or "io". Exit codes: 0 done, 3 no TensorRT, 1 the others.

TensorRT 10.3 to 11 and TensorRT-RTX differ in little that a strongly typed network meets; the differences are in
`make_network`, `load_timing_cache` and `RUNTIMES`.
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
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # For annotations only, which Python 3.8 never evaluates.
    from collections.abc import Callable

    Emit = Callable[[dict[str, Any]], None]

VERSION = 1
RUNTIMES = ("tensorrt", "tensorrt_rtx")
EXIT_FAILED, EXIT_NO_TENSORRT = 1, 3
MAX_ONNX_BYTES = 1 << 31
FUSED = re.compile(r"mha|fmha|attention_fus|fused_attention", re.IGNORECASE)
"""In the name, type or tactic of a layer that computes attention in one kernel."""
LISTING = re.compile(r"^(Layers:|Engine Layer Information:?)$", re.MULTILINE)
"""The title of the layer list in the log: TensorRT-RTX's, TensorRT's."""
ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")


class BuildError(Exception):
    """Why there is no engine."""

    def __init__(self, kind: str, message: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.kind, self.errors = kind, errors or []


def print_event(event: dict[str, Any]) -> None:
    """One JSON object on a line of standard output."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def write_file(path: Path, data: bytes) -> None:
    """Write *data*, so that *path* is whole or as it was."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(name, 0o644)
        os.replace(name, str(path))
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: Path, data: Any) -> None:
    """Write *data* as indented JSON."""
    write_file(path, (json.dumps(data, indent=2) + "\n").encode())


def is_plain(name: object) -> bool:
    """Whether *name* is a visible file name without a folder."""
    return isinstance(name, str) and bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", name))


def is_count(value: object, least: int = 1) -> bool:
    """Whether *value* is a whole number from *least* on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def read_request(path: Path) -> dict[str, Any]:
    """The checked request. Raises BuildError of kind "io"."""
    try:
        request = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildError("io", f"the request cannot be read: {error}") from None
    if not isinstance(request, dict) or request.get("version") != VERSION:
        raise BuildError("io", f"the request is not of version {VERSION}")
    for key in ("onnx", "engine", "log", "timing_cache", "device", "result"):
        if not is_plain(request.get(key)):
            raise BuildError("io", f"{key} in the request is not a plain file name: {request.get(key)!r}")
    slots = request.get("slots")
    lengths = slots.get("lengths") if isinstance(slots, dict) else None
    bad_slots = slots is not None and not (
        isinstance(lengths, list) and lengths and all(map(is_count, lengths)) and is_plain(slots.get("name"))
    )
    checks = {
        "onnx_sha256": isinstance(request.get("onnx_sha256"), str),
        "precision": request.get("precision") in ("fp32", "fp16"),
        "tf32": isinstance(request.get("tf32"), bool),
        "slots": not bad_slots,
        "runtime": request.get("runtime") in (None, *RUNTIMES),
        "workspace_mb": request.get("workspace_mb") is None or is_count(request["workspace_mb"]),
        "optimization_level": request.get("optimization_level") is None or is_count(request["optimization_level"], 0),
        "activation_bytes": request.get("activation_bytes") is None or is_count(request["activation_bytes"]),
    }
    for key, good in checks.items():
        if not good:
            raise BuildError("io", f"{key} in the request cannot be {request.get(key)!r}")
    return request


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

    def __init__(self, trt: Any, emit: Emit) -> None:
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
                        emit({"event": "log", "severity": name, "text": text})

        self.logger = Logger()

    def activation_bytes(self) -> int | None:
        """What a run takes beside the weights, as the builder says."""
        found = [int(number) for number in ACTIVATIONS.findall("\n".join(self.lines))]
        return max(found) if found else None

    def text(self) -> str:
        """The messages and the layer list."""
        return "\n".join([*self.lines, *self.listing]) + "\n"


def make_monitor(trt: Any, emit: Emit) -> Any:
    """A progress monitor that tells *emit* of every phase, at most once per percent."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called by TensorRT, from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.told: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase], self.told[phase] = steps, 0
            emit({"event": "progress", "phase": phase, "step": 0, "steps": steps})

        def step_complete(self, phase: str, step: int) -> bool:
            steps = max(self.steps.get(phase, 1), 1)
            percent = 100 * (step + 1) // steps
            if percent > self.told.get(phase, 0):
                self.told[phase] = percent
                emit({"event": "progress", "phase": phase, "step": step + 1, "steps": steps})
            return True

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.get(phase, 1)
            if self.told.get(phase, 0) < 100:
                emit({"event": "progress", "phase": phase, "step": steps, "steps": steps})

    return Monitor()


def make_network(trt: Any, builder: Any) -> Any:
    """A strongly typed network: from TensorRT 11 on, and in TensorRT-RTX, there is no other, and maybe no flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def parser_errors(parser: Any) -> list[dict[str, str]]:
    """What the parser objects to: node, operator and text."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        texts = {"node": "node_name", "operator": "node_operator", "text": "desc"}
        # TensorRT 10.3 has all three; a method that a version lacks leaves its text empty.
        found.append({key: str(getattr(error, name, str)()) for key, name in texts.items()})
    return found


def parse(trt: Any, builder: Any, log: Log, model: bytes) -> Any:
    """The network of the ONNX *model*. Raises BuildError of kind "parse"."""
    network = make_network(trt, builder)
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse(model):
        # The parser owns the weights that the network refers to.
        return network, parser
    errors = parser_errors(parser)
    first = errors[0] if errors else {"node": "", "operator": "", "text": (log.errors or ["no reason given"])[0]}
    where = f" at {first['operator']} {first['node']}".rstrip() if first["operator"] or first["node"] else ""
    raise BuildError("parse", f"TensorRT {trt.__version__} cannot read the model{where}: {first['text']}", errors)


def load_timing_cache(trt: Any, config: Any, path: Path) -> None:
    """Let the builder use the timings in *path*, if there are some of this version and device, and keep new ones."""
    kept = path.read_bytes() if path.is_file() else b""
    # A cache of another version is refused by one of these two; an empty one always works.
    for data in (kept, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def configure(trt: Any, builder: Any, network: Any, request: dict[str, Any], cache: Path, emit: Emit) -> Any:
    """The builder's configuration, and the monitor, which must live as long."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["tf32"]:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if request.get("workspace_mb") is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mb"] << 20)
    if request.get("optimization_level") is not None:
        config.builder_optimization_level = request["optimization_level"]
    load_timing_cache(trt, config, cache)
    slots = request.get("slots") or {"lengths": []}
    for length in slots["lengths"]:
        profile = builder.create_optimization_profile()
        profile.set_shape(slots["name"], (1, length), (1, length), (1, length))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError("build", f"TensorRT refuses {length} as a length of {slots['name']}")
    monitor = make_monitor(trt, emit)
    config.progress_monitor = monitor
    return config, monitor


def driver_call(library: Any, name: str, *arguments: Any) -> bool:
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
    if not driver_call(cuda, "cuInit", 0) or not driver_call(cuda, "cuDeviceGet", ctypes.byref(device), 0):
        return unknown
    name = ctypes.create_string_buffer(256)
    parts = []
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    for attribute in (75, 76):
        if not driver_call(cuda, "cuDeviceGetAttribute", ctypes.byref(number), attribute, device):
            return unknown
        parts.append(str(number.value))
    driver_call(cuda, "cuDeviceGetName", name, len(name), device)
    driver_call(cuda, "cuDriverGetVersion", ctypes.byref(number))
    return {
        "gpu": name.value.decode(errors="replace"),
        "compute_capability": ".".join(parts),
        "driver": f"{number.value // 1000}.{number.value % 1000 // 10}",
    }


def first_line(path: str) -> str | None:
    """The first line of a file of the system, None where it is missing."""
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ").splitlines()[0]
    except (OSError, IndexError):
        return None


def describe_device(trt: Any) -> dict[str, Any]:
    """What an engine depends on, and what a reader of its timings wants to know."""
    return {
        "runtime": trt.__name__,
        "tensorrt": trt.__version__,
        **describe_gpu(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "board": first_line("/proc/device-tree/model"),
        "l4t": first_line("/etc/nv_tegra_release"),
        "memory_bytes": memory_bytes("MemTotal"),
    }


def memory_bytes(field: str) -> int | None:
    """A line of /proc/meminfo. A Jetson's GPU and CPU share it."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def check_memory(request: dict[str, Any]) -> None:
    """Raise BuildError of kind "memory" where the model cannot fit."""
    need, free = request.get("activation_bytes"), memory_bytes("MemAvailable")
    if need and free is not None and need > free:
        raise BuildError(
            "memory",
            f"a run takes about {need / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: export a smaller size",
        )


def inspect(trt: Any, log: Log, plan: bytes) -> list[Any] | None:
    """The layers of the engine by its inspector; None where there is no GPU to load it on."""
    if describe_gpu()["gpu"] is None:
        return None
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return layers if isinstance(layers, list) else []


def listed_layers(listing: list[str]) -> list[dict[str, str]] | None:
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


def is_fused(layers: list[Any] | None) -> bool | None:
    """Whether some layer is attention in one kernel, as far as names tell; None without a layer list."""
    if not layers:
        return None
    keys = ("Name", "LayerType", "TacticName")
    return any(FUSED.search(str(layer.get(key, ""))) for layer in layers if isinstance(layer, dict) for key in keys)


def build_plan(trt: Any, request: dict[str, Any], log: Log, folder: Path, emit: Emit) -> tuple[bytes, float]:
    """The serialised engine and the seconds it took; the timing cache is kept."""
    source = folder / request["onnx"]
    if not source.is_file() or source.stat().st_size > MAX_ONNX_BYTES:
        raise BuildError("io", f"{request['onnx']} is missing or larger than {MAX_ONNX_BYTES} bytes")
    model = source.read_bytes()
    if hashlib.sha256(model).hexdigest() != request["onnx_sha256"]:
        raise BuildError("io", f"{request['onnx']} does not match the hash in the request: send it again")
    check_memory(request)
    builder = trt.Builder(log.logger)
    network, parser = parse(trt, builder, log, model)
    cache = folder / request["timing_cache"]
    config, monitor = configure(trt, builder, network, request, cache, emit)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    # Alive until here: the builder calls the monitor and reads the parser's weights.
    del monitor, parser
    if plan is None:
        reason = (log.errors or ["TensorRT gave no reason"])[0]
        memory = re.search(r"out of memory|memory allocation|MEM_ALLOC", " ".join(log.errors), re.IGNORECASE)
        raise BuildError("memory" if memory else "build", reason)
    kept = config.get_timing_cache()
    write_file(cache, b"" if kept is None else bytes(kept.serialize()))
    return bytes(plan), seconds


def build(request: dict[str, Any], folder: Path, emit: Emit = print_event) -> dict[str, Any]:
    """Build the engine of a checked *request* in *folder* and write its files; returns what `result.json` holds.

    Raises BuildError; the log is written all the same.
    """
    trt = import_tensorrt(request.get("runtime"))
    # TensorRT-RTX has timing caches that do nothing, and says so at every call.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*Timing cache")
    log = Log(trt, emit)
    try:
        device = describe_device(trt)
        write_json(folder / request["device"], device)
        plan, seconds = build_plan(trt, request, log, folder, emit)
        layers = inspect(trt, log, plan) or listed_layers(log.listing)
    finally:
        write_file(folder / request["log"], log.text().encode())
    slots = request.get("slots")
    result = {
        "version": VERSION,
        "runtime": device["runtime"],
        "tensorrt": device["tensorrt"],
        "gpu": device["gpu"],
        "compute_capability": device["compute_capability"],
        "driver": device["driver"],
        "onnx_sha256": request["onnx_sha256"],
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "engine_bytes": len(plan),
        "seconds": round(seconds, 3),
        "precision": request["precision"],
        "tf32": request["tf32"],
        "workspace_mb": request.get("workspace_mb"),
        "optimization_level": request.get("optimization_level"),
        "profiles": [{slots["name"]: [1, length]} for length in slots["lengths"]] if slots else [],
        "activation_bytes": log.activation_bytes(),
        "attention_fused": is_fused(layers),
        "layers": layers,
    }
    write_file(folder / request["engine"], plan)
    write_json(folder / request["result"], result)
    return result


def main(path: str, emit: Emit = print_event) -> int:
    """Build what the request file *path* asks for, beside it. Returns the exit code."""
    source = Path(path).resolve()
    try:
        result = build(read_request(source), source.parent, emit)
    except BuildError as error:
        emit({"event": "failed", "kind": error.kind, "message": str(error), "errors": error.errors})
        return EXIT_NO_TENSORRT if error.kind == "no-tensorrt" else EXIT_FAILED
    except MemoryError:
        emit({"event": "failed", "kind": "memory", "message": "the builder ran out of memory", "errors": []})
        return EXIT_FAILED
    except OSError as error:
        emit({"event": "failed", "kind": "io", "message": f"{error.filename}: {error.strerror}", "errors": []})
        return EXIT_FAILED
    emit({"event": "done", **{key: value for key, value in result.items() if key != "layers"}})
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 engine_builder.py request.json")
    sys.exit(main(sys.argv[1]))
