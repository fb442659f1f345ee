"""What a build left on a device -> the files that `engine_artifact` takes. Nothing of it is taken on trust."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ppexport.backends.tensorrt import trtexec
from ppexport.backends.tensorrt.trtexec import BuildFailed
from ppexport.files import write_text
from ppexport.remote.address import TransferError
from ppexport.remote.job import OUTPUT, Job
from ppexport.remote.output import parse_object, printable

MIB = 1 << 20
LIMITS = {"engine": 8192 * MIB, "log": 256 * MIB, "timing_cache": 1024 * MIB, "device": MIB, "result": 256 * MIB}
"""Bytes that each file of a request may have."""
TEXTS = ("runtime", "tensorrt", "gpu", "compute_capability", "driver")
"""Fields of a result that are texts, or null, and are printed."""
MAX_TEXT = 200
CHOSEN = ("onnx_sha256", "precision", "tf32", "workspace_mb", "optimization_level")
"""Fields of a result that repeat the request."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file from a device. Raises TransferError."""
    value = parse_object(path.read_bytes())
    if value is None:
        raise TransferError(f"{path.name} from the device is not a JSON object")
    return value


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Write *value* as JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_result(result: dict[str, Any], request: dict[str, Any], engine_sha256: str, engine_bytes: int) -> None:
    """Raise TransferError unless *result* tells of this request, and of the engine that arrived."""
    for name in TEXTS:
        value = result.get(name)
        if value is not None and not (isinstance(value, str) and len(value) <= MAX_TEXT):
            raise TransferError(f"the device's result has no usable {name}")
    seconds = result.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise TransferError("the device's result has no usable seconds")
    if not isinstance(result.get("attention_fused"), bool | None):
        raise TransferError("the device's result has no usable attention_fused")
    for name in CHOSEN:
        if result.get(name) != request[name]:
            raise TransferError(f"the device's result is that of another request: its {name} differs")
    if (result.get("engine_sha256"), result.get("engine_bytes")) != (engine_sha256, engine_bytes):
        raise TransferError("the engine that arrived is not the one that the device's result tells of")


def collect(job: Job, request: dict[str, Any], folder: Path) -> None:
    """Bring the files of a build that ended well into *folder*. Raises DeviceError, or BuildFailed for trtexec's."""
    engine = folder / request["engine"]
    digest = job.get(request["engine"], engine, LIMITS["engine"])
    if engine.stat().st_size == 0:
        raise BuildFailed("TensorRT says that the build went well, but its engine is an empty file")
    job.get(request["timing_cache"], folder / request["timing_cache"], LIMITS["timing_cache"])
    if job.has(trtexec.ARGUMENTS):
        _collect_trtexec(job, request, folder, digest)
    else:
        for part in ("log", "device", "result"):
            job.get(request[part], folder / request[part], LIMITS[part])
        write_object(folder / request["device"], read_object(folder / request["device"]))
    result = read_object(folder / request["result"])
    check_result(result, request, digest, engine.stat().st_size)
    write_object(folder / request["result"], result)
    log = folder / request["log"]
    write_text(log, printable(log.read_bytes()))


def _collect_trtexec(job: Job, request: dict[str, Any], folder: Path, digest: str) -> None:
    """Make of trtexec's log and layer list what `engine_builder` writes itself."""
    log = folder / request["log"]
    job.get(OUTPUT, log, LIMITS["log"])
    said = trtexec.read_log(printable(log.read_bytes()))
    if not said.passed:
        raise BuildFailed(said.errors[0] if said.errors else "trtexec ended well, but its log does not say so")
    layers = None
    if job.has(trtexec.LAYERS):
        listed = folder / trtexec.LAYERS
        job.get(trtexec.LAYERS, listed, LIMITS["result"])
        found = read_object(listed).get("Layers")
        layers = found if isinstance(found, list) else None
    size = (folder / request["engine"]).stat().st_size
    write_object(folder / request["result"], trtexec.result(request, said, digest, size, layers))
    known = {"runtime": "tensorrt", "tensorrt": said.tensorrt, "gpu": said.gpu}
    facts = job.transport.describe()
    write_object(
        folder / request["device"], {**known, "compute_capability": said.compute_capability, "driver": None, **facts}
    )
