"""Runs what boards get under the Pythons that boards have: `make test-boards`.

For every row of BOARDS whose Python is found, as `pythonX.Y` in the PATH or below ~/.pyenv, a fresh environment gets
that NumPy and ONNX Runtime, imports the whole archive, and measures a small artifact the way `profile --on` does. A
Python that is not found is named and skipped; the exit code is 1 if none is found or any fails.

    python tests/boards.py [PYTHON [ARTIFACT]]

tries one Python as it is, with the runtime of an artifact that exists.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sshd_profiles import BRIEF, write_enlarger

from ppexport.device.target import choose
from ppexport.errors import PpexportError
from ppexport.profile.remote import RemoteProfile, Settings, prepare_remote
from ppexport.remote.detached import Pace, Telling
from ppexport.remote.ssh import open_device

BOARDS = (
    ("3.8", "numpy==1.17.4", "onnxruntime==1.10.0"),
    ("3.10", "numpy==1.26.4", "onnxruntime==1.19.2"),
    ("3.13", "numpy", "onnxruntime"),
)
"""Python, NumPy, ONNX Runtime: the first two of JetPack 5; the usual of JetPack 6; the newest that the index has."""
HOME = Path.home()
OPSET = 13
"""ONNX Runtime 1.10 reads no newer one than 15."""


def find_python(version: str) -> str | None:
    """An interpreter of *version*, None where there is none."""
    below = sorted(HOME.glob(f".pyenv/versions/{version}.*/bin/python3"))
    for found in (*map(str, below), shutil.which(f"python{version}")):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        if found and subprocess.run([found, "-c", code], capture_output=True, text=True).stdout.strip() == version:
            return found
    return None


def measure(python: Path, place: Path, artifact: Path) -> str:
    """Measure *artifact* in *python*, in a job below *place*; returns what was found, for people."""
    # Where the job's folder lies.
    os.environ["HOME"] = str(place)
    request = prepare_remote(
        choose(artifact, None, 1, False), BRIEF, place / "run", None, "local", Settings(str(python))
    )  # fmt: skip
    telling = Telling(print, lambda doing: None)
    with open_device("local") as here:
        found = RemoteProfile(here, request, telling, Pace(0.1, ())).run(300)
    (subject,) = found.subjects
    versions = {name: found.data["versions"][name] for name in ("python", "numpy")} | subject["runtime_versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{named}: {subject['summary']['count']} queries, p90 {subject['summary']['p90_ms']:.2f} ms"


def works(python: Path, place: Path, artifact: Path | None = None) -> bool:
    """Whether *python* imports the archive and measures *artifact*, else a small graph; prints what was found."""
    try:
        print(measure(python, place, artifact or write_enlarger(place / "enlarger", OPSET)), flush=True)
    except PpexportError as error:
        print(f"{python}: {error}")
        return False
    return True


def main(given: list[str]) -> int:
    """Try the Python and the artifact *given*, or every board; returns the exit code."""
    tried = failed = 0
    if given:
        with tempfile.TemporaryDirectory() as name:
            return int(not works(Path(given[0]).absolute(), Path(name), *map(Path, given[1:])))
    for version, *packages in BOARDS:
        found = find_python(version)
        if found is None:
            print(f"Python {version}: not found, skipped")
            continue
        tried += 1
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            python = place / "venv" / "bin" / "python3"
            subprocess.run([found, "-m", "venv", str(place / "venv")], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
            failed += not works(python, place)
    return int(failed > 0 or not tried)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
