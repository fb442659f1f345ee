"""What a TensorRT engine depends on: the field `engine` of its artifact's manifest, and this machine beside it.

    runtime             "tensorrt" or "tensorrt_rtx", the Python module
    tensorrt            its version; an engine runs on this one alone, as far as its parts are known
    gpu                 the GPU's name; null for an engine of TensorRT-RTX that was built without one
    compute_capability  e.g. "8.7", null as above
    driver              newest CUDA version of the driver that built it, e.g. "12.6"; an older one is refused
    source              {"name": artifact folder, "onnx_sha256"}: the ONNX artifact it was built from
    tf32                whether products of fp32 may run in TF32; false for parity
    workspace_mb, optimization_level, seconds, activation_bytes
                        how it was built, and what that took
    profiles            capacities, in the order of the engine's optimisation profiles; one for a fixed capacity
    attention_fused     whether the layer list shows attention in one kernel; null without a list
    layers              number of layers, null without a list; the list is in `layers.json`
    signature           HMAC-SHA256 by the user's key over the whole manifest, which holds the engine's hash

Loading an engine runs the code in it, so only those that this user built are loaded unasked. The key is a file of 32
random bytes in the user's configuration folder, readable by the user alone and made with the first engine; an engine
whose signature is missing or made with another key needs `--trust`. Copying the key to a board makes engines that were
assembled here trusted there.

Standard library only: this file runs on devices.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ppexport.backends.tensorrt.run_builder import RUNTIMES
from ppexport.device.artifact import Manifest
from ppexport.errors import ArtifactError, InputError, present

KEY = "engine.key"
KEY_BYTES = 32
SIGNATURE = "signature"


@dataclass(frozen=True)
class Machine:
    """What must be as it was when the engine was built."""

    runtime: str
    tensorrt: str
    gpu: str | None
    compute_capability: str | None
    driver: str | None


def machine_of(manifest: Manifest) -> Machine:
    """The machine that built the engine of *manifest*. Raises ArtifactError for a manifest that does not say."""
    found = {field.name: manifest.engine.get(field.name) for field in fields(Machine)}
    texts = all(isinstance(value, (str, type(None))) for value in found.values())
    if found["runtime"] not in RUNTIMES or found["tensorrt"] is None or not texts:
        raise ArtifactError("the manifest does not say which TensorRT and GPU the engine is for: build it again")
    return Machine(**found)  # type: ignore[arg-type]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _same_version(a: str, b: str) -> bool:
    """Whether two versions agree as far as both go: trtexec prints three parts, Python modules up to four."""
    pairs = list(zip(_numbers(a), _numbers(b)))
    return len(pairs) > 1 and all(x == y for x, y in pairs)


def differences(built: Machine, here: Machine) -> list[str]:
    """What keeps an engine that *built* made from running *here*, for people; empty where nothing does."""
    found = []
    if built.runtime != here.runtime or not _same_version(built.tensorrt, here.tensorrt):
        found.append(f"{built.runtime} {built.tensorrt}, here is {here.tensorrt}")
    # An engine of TensorRT-RTX that was built without a GPU is for all that it knows.
    if built.gpu is not None and built.gpu != here.gpu:
        found.append(f"GPU {built.gpu}, here is {here.gpu}")
    if built.compute_capability is not None and built.compute_capability != here.compute_capability:
        found.append(f"compute capability {built.compute_capability}, here is {here.compute_capability}")
    if built.driver and here.driver and _numbers(here.driver) < _numbers(built.driver):
        found.append(f"a driver for CUDA {built.driver}, here is one for {here.driver}")
    return found


def check_machine(name: str, manifest: Manifest, here: Machine) -> None:
    """Raise ArtifactError, with the command that rebuilds it, where the engine artifact *name* is for another machine.

    Called before the engine is loaded: TensorRT may crash on a foreign one.
    """
    foreign = differences(machine_of(manifest), here)
    if foreign:
        source = manifest.engine.get("source")
        known = source.get("name") if isinstance(source, dict) else None
        raise ArtifactError(
            f"{name} was built for another machine ({'; '.join(foreign)}): build it here with "
            f"`ppexport build {known or 'ONNX_ARTIFACT'} -o {name}`"
        )


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
    """Raise InputError unless this user built the engine artifact *name*, or says *trust*."""
    if not trust and not is_own(manifest):
        raise InputError(
            f"{name} is an engine that this user did not build, and loading an engine runs the code in it: "
            "build it here, or say --trust if you know where it comes from"
        )
