"""Artefact folders, put in place whole or not at all. Standard library only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppexport.artifact import MANIFEST, parse_manifest
from ppexport.errors import ArtifactError, InputError
from ppexport.files import check_writable, naming


def check_target(out: Path) -> None:
    """Raise InputError unless *out* is new, empty or an older artefact, and can be written."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} exists and is not a folder")
    if out.is_dir() and any(out.iterdir()):
        try:
            manifest = parse_manifest((out / MANIFEST).read_text(encoding="utf-8"), str(out / MANIFEST))
        except (OSError, UnicodeDecodeError, ArtifactError):
            raise InputError(f"{out} is not empty and holds no artefact: name another folder") from None
        foreign = sorted({p.name for p in out.iterdir()} - {MANIFEST, *manifest.files})
        if foreign:
            raise InputError(f"{out} holds {foreign[0]}, which no export wrote: move it away or name another folder")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder")


def replace_folder(new: Path, out: Path) -> None:
    """Put the finished folder *new* in the place of *out*; an older artefact there goes only when *new* is in place."""
    if not out.exists():
        os.rename(new, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    os.rename(out, old / out.name)
    try:
        os.rename(new, out)
    except OSError:
        os.rename(old / out.name, out)
        old.rmdir()
        raise
    shutil.rmtree(old)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of *out* when the block ends without an error, else is removed."""
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder = work / "artifact"
        folder.mkdir()
        with naming(out):
            yield folder
            replace_folder(folder, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def artifact_target(out: str | Path) -> Path:
    """The absolute path of the artefact folder *out*. Raises InputError where none can be made."""
    path = Path(os.path.abspath(out))
    if path.parent.is_dir():
        check_writable(path)
    if path == Path.cwd():
        raise InputError("the artefact folder cannot be the current folder: name a new one")
    check_target(path)
    return path
