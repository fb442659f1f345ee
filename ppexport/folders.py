"""Folders that one process at a time writes into: artifacts, put in place whole or not at all, and runs.

Whoever writes into a folder holds it first (`flock`), before it decides anything, and a process that ends, however it
does, holds nothing any more. Without `fcntl` (Windows) nothing is held. Standard library only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ppexport.device.artifact import FORMAT, MANIFEST, Manifest, parse_manifest
from ppexport.errors import ArtifactError, InputError
from ppexport.files import check_writable, naming, read_limited_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_TRIES = 100
MAX_JSON = 1 << 26
"""Bytes of a file that is read to see whose it is; a report is about 50 kB."""
NEW, OLD = "artifact", "old"
"""In the hidden folder of an export: the artifact that is being made, and the one that it replaces."""


@contextmanager
def held(folder: Path, doing: str, *, parents: bool = False) -> Iterator[None]:
    """*folder* for this process alone while the block runs; one that this call made is removed if it is then empty.

    Args:
        folder: is made if there is none.
        doing: what another process that holds the folder is doing, for the error, such as "writes into".
        parents: whether the folders above it are made as well.

    Raises:
        InputError: another process holds the folder, or it cannot be made or locked.
    """
    made, handle, tries = False, None, 0
    try:
        while handle is None:
            tries += 1
            try:
                made = made or not folder.exists()
                folder.mkdir(parents=parents, exist_ok=True)
                handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)) if fcntl is not None else -1
            except FileNotFoundError as error:
                if not folder.parent.is_dir():
                    raise InputError(f"{folder.parent} is not a folder") from None
                # Its last owner may remove it in between, but where no folder can be made, none ever can.
                if tries == MAX_TRIES:
                    raise InputError(f"{folder} cannot be made: {error.strerror}") from None
                continue
            except (FileExistsError, NotADirectoryError):
                raise InputError(f"{folder} cannot be a folder: there is a file of that name") from None
            except OSError as error:
                raise InputError(f"{folder} cannot be used: {error.strerror}") from None
            if handle >= 0:
                try:
                    locked = _lock(handle, folder, doing)
                except InputError:
                    # It may be another process's, which has to find it in its place.
                    made = False
                    raise
                if not locked:
                    # Its last owner removed it in between.
                    os.close(handle)
                    handle = None
        yield
    finally:
        # Also where a signal ends this process between making the folder and locking it.
        if made:
            with suppress(OSError):
                folder.rmdir()
        if handle is not None and handle >= 0:
            os.close(handle)


def _lock(handle: int, folder: Path, doing: str) -> bool:
    """Lock the open *folder*; False where that is no folder of this name any more. Raises InputError."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False
    except BlockingIOError:
        raise InputError(f"another process {doing} {folder}: wait for it, or name another output") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be locked ({error.strerror}): name a folder on another disk") from None


@contextmanager
def work_beside(out: Path, purpose: str) -> Iterator[Path]:
    """A hidden empty folder beside *out*, which this process alone has; removed at the end.

    What a process left in it that was killed is removed first, but for an artifact that was on its way out of *out*:
    that goes back. Raises InputError where another process works at the same *out*.
    """
    work = out.with_name(f".{out.name}.{purpose}")
    if work.is_symlink():
        raise InputError(f"{work} is a link, where ppexport keeps what is unfinished: remove it")
    with held(work, f"is making {out} in"):
        if (work / OLD).is_dir() and not out.exists():
            os.rename(work / OLD, out)
        _empty(work)
        try:
            yield work
        finally:
            _empty(work)
            # Also one that another process left.
            with suppress(OSError):
                work.rmdir()


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


def check_target(out: Path) -> Manifest | None:
    """The manifest of the artifact in *out*, None where that is new or empty.

    Raises InputError for anything else that is there, and where *out* cannot be written.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} exists and is not a folder")
    manifest = None
    if out.is_dir() and any(out.iterdir()):
        try:
            manifest = parse_manifest((out / MANIFEST).read_text(encoding="utf-8"), str(out / MANIFEST))
        except (OSError, UnicodeDecodeError, ArtifactError):
            raise InputError(f"{out} is not empty and holds no artifact: name another folder") from None
        foreign = sorted({p.name for p in out.iterdir()} - {MANIFEST, *manifest.files})
        if foreign:
            raise InputError(f"{out} holds {foreign[0]}, which no export wrote: move it away or name another folder")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder")
    return manifest


def check_same(
    out: Path, backend: str, name: str, arch: str, scale: int, weights: str, size: list[int], way_out: str
) -> None:
    """Raise InputError, which ends with *way_out*, where *out* holds an artifact of another model, size or backend.

    *weights* is the SHA-256 of the model's weights.
    """
    old = check_target(out)
    if old is None:
        return
    differs = {
        f"the model {old.name} x{old.scale}": (old.name, old.arch, old.scale) != (name, arch, scale),
        f"other weights of {old.name}": old.weights.get("sha256") != weights,
        f"size {old.size[0]}x{old.size[1]}": old.size != size,
        f"the backend {old.backend}": old.backend != backend,
    }
    for what, other in differs.items():
        if other:
            raise InputError(f"{out} holds an artifact of {what}: {way_out}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of *out* when the block ends without an error, else is removed.

    Raises InputError where another process makes the same *out*, and as `check_target`.
    """
    with work_beside(out, "export") as work:
        check_target(out)
        new, old = work / NEW, work / OLD
        new.mkdir()
        with naming(out):
            yield new
            if not out.exists():
                os.rename(new, out)
                return
            os.rename(out, old)
            try:
                os.rename(new, out)
            except OSError:
                os.rename(old, out)
                raise
            shutil.rmtree(old)


def artifact_target(out: str | Path) -> Path:
    """The absolute path of the artifact folder *out*. Raises InputError where none can be made."""
    if not isinstance(out, (str, os.PathLike)):
        raise InputError(f"the artifact folder is a path, not {out!r}")
    path = Path(os.path.abspath(out))
    if path.parent.is_dir():
        check_writable(path)
    if path == Path.cwd():
        raise InputError("the artifact folder cannot be the current folder: name a new one")
    check_target(path)
    return path


def is_json_of(path: Path, kind: str) -> bool:
    """Whether the file *path* is a JSON object whose field `format` is *kind*, of `MAX_JSON` bytes at most."""
    try:
        data = read_limited_json(path, MAX_JSON, kind)
    except InputError:
        return False
    return isinstance(data, dict) and data.get("format") == kind


def is_artifact(path: Path) -> bool:
    """Whether the folder *path* holds an artifact's manifest."""
    return is_json_of(path / MANIFEST, FORMAT)


@dataclass(frozen=True)
class Run:
    """What a command that keeps several files in a folder writes there."""

    noun: str
    """"parity run": what a sentence calls it."""
    names: tuple[str, ...]
    """Of its files, as patterns of a shell."""
    begun: Callable[[Path], bool]
    """Whether a folder that is not empty holds such a run: the names alone could be anybody's."""


@contextmanager
def run_folder(folder: Path, run: Run) -> Iterator[None]:
    """*folder*, made if there is none, for one *run* of this process; removed at the end if it is then empty.

    Raises InputError where another process has it, or where it holds anything that is not of such a run.
    """
    with held(folder, "writes into", parents=True):
        # Not hidden ones: a file manager's, or what a killed process left.
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        foreign = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in run.names)]
        if foreign:
            raise InputError(
                f"{folder} holds {foreign[0]}, which no {run.noun} wrote: move it away or name another folder"
            )
        if names and not run.begun(folder):
            raise InputError(f"{folder} is not empty and holds no {run.noun}: name another folder")
        yield
