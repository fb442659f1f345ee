"""Time by layer in TensorRT, as its program trtexec exports it.

Written from the documented format of `trtexec --exportProfile=FILE --separateProfileRun`, untested on hardware: a list
whose first entry counts the runs, then one object for every layer:

    [{"count": 200}, {"name": "/layers.0/.../MatMul", "timeMs": 12.3, "averageMs": 0.06, "medianMs": 0.06,
      "percentage": 0.4}, ...]

A layer's name joins what it was fused from with " + ", wraps foreign subgraphs as "{ForeignNode[first...last]}" and
marks copies as "Reformatting CopyNode for ...".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ppexport.backends.backend import Operation
from ppexport.errors import InputError, UnavailableError, printable
from ppexport.files import read_limited_json

METHOD = "trtexec's exported profile: median of every layer (parsed as documented, untested on hardware)"
MAX_BYTES = 1 << 26
PATH = re.compile(r"/[A-Za-z_][\w./]*")


def layer_times(target: Any, artifact: Any, images: Any) -> list[Operation]:
    """Raises UnavailableError: TensorRT is profiled by a program of its own, whose file `read_profile` reads."""
    raise UnavailableError(
        "TensorRT reports the time of its layers only through trtexec: run it with "
        "--exportProfile=FILE --separateProfileRun, and pass --layer-times FILE"
    )


def read_profile(path: Path) -> list[Operation]:
    """The layers in the file *path* that trtexec exported. Raises InputError."""
    return parse_profile(read_limited_json(path, MAX_BYTES, "a profile of trtexec"))


def parse_profile(data: Any) -> list[Operation]:
    """The layers of an exported profile, in the order of execution. Raises InputError for anything else."""
    found = []
    try:
        for entry in (entry for entry in data if "name" in entry):
            name, ms = printable(str(entry["name"]))[:2000], float(entry.get("medianMs", entry["averageMs"]))
            if not 0 <= ms < 1e7:
                raise ValueError
            found.append(Operation(name, _kind_of(name), ms, tuple(_paths_in(name))))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise InputError("this is not a profile as trtexec exports it") from None
    if not found:
        raise InputError("this profile of TensorRT has no layers")
    return found


def _paths_in(name: str) -> list[str]:
    """The names of nodes of the ONNX file in the name of a layer."""
    # Between the first and the last node of a foreign subgraph stand three dots.
    return PATH.findall(name.replace("...", " "))


def _kind_of(name: str) -> str:
    if "ForeignNode" in name or name.startswith("{"):
        return "fused subgraph"
    if "Reformat" in name:
        return "copy"
    last = _paths_in(name)
    return re.sub(r"_\d+$", "", last[-1].rpartition("/")[2]) if last else "layer"
