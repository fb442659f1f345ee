"""The per-layer times that TensorRT's trtexec exports.

Written from the documented format of `trtexec --exportProfile=FILE --separateProfileRun`, untested on hardware: a list
whose first entry counts the runs, then one object for every layer:

    [{"count": 200}, {"name": "/layers.0/.../MatMul", "timeMs": 12.3, "averageMs": 0.06, "medianMs": 0.06,
      "percentage": 0.4}, ...]

A layer's name joins what it was fused from with " + ", wraps foreign subgraphs as "{ForeignNode[first...last]}" and
marks copies as "Reformatting CopyNode for ...".
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ppexport.errors import InputError, printable
from ppexport.profile.layers.spans import Operation

MAX_BYTES = 1 << 26
PATH = re.compile(r"/[A-Za-z_][\w./]*")


def paths_in(name: str) -> list[str]:
    """The names of nodes of the ONNX file in the name of a layer."""
    # Between the first and the last node of a foreign subgraph stand three dots.
    return PATH.findall(name.replace("...", " "))


def layer_kind(name: str) -> str:
    """What a layer is, as far as its name tells."""
    if "ForeignNode" in name or name.startswith("{"):
        return "fused subgraph"
    if "Reformat" in name:
        return "copy"
    last = paths_in(name)
    return re.sub(r"_\d+$", "", last[-1].rpartition("/")[2]) if last else "layer"


def parse_profile(data: Any) -> list[Operation]:
    """The layers of an exported profile. Raises InputError for anything else."""
    try:
        layers = [entry for entry in data if "name" in entry]
        found = []
        for entry in layers:
            name = printable(str(entry["name"]))[:2000]
            ms = float(entry.get("medianMs", entry["averageMs"]))
            if not 0 <= ms < 1e7:
                raise ValueError
            found.append(Operation(name, layer_kind(name), ms, tuple(paths_in(name))))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise InputError("not a profile as trtexec exports it") from None
    if not found:
        raise InputError("a profile of TensorRT without layers")
    return found


def read_profile(path: Path) -> list[Operation]:
    """The layers in the file *path*. Raises InputError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path} is not readable JSON") from None
    return parse_profile(data)
