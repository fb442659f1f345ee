"""The program that measures on a device: one file, made of this package's own modules, so that here and there the very
same code is timed.

It needs Python 3.8 to 3.13, NumPy 1.17 or newer and the runtime of the artefact. Equal sources make equal bytes.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import ppexport

ROOT = Path(ppexport.__file__).parent
MODULES = (
    "__init__", "artifact", "errors", "files", "mask", "picture", "wire",
    "backends/__init__", "backends/base", "backends/denormals",
    *(f"backends/onnx/{name}" for name in ("__init__", "external", "runner", "session")),
    *(f"backends/openvino/{name}" for name in ("__init__", "runner", "saturation", "session")),
    *(f"backends/tensorrt/{name}" for name in (
        "__init__", "cuda", "engine_builder", "facts", "runner", "session", "trust",
    )),
    *(f"profile/{name}" for name in (
        "__init__", "child", "job", "launch", "names", "onboard", "runtimes", "subject",
    )),
    *(f"profile/agent/{name}" for name in (
        "__init__", "android", "board", "clock", "header", "jetson", "journal", "machine", "measure", "plan", "power",
        "sensors", "tegrastats",
    )),
)  # fmt: skip
"""All that a measurement imports of ppexport."""
NAMES = tuple("ppexport" + f"/{name}".replace("/__init__", "").replace("/", ".") for name in MODULES)
"""The same as Python imports them."""
MAIN = "profile/archive_main"
"""What the archive runs."""
LONG_AGO = (1980, 1, 1, 0, 0, 0)


def make_archive() -> bytes:
    """The archive, for `python3 agent.pyz`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in {"__main__": MAIN, **{f"ppexport/{name}": name for name in MODULES}}.items():
            text = (ROOT / f"{source}.py").read_text(encoding="utf-8")
            archive.writestr(zipfile.ZipInfo(f"{name}.py", LONG_AGO), text, zipfile.ZIP_DEFLATED)
    return stream.getvalue()
