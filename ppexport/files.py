"""Files that are whole or absent, plain names, and hashes. Standard library only."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ppexport.errors import InputError

RUN_MODULE = (
    "import runpy, sys; sys.path[:1] == [''] and sys.path.pop(0); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a *module* of this package as a program.

    Unlike `python -m` it does not look for modules in the current folder, which may hold anybody's numpy.py.
    """
    return [sys.executable, "-c", RUN_MODULE, module, *arguments]


def _new_temporary(target: Path, called: Path | None = None) -> Path:
    """A new hidden file beside *target*, with its suffix. Raises InputError, of *called*, where none can be made."""
    try:
        # A name that no file can have must fail now, not when the finished file is put in its place.
        with suppress(FileNotFoundError):
            os.stat(target)
        # A part of the name only: with all of it a long name would get too long.
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:20]}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise InputError(f"{called or target} cannot be written: {error.strerror}{full_disk(error)}") from None
    os.close(handle)
    return Path(name)


def _plain_target(target: Path) -> Path:
    """*target* without links. Raises InputError for a folder or a device."""
    target = Path(os.path.realpath(target))
    # Unlike a Path's methods these raise nothing for a name that no file can have.
    if os.path.exists(target) and not os.path.isfile(target):
        kind = "is a folder, and a file name is needed" if os.path.isdir(target) else "is not a plain file"
        raise InputError(f"{target} {kind}")
    return target


def check_writable(target: Path, called: Path | None = None) -> None:
    """Raise InputError, before the work whose result goes there, unless a file or folder *target* could be made.

    *called* is what the user named, where that is not *target*.
    """
    _new_temporary(Path(os.path.realpath(target)), called).unlink()


def check_file_target(target: Path) -> None:
    """Raise InputError, before the work whose result goes there, where `atomic_path` could not write *target*."""
    check_writable(_plain_target(target))


@contextmanager
def naming(target: Path, *hidden: Path) -> Iterator[None]:
    """Let an OSError of the block that names no file, or one of the *hidden* ones, name *target*."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) in map(str, hidden):
            error.filename = str(target)
        raise


def full_disk(error: OSError) -> str:
    """Which disk is full and how much room it has, in brackets after a space; empty for another error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    # An error that names no file is mostly of one that exists for a moment only.
    named = isinstance(error.filename, (str, bytes))
    mount = os.path.realpath(os.fsdecode(error.filename) if named else tempfile.gettempdir())
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    return f" (the disk at {mount} has {shutil.disk_usage(mount).free / 1e6:.1f} MB left)"


def system_sentence(error: OSError) -> str:
    """What *error* says: the file, the reason, and the disk where one is full."""
    full = full_disk(error)
    name = error.filename or ("a temporary file or standard output" if full else "a file")
    if name == "a file" and isinstance(error, FileNotFoundError):
        # Only the look-up of the current folder fails so without a name.
        return "the current folder no longer exists: change into another one"
    return f"{name}: {error.strerror or error}{full}"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside *target* that replaces it when the block ends without an error, else is removed.

    Of a link the file it points to is replaced. Raises InputError for a folder, a device, or where nothing can be
    written.
    """
    target = _plain_target(target)
    temporary = _new_temporary(target)
    try:
        # mkstemp makes private files; a result has the permissions of any new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with naming(target, temporary):
            yield temporary
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write *text* to *target* atomically, in UTF-8; of a file name that is none in it the odd bytes are escaped."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_limited_text(path: Path, limit: int, what: str, errors: str = "strict") -> str:
    """The text of a file that may come from anywhere.

    Args:
        path: The file.
        limit: The most bytes that are read, so that no file fills the memory.
        what: What the file should be, for messages, such as "a lab file".
        errors: What to do with bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        InputError: The file cannot be read, is larger than *limit*, or is not UTF-8.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise InputError(f"{path} is larger than {limit} bytes, the most that is read of {what}")
        return data.decode("utf-8", errors)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not {what}: it is not text in UTF-8") from None


def read_limited_json(path: Path, limit: int, what: str) -> Any:
    """The JSON value in a file that may come from anywhere; the arguments and errors are `read_limited_text`'s.

    Bytes that are not UTF-8 are replaced, since they can only stand in texts. Raises InputError also for text that is
    not JSON, among it NaN and Infinity, which Python would accept, and for nesting that no file of ours has.
    """
    try:
        return json.loads(read_limited_text(path, limit, what, "replace"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not {what}: it is not readable JSON ({error})") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def cache_folder(name: str) -> Path:
    """The folder *name* in ppexport's part of the user's cache folder, `$XDG_CACHE_HOME` or `~/.cache`.

    It need not exist. Raises InputError for a user without a home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, as the convention for these folders says.
    folder = base if os.path.isabs(base) else os.path.expanduser(os.path.join("~", ".cache"))
    if not os.path.isabs(folder):
        raise InputError("this user has no home folder: name a folder for what is kept in XDG_CACHE_HOME")
    return Path(folder, "ppexport", name)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def finite(value: Any) -> Any:
    """*value* for JSON, which knows no infinity: figures that are not finite become null."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_plain_name(name: str) -> bool:
    """Whether *name* is a file name and nothing more: no folder, no parent, no drive, not hidden."""
    return bool(name) and name == os.path.basename(name) and not name.startswith(".") and not set(name) & set("\\:\0")
