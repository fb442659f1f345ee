"""Which runtime an artefact is timed in, and how it is opened there."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ppexport.device.artifact import Artifact, read_artifact
from ppexport.device.runner import Runner, check_threads
from ppexport.errors import InputError

RUNTIMES = {
    "onnxruntime": ("onnx", ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")),
    "openvino": ("onnx", ("openvino",)),
    "tensorrt": ("tensorrt", ("tensorrt", "tensorrt_rtx_cu12")),
    "coreml": ("coreml", ("coremltools",)),
}
"""Runtime -> backend of the artefacts it runs, packages whose versions matter."""
DEVICES = {"onnxruntime": "CPU", "openvino": "CPU", "tensorrt": "GPU", "coreml": "ALL"}
"""Where a runtime computes unless told otherwise: an execution provider, a device, compute units."""
PROVIDERS = (
    "CPU", "CUDA", "Tensorrt", "NvTensorRTRTX", "ROCM", "MIGraphX", "OpenVINO", "Dnnl", "VitisAI", "QNN", "Nnapi",
    "CoreML", "Dml", "Xnnpack", "WebGpu", "WebNN", "Js", "ACL", "ArmNN", "Rknpu", "SNPE", "VSINPU", "CANN", "Azure",
)  # fmt: skip
"""Execution providers as ONNX Runtime 1.15 to 1.32 spell them (`onnxruntime.get_all_providers()`, which lists those too
that a build lacks), so that a misspelt one is told from a missing one also where another machine measures."""
NAME = re.compile(r"([a-z]+)(?::([A-Za-z0-9_.]{1,40}))?")
SILENT = ("Azure",)
"""Providers that are always listed and compute nothing here."""


@dataclass(frozen=True)
class Target:
    """An artefact in a runtime."""

    artifact: str
    """Path of the artefact folder."""
    runtime: str
    device: str
    threads: int | None = None
    """None lets the runtime choose."""
    trust: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for threads that are none; the machine that measures knows its cores."""
        check_threads(self.threads, here=False)

    @property
    def name(self) -> str:
        """For people: "onnxruntime" or, where it is not the usual device, "onnxruntime:CUDA"."""
        return self.runtime if self.device == DEVICES[self.runtime] else f"{self.runtime}:{self.device}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def takes(runtime: str, flavour: str) -> bool:
    """Whether *runtime* takes graphs of *flavour*: OpenVINO refuses what is written for ONNX Runtime's kernels."""
    return runtime != "openvino" or flavour != "ort"


def installed(backend: str, flavour: str) -> list[str]:
    """Every runtime on this machine that runs artefacts of *backend* and *flavour*, as `--runtime` takes them."""
    if backend != "onnx":
        return [name for name, (made_for, _) in RUNTIMES.items() if made_for == backend]
    found = []
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        providers = [name.replace("ExecutionProvider", "") for name in onnxruntime.get_available_providers()]
        # The CPU first: it is what the others are read against.
        found += ["onnxruntime", *(f"onnxruntime:{name}" for name in providers if name not in ("CPU", *SILENT))]
    if find_spec("openvino") is not None and takes("openvino", flavour):
        found.append("openvino")
    return found


def _device_of(runtime: str, text: str | None) -> str:
    """The device of *runtime* that a user calls *text*, None for the usual one. Raises InputError for none that exists.

    Capitals of a provider do not matter: NNAPI is what ONNX Runtime calls Nnapi. Whether a machine has it is not asked.
    """
    if text is None:
        return DEVICES[runtime]
    if runtime == "tensorrt" and text != DEVICES[runtime]:
        raise InputError(f"a TensorRT engine runs on the GPU that it was built for: tensorrt:{text} cannot be chosen")
    if runtime != "onnxruntime":
        return text
    names = {name.lower(): name for name in PROVIDERS}
    if text.lower() not in names:
        near = get_close_matches(text.lower(), names, 1)
        hint = f"did you mean onnxruntime:{names[near[0]]}?" if near else f"it has {', '.join(PROVIDERS)}"
        raise InputError(f"ONNX Runtime has no provider called {text!r}: {hint}")
    return names[text.lower()]


def choose(path: Path, wanted: str | None, threads: int | None, trust: bool) -> list[Target]:
    """The targets that `--runtime` *wanted* means for the artefact *path*: None its own, "all", or a list.

    Raises ArtifactError for a damaged artefact, InputError for a runtime that is not known or runs no such artefact.
    """
    manifest = read_artifact(path).manifest
    backend, flavour = manifest.backend, manifest.flavour
    own = [name for name, (made_for, _) in RUNTIMES.items() if made_for == backend]
    names = own[:1] if wanted is None else installed(backend, flavour) if wanted == "all" else wanted.split(",")
    targets = []
    for name in names:
        match = NAME.fullmatch(name.strip())
        if match is None or match[1] not in RUNTIMES:
            raise InputError(f"a runtime is one of {', '.join(RUNTIMES)}, or such as onnxruntime:CUDA, not {name!r}")
        if match[1] not in own:
            raise InputError(f"{path} is for backend {backend}, which {match[1]} does not run: {', '.join(own)}")
        if not takes(match[1], flavour):
            raise InputError(f"{path} is of flavour ort, for ONNX Runtime alone: export it with --flavour portable")
        targets.append(Target(str(path.resolve()), match[1], _device_of(match[1], match[2]), threads, trust))
    if len(set(targets)) < len(targets):
        raise InputError("--runtime names the same runtime twice")
    return targets


def open_target(target: Target) -> Runner:
    """The runner of *target*. Raises PpexportError as `open_artifact`, UnavailableError for a missing runtime."""
    check_threads(target.threads)
    artifact = read_artifact(Path(target.artifact))
    if target.runtime == "onnxruntime":
        from ppexport.backends.onnx.run_onnxruntime import OnnxRunner

        return OnnxRunner(artifact, target.threads, target.device)
    if target.runtime == "openvino":
        from ppexport.backends.openvino.run_openvino import OpenVinoRunner

        return OpenVinoRunner(artifact, target.device, target.threads)
    if target.runtime == "tensorrt":
        from ppexport.backends.tensorrt.run_engine import TensorRTRunner

        return TensorRTRunner(artifact, target.trust)
    from ppexport.backends.coreml.run_mac import CoreMLMacRunner

    return CoreMLMacRunner(artifact, target.device)


def facts(target: Target, artifact: Artifact) -> dict[str, Any]:
    """What a result says of *target*: the artefact, its hash and size, the runtime. Its version is the machine's."""
    m = artifact.manifest
    folder = [f for f in artifact.path.rglob("*") if f.is_file()]
    # A folder's name may hold bytes that are no text, and a result is text.
    called = os.fsencode(artifact.path.name).decode(errors="backslashreplace")
    return {
        "name": f"{called} in {target.name}",
        "artifact": called,
        "model": m.name,
        "arch": m.arch,
        "scale": m.scale,
        "size": m.size,
        "backend": m.backend,
        "precision": m.precision,
        "flavour": m.flavour,
        "mask": m.mask,
        "capacities": m.capacities,
        "tokens": m.tokens,
        "files": m.files,
        "weights_sha256": m.weights["sha256"],
        "card_sha256": m.card_sha256,
        "bytes": sum(f.stat().st_size for f in folder),
        "made_with": m.versions,
        "runtime": target.runtime,
        "runtime_device": target.device,
        "threads": target.threads,
    }
