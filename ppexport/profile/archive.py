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
    "__init__", "errors", "files",
    *(str(path.relative_to(ROOT).with_suffix(""))
      for pattern in ("device/*.py", "backends/__init__.py", "backends/*/__init__.py", "backends/*/run*.py")
      for path in sorted(ROOT.glob(pattern))),
)  # fmt: skip
"""All that runs on a device: the room `device`, and what each backend runs its files with."""
NAMES = tuple("ppexport" + f"/{name}".replace("/__init__", "").replace("/", ".") for name in MODULES)
"""The same as Python imports them."""
MAIN = "device/archive_main"
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
