"""Puts the headers of ONNX Runtime, TensorRT and CUDA into this Python environment, for the C++ of docs/examples.

    python tools/example_headers.py

The libraries' own downloads are on hosts that a build machine may not reach, so these are packages of npm and PyPI that
hold copies of the headers: 150 MB to fetch, 8 MB kept, in `include/ppexport-examples` of the environment.
Archives with another hash are refused, and nothing of a package is run.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from onnxruntime_web import find_npm

from ppexport.device.artifact import sha256_path
from ppexport.errors import InputError, PpexportError
from ppexport.files import atomic_path

FOLDER = Path(sys.prefix) / "include" / "ppexport-examples"
NPM = "com.github.asus4.onnxruntime@0.4.9"
"""A plugin for Unity, with Microsoft's headers of ONNX Runtime 1.29 (MIT) in its framework for iOS."""
WHEELS = ("kernel-lens==2.0.1", "nvidia-cuda-runtime==13.5.37", "nvidia-cuda-crt==13.5.37")
"""The first has NVIDIA's headers of TensorRT 10.14 (Apache-2.0), the others are NVIDIA's own."""
PLACES = {
    "onnxruntime": "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers/",
    "tensorrt": "kernel_lens/include/tensorrt/",
    "cuda": "nvidia/cu13/include/",
}
"""{folder of `FOLDER`: where its headers are in an archive}."""
HASHES = {
    NPM: "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d",
    WHEELS[0]: "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0",
    WHEELS[1]: "df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d",
    WHEELS[2]: "e898b7f73d3035fa89915a3f7bf3b54a73e90249746111aed295822c4729bb29",
}


def archive_of(package: str, work: Path) -> Path:
    """The archive of *package*, fetched into the new folder *work*. Raises InputError for one with another hash."""
    work.mkdir()
    if package == NPM:
        command = [find_npm(work), "pack", "--silent", "--ignore-scripts", package]
    else:
        # Wheels alone: preparing a source package would run code of it.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", package]
    subprocess.run(command, check=True, cwd=work, stdout=subprocess.DEVNULL)
    (archive,) = (*work.glob("*.tgz"), *work.glob("*.whl"))
    if (found := sha256_path(archive)) != HASHES[package]:
        raise InputError(f"{archive.name} has the SHA-256 {found}, not that of the package which was looked at")
    return archive


def files_in(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The names in *archive*, and what the headers of `PLACES` hold."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if wanted(name))
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            stream = packed.extractfile(member) if wanted(member.name) else None
            if stream is not None:
                with closing(stream):
                    yield member.name, stream.read()


def wanted(name: str) -> tuple[str, str] | None:
    """(folder, file inside it) of the header *name* of an archive, None for anything else."""
    for folder, place in PLACES.items():
        inside = name.removeprefix(place)
        # CUDA's own internal headers are one folder deep, and no name may lead out of the folder.
        if inside != name and inside.endswith((".h", ".hpp")) and ".." not in inside.split("/"):
            return folder, inside
    return None


def fetch() -> Path:
    """Fetch all headers unless they are there; returns their folder.

    Raises InputError, OSError, subprocess.CalledProcessError, tarfile.TarError or zipfile.BadZipFile.
    """
    if (FOLDER / "complete").is_file():
        return FOLDER
    with tempfile.TemporaryDirectory() as name:
        for number, package in enumerate(HASHES):
            for header, content in files_in(archive_of(package, Path(name) / str(number))):
                folder, inside = wanted(header) or ("", "")
                target = FOLDER / folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(target) as temporary:
                    temporary.write_bytes(content)
    (FOLDER / "complete").write_text("\n".join(HASHES) + "\n")
    return FOLDER


if __name__ == "__main__":
    try:
        print(f"headers for docs/examples: {fetch()}")
    except (PpexportError, OSError, subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile) as error:
        sys.exit(f"the headers for docs/examples cannot be had: {error}")
