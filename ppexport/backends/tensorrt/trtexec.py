"""TensorRT's command line program in place of its Python API: the arguments of a request, and what its log tells.

Every choice is an explicit flag: TensorRT 11 changed trtexec's defaults. Nothing is timed (`--skipInference`), so the
defaults of its measurements do not matter. From TensorRT 11 on `--stronglyTyped` is accepted and changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ppexport.backends.tensorrt.run_builder import ENGINE, LAYERS, MODEL, TIMING_CACHE

ARGUMENTS = "trtexec.txt"
"""The arguments, one a line; in the work folder of a build by trtexec only."""
PROBE = "PATH=$PATH:/usr/src/tensorrt/bin; command -v trtexec > /dev/null && echo yes || echo no"
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
    """The arguments that build the engine of *request*, as `run_builder` describes it, in its folder."""
    made = [
        f"--onnx={MODEL}",
        f"--saveEngine={ENGINE}",
        f"--timingCacheFile={TIMING_CACHE}",
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
    """What a log of trtexec tells. It does not name the driver."""

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
