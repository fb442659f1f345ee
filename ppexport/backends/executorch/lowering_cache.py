"""Lowered programs of earlier exports, since lowering takes minutes: the same one is not done twice.

They lie in `ppexport/executorch` of the user's cache folder, `$XDG_CACHE_HOME` or `~/.cache`; deleting it costs time
only. Each is named by a hash of all that it was made from, and begins with the hash of what follows, so that a damaged
one is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ppexport.errors import InputError
from ppexport.files import atomic_path, cache_folder

FOLDER = "executorch"
KEPT = 16
"""Programs that are kept, the newest; each has a few megabytes."""
PREFIX = 65
"""A hash and a line break."""


def kept_or_made(key: str, make: Callable[[], bytes]) -> bytes:
    """The program kept as *key*, a hash of what it is made from, else what *make* returns, which then is kept.

    A folder that cannot be written keeps nothing, and neither does a user without a home folder.
    """
    try:
        path = cache_folder(FOLDER) / f"{key}.lowered"
    except InputError:
        return make()
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    head, program = content[:PREFIX], content[PREFIX:]
    if program and head == f"{hashlib.sha256(program).hexdigest()}\n".encode():
        return program
    program = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(f"{hashlib.sha256(program).hexdigest()}\n".encode() + program)
        entries = sorted(path.parent.glob("*.lowered"), key=lambda entry: entry.stat().st_mtime)
        for old in entries[:-KEPT]:
            old.unlink()
    except (OSError, InputError):
        # Another process may have removed what this one looks at, or the disk is full. The program is made.
        pass
    return program
