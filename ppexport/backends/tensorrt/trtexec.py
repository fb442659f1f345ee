"""TensorRT's command line program in place of its Python API: the arguments of a request, and what its log tells.

Every choice is an explicit flag: TensorRT 11 changed trtexec's defaults. Nothing is timed (`--skipInference`), so the
defaults of its measurements do not matter. From TensorRT 11 on `--stronglyTyped` is accepted and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppexport.backends.tensorrt.run_builder import VERSION, is_fused
from ppexport.errors import EXIT_GATE_FAILED, ExportError, PpexportError, UnavailableError

LAYERS = "layers.json"
"""The file that trtexec writes the layer list to, in the work folder."""
ARGUMENTS = "trtexec.txt"
"""The arguments, one a line; in the work folder of a build by trtexec only."""
LAUNCH = 'PATH=$PATH:/usr/src/tensorrt/bin; export PATH; exec trtexec "$@"'
"""JetPack installs the program where no PATH leads."""
BANNER = re.compile(r"\[TensorRT v(\d+)\]")
FACTS = {
    "tensorrt": re.compile(r"\bTensorRT version: ([0-9][0-9.]{0,20})"),
    "gpu": re.compile(r"\bSelected Device: ([^\n]{1,100})"),
    "compute_capability": re.compile(r"\bCompute Capability: ([0-9]+\.[0-9]+)"),
}
SECONDS = re.compile(r"\bEngine (?:built in|generation completed in) ([0-9]+(?:\.[0-9]+)?) sec")
ERROR = re.compile(r"^(?:\[[0-9][^\]\n]{1,40}\] )?\[E\] ([^\n]{1,2000})", re.MULTILINE)


def arguments(request: dict[str, Any]) -> list[str]:
    """The arguments that build the engine of *request*, as `engine_builder` describes it, in its folder."""
    made = [
        f"--onnx={request['onnx']}",
        f"--saveEngine={request['engine']}",
        f"--timingCacheFile={request['timing_cache']}",
        "--stronglyTyped",
        "--skipInference",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={LAYERS}",
    ]
    if not request["tf32"]:
        made.append("--noTF32")
    if request["workspace_mb"] is not None:
        made.append(f"--memPoolSize=workspace:{request['workspace_mb']}")
    if request["optimization_level"] is not None:
        made.append(f"--builderOptimizationLevel={request['optimization_level']}")
    slots = request["slots"]
    for number, length in enumerate(slots["lengths"] if slots else []):
        shape = f"{slots['name']}:1x{length}"
        made += [f"--profile={number}", f"--minShapes={shape}", f"--optShapes={shape}", f"--maxShapes={shape}"]
    return made


def command(request: dict[str, Any]) -> list[str]:
    """The command that runs trtexec on a device, wherever it lies there."""
    return ["sh", "-c", LAUNCH, "trtexec", *arguments(request)]


@dataclass(frozen=True)
class Said:
    """What a log of trtexec tells."""

    passed: bool
    """The program says so itself; its exit code alone has been 0 for engines that do not load."""
    tensorrt: str
    gpu: str | None
    compute_capability: str | None
    seconds: float
    errors: list[str]


def dotted(banner: str) -> str:
    """The version in trtexec's first line, 100300 -> 10.3.0, where the log has no better one."""
    number = int(banner)
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def read_log(text: str) -> Said:
    """Read trtexec's printable log."""
    found = {name: match[1].strip() for name, pattern in FACTS.items() if (match := pattern.search(text))}
    banner, seconds = BANNER.search(text), SECONDS.search(text)
    return Said(
        passed="&&&& PASSED" in text,
        tensorrt=found.get("tensorrt") or (dotted(banner[1]) if banner and len(banner[1]) <= 9 else "unknown"),
        gpu=found.get("gpu"),
        compute_capability=found.get("compute_capability"),
        seconds=float(seconds[1]) if seconds else 0.0,
        errors=[match.strip() for match in ERROR.findall(text)],
    )


def result(
    request: dict[str, Any], said: Said, engine_sha256: str, engine_bytes: int, layers: list[Any] | None
) -> dict[str, Any]:
    """What `result.json` holds, as `engine_builder` writes it. trtexec does not name the driver."""
    slots = request["slots"]
    return {
        "version": VERSION,
        "runtime": "tensorrt",
        "tensorrt": said.tensorrt,
        "gpu": said.gpu,
        "compute_capability": said.compute_capability,
        "driver": None,
        "onnx_sha256": request["onnx_sha256"],
        "engine_sha256": engine_sha256,
        "engine_bytes": engine_bytes,
        "seconds": said.seconds,
        "precision": request["precision"],
        "tf32": request["tf32"],
        "workspace_mb": request["workspace_mb"],
        "optimization_level": request["optimization_level"],
        "profiles": [{slots["name"]: [1, length]} for length in slots["lengths"]] if slots else [],
        "attention_fused": is_fused(layers),
        "layers": layers,
    }


# What TensorRT's parser objects to, as one sentence that names the PyTorch module.
#
# Standard library only, but for a better guess at the module where the onnx package is installed.


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
