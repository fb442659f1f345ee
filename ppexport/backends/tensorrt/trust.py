"""Which engines this user built: loading an engine runs the code in it, so only those are loaded unasked.

A file of 32 random bytes in the user's configuration folder, readable by the user alone, is made with the first
engine. The manifest of every engine is signed with it (HMAC-SHA256 over the whole manifest, which holds the engine's
hash), and an engine whose signature is missing or made with another key needs `--trust`. Copying the key to a board
makes engines that were assembled here trusted there.

Standard library only: this file runs on devices.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from dataclasses import asdict, replace
from pathlib import Path

from ppexport.artifact import Manifest
from ppexport.errors import InputError, present

KEY = "engine.key"
KEY_BYTES = 32
SIGNATURE = "signature"


def key_file() -> Path:
    """Where the user's key lies: $XDG_CONFIG_HOME/ppexport or ~/.config/ppexport."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".config") / "ppexport" / KEY


def read_key() -> bytes | None:
    """The user's key, None where there is none yet. Raises InputError for a key that others can read or could write."""
    path = key_file()
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    with os.fdopen(handle, "rb") as stream:
        facts = os.fstat(stream.fileno())
        # Windows has neither owners nor groups in this sense.
        private = os.name == "nt" or (facts.st_uid == os.getuid() and not facts.st_mode & 0o077)
        if not stat.S_ISREG(facts.st_mode) or not private:
            raise InputError(f"{path} is not a file for its owner alone: chmod 600 it, or delete it for a new key")
        key = stream.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise InputError(f"{path} is damaged: delete it, and build the engines again")
    return key


def make_key() -> bytes:
    """The user's key, made now if there is none. Raises InputError where it cannot be kept."""
    if (key := read_key()) is not None:
        return key
    path = key_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Whole or not at all: under another name first, then linked, which fails where another process was faster.
        temporary = path.with_name(f".{KEY}.{secrets.token_hex(8)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES))
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return present(read_key(), f"the key {path}, which was written just now,")


def _digest(manifest: Manifest, key: bytes) -> str:
    """The HMAC of *manifest* without its signature."""
    data = asdict(manifest)
    data["engine"].pop(SIGNATURE, None)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def sign(manifest: Manifest) -> Manifest:
    """*manifest*, signed by this user."""
    return replace(manifest, engine={**manifest.engine, SIGNATURE: _digest(manifest, make_key())})


def is_own(manifest: Manifest) -> bool:
    """Whether this user signed *manifest*."""
    key, signature = read_key(), manifest.engine.get(SIGNATURE)
    if key is None or not isinstance(signature, str):
        return False
    return hmac.compare_digest(signature.encode(), _digest(manifest, key).encode())


def check_trust(name: str, manifest: Manifest, trust: bool) -> None:
    """Raise InputError unless this user built the engine artefact *name*, or says *trust*."""
    if not trust and not is_own(manifest):
        raise InputError(
            f"{name} is an engine that this user did not build, and loading an engine runs the code in it: "
            "build it here, or say --trust if you know where it comes from"
        )
