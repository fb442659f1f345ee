"""The files of onnxruntime-web that a page is made with: which they are, and where this machine has them.

They come from npm's package `onnxruntime-web`, which carries three times as many in other arrangements. A page takes
those without a bundle, because a bundle starts its threads from `blob:` addresses, which the page forbids. Only files
with the hashes below are taken, so whoever could change a folder on this machine cannot change a page.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from ppexport.errors import InputError, PpexportError, UnavailableError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
WASM = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""{file: SHA-256} of what computes on a CPU."""
WEBGPU = {
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
"""The same of what computes on a GPU."""


def how_to_get() -> str:
    """What brings the files to a place where `read_runtime` looks, for the end of a sentence."""
    prefix = sys.prefix if sys.prefix != sys.base_prefix else "."
    return (
        f"npm install --ignore-scripts --prefix {shlex.quote(prefix)} {PACKAGE}@{VERSION}, or name a folder that has "
        "it: --ort DIR"
    )


def read_runtime(given: Path | None, webgpu: bool) -> dict[str, bytes]:
    """{name: content} of the runtime's files, which have the pinned hashes.

    Args:
        given: the package's folder or its folder `dist`. None looks for `node_modules/onnxruntime-web` in the current
            folder, in its parents, and in this Python environment, and takes the first that is complete.
        webgpu: with the files that compute on a GPU, 27 MB.

    Raises:
        InputError: *given* lacks a file, or has another one of that name.
        UnavailableError: the same of the places where the package is looked for, or none has it.
    """
    wanted = {**WASM, **WEBGPU} if webgpu else WASM
    if given is not None:
        dist = given / "dist"
        return _read(dist if dist.is_dir() else given, wanted, InputError)
    wrong: PpexportError | None = None
    for dist in _usual_places():
        try:
            return _read(dist, wanted, UnavailableError)
        except UnavailableError as error:
            wrong = wrong or error
    raise wrong or UnavailableError(f"{PACKAGE} {VERSION}, which computes in the page, is not here: {how_to_get()}")


def _usual_places() -> Iterator[Path]:
    here = Path.cwd()
    for folder in dict.fromkeys((here, *here.parents, Path(sys.prefix))):
        dist = folder / "node_modules" / PACKAGE / "dist"
        if dist.is_dir():
            yield dist


def _read(dist: Path, wanted: dict[str, str], failure: type[PpexportError]) -> dict[str, bytes]:
    found = {}
    for name, expected in wanted.items():
        try:
            content = (dist / name).read_bytes()
        except OSError as error:
            raise failure(f"{dist / name} cannot be read ({error.strerror}): {how_to_get()}") from None
        if hashlib.sha256(content).hexdigest() != expected:
            raise failure(f"{dist / name} is not that of {PACKAGE} {VERSION}: {how_to_get()}")
        found[name] = content
    return found
