"""TensorRT's command line program: builds in place of the Python API, and the time by layer that it exports.

Every choice of a build is an explicit flag: TensorRT 11 changed trtexec's defaults. Nothing is timed
(`--skipInference`), so the defaults of its measurements do not matter. From TensorRT 11 on `--stronglyTyped` is
accepted and changes nothing.

What it exports of layers was written from the documented format of `--exportProfile=FILE --separateProfileRun`,
untested on hardware: a list whose first entry counts the runs, then one object for every layer:

    [{"count": 200}, {"name": "/layers.0/.../MatMul", "timeMs": 12.3, "averageMs": 0.06, "medianMs": 0.06,
      "percentage": 0.4}, ...]

A layer's name joins what it was fused from with " + ", wraps foreign subgraphs as "{ForeignNode[first...last]}" and
marks copies as "Reformatting CopyNode for ...".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from ppexport.backends.backend import Operation
from ppexport.backends.tensorrt.run_builder import ENGINE, LAYERS, MODEL, TIMING_CACHE
from ppexport.errors import InputError, UnavailableError, printable
from ppexport.files import read_limited_json

PROBE = "PATH=$PATH:/usr/src/tensorrt/bin; command -v trtexec > /dev/null && echo yes || echo no"
LAUNCH = 'PATH=$PATH:/usr/src/tensorrt/bin; export PATH; exec trtexec "$@"'
"""JetPack installs the program where no PATH leads."""
BANNER = re.compile(r"\[TensorRT v(\d{1,9})\]")
VERSION = re.compile(r"\bTensorRT version: ([0-9][0-9.]{0,20})")
DEVICE = re.compile(r"\bSelected Device: ([^\n]{1,100})")
CAPABILITY = re.compile(r"\bCompute Capability: ([0-9]+\.[0-9]+)")
SECONDS = re.compile(r"\bEngine (?:built in|generation completed in) ([0-9]+(?:\.[0-9]+)?) sec")
ERROR = re.compile(r"^(?:\[[0-9][^\]\n]{1,40}\] )?\[E\] ([^\n]{1,2000})", re.MULTILINE)
METHOD = "trtexec's exported profile: median of every layer (parsed as documented, untested on hardware)"
MAX_BYTES = 1 << 26
PATH = re.compile(r"/[A-Za-z_][\w./]*")


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
    for number, length in enumerate(request["slots"]):
        made.append(f"--profile={number}")
        made += [f"--{which}Shapes=slots:1x{length}" for which in ("min", "opt", "max")]
    return made


def command(request: dict[str, Any]) -> list[str]:
    """The command that runs trtexec on a device, wherever it is installed there."""
    return ["sh", "-c", LAUNCH, "trtexec", *arguments(request)]


class Said(NamedTuple):
    """What a log of trtexec tells. It does not name the driver."""

    passed: bool
    """The program says so itself; its exit code alone has been 0 for engines that do not load."""
    tensorrt: str
    gpu: str | None
    compute_capability: str | None
    seconds: float
    errors: list[str]


def read_log(text: str) -> Said:
    """Read trtexec's printable log."""

    def found(pattern: re.Pattern[str]) -> str | None:
        match = pattern.search(text)
        return match[1].strip() if match else None

    version, banner = found(VERSION), found(BANNER)
    if version is None and banner is not None:
        # The first line has it as a number: 100300 is 10.3.0.
        number = int(banner)
        version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return Said(
        "&&&& PASSED" in text,
        version or "unknown",
        found(DEVICE),
        found(CAPABILITY),
        float(found(SECONDS) or 0),
        [match.strip() for match in ERROR.findall(text)],
    )


def layer_times(target: Any, artifact: Any, images: Any) -> list[Operation]:
    """Raises UnavailableError: TensorRT is profiled by a program of its own, whose file `read_profile` reads."""
    raise UnavailableError(
        "TensorRT reports the time of its layers only through trtexec: run it with "
        "--exportProfile=FILE --separateProfileRun, and pass --layer-times FILE"
    )


def read_profile(path: Path) -> list[Operation]:
    """The layers in the file *path* that trtexec exported, in the order of execution. Raises InputError."""
    data, found = read_limited_json(path, MAX_BYTES, "a profile of trtexec"), []
    try:
        for entry in (entry for entry in data if "name" in entry):
            name, ms = printable(str(entry["name"]))[:2000], float(entry.get("medianMs", entry["averageMs"]))
            if not 0 <= ms < 1e7:
                raise ValueError
            # Between the first and the last node of a foreign subgraph stand three dots.
            paths = tuple(PATH.findall(name.replace("...", " ")))
            found.append(Operation(name, _kind_of(name, paths), ms, paths))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise InputError("this is not a profile as trtexec exports it") from None
    if not found:
        raise InputError("this profile of TensorRT has no layers")
    return found


def _kind_of(name: str, paths: tuple[str, ...]) -> str:
    if "ForeignNode" in name or name.startswith("{"):
        return "fused subgraph"
    if "Reformat" in name:
        return "copy"
    return re.sub(r"_\d+$", "", paths[-1].rpartition("/")[2]) if paths else "layer"
