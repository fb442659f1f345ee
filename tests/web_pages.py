"""Small pages, where the browser is, and a server of folders; the fixtures of these are in `web_fixtures`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from conftest import exported_once
from small_networks import small_network

from ppexport.backends.web import BACKEND

SIZE = (32, 32)
"""Of the small page: tiles overlap from 24 pixels on."""
CSP = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'"
)
"""What every page says of itself, and every server of ours says besides."""
NO_RUNTIME = BACKEND.lacking()
needs_runtime = pytest.mark.skipif(bool(NO_RUNTIME), reason=NO_RUNTIME)


def small_page(factory: pytest.TempPathFactory, layers: int = 1, size: tuple[int, int] = SIZE, **wish: Any) -> Path:
    """A page of the bundled x2's first layers, made once in a run of the tests. Never changed by a test."""
    if NO_RUNTIME:
        pytest.skip(NO_RUNTIME)
    return exported_once(factory, small_network(layers=layers), backend="web", size=size, **wish)


def chromium() -> str:
    """The path of Chromium or Chrome on this machine; the test is skipped where there is none."""
    names = (os.environ.get("PPEXPORT_BROWSER", ""), "chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if name and (path := which(name))), None)
    if found is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    return found


class _Static(SimpleHTTPRequestHandler):
    extensions_map = {".mjs": "text/javascript", ".wasm": "application/wasm"} | SimpleHTTPRequestHandler.extensions_map
    isolated = True

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", CSP)
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class _Plain(_Static):
    isolated = False


@contextmanager
def served(folder: Path, *, isolated: bool = True, port: int = 0) -> Iterator[str]:
    """The address of *folder* on a static server of the loopback; *isolated* with the headers that allow threads."""
    handler = partial(_Static if isolated else _Plain, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
