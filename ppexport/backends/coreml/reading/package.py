"""Opens a saved .mlpackage: a folder with a manifest, a model file and its weights."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.reading.data_types import ElementType
from ppexport.backends.coreml.reading.decode import Decoder
from ppexport.backends.coreml.reading.program import Package
from ppexport.backends.coreml.reading.weights import WeightFile
from ppexport.errors import ArtifactError

MANIFEST = "Manifest.json"
DATA = "Data"
MODEL_PREFIX = "@model_path/"
"""Where a program's file names start: the folder of the model file."""


def inside(base: Path, name: str) -> Path:
    """The file *name* below *base*. Raises ArtifactError where it would be outside, or is a link."""
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or PurePosixPath(name).is_absolute() or ".." in parts:
        raise ArtifactError(f"{name!r} is not a file inside the package")
    path = base
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ArtifactError(f"{path} is a link: a package holds plain files")
    return path


def model_file(path: Path) -> Path:
    """The model file of the package *path*. Raises ArtifactError where this is no package."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, UnicodeDecodeError):
        raise ArtifactError(f"{path} is not a Core ML package: it has no readable {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArtifactError(f"{path} is not a Core ML package: {MANIFEST} names no model") from None
    if not isinstance(entry, str):
        raise ArtifactError(f"{path} is not a Core ML package: {MANIFEST} names no model")
    return inside(path / DATA, entry)


def read_package(path: str | Path) -> Package:
    """The program of the package *path*, weights included. Raises ArtifactError for what cannot be read."""
    path = Path(path)
    model = model_file(path)
    files: dict[str, WeightFile] = {}

    def read_blob(name: str, offset: int, kind: ElementType, shape: tuple[int, ...]) -> NDArray[np.generic]:
        if not name.startswith(MODEL_PREFIX):
            raise ArtifactError(f"weights are below {MODEL_PREFIX}, not in {name!r}")
        if name not in files:
            files[name] = WeightFile(inside(model.parent, name.removeprefix(MODEL_PREFIX)))
        return files[name].read(offset, kind, shape)

    try:
        data = model.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} is not complete: {model.name} cannot be read ({error.strerror})") from None
    try:
        return Decoder(read_blob).package(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    except RecursionError:
        raise ArtifactError(f"{path}: the model file is damaged: it is nested without end") from None
