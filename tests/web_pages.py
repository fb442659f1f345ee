"""Small pages, where the browser is, and a server of folders; the fixtures of these are in `web_fixtures`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import exported_once
from small_networks import small_network

from ppexport.backends.web import BACKEND
from ppexport.backends.web.run_browser import find_browser
from ppexport.backends.web.run_server import POLICY

SIZE = (32, 32)
"""Of the small page: tiles overlap from 24 pixels on."""
NO_RUNTIME = BACKEND.lacking()
needs_runtime = pytest.mark.skipif(bool(NO_RUNTIME), reason=NO_RUNTIME)


def small_page(factory: pytest.TempPathFactory, layers: int = 1, size: tuple[int, int] = SIZE, **wish: Any) -> Path:
    """A page of the bundled x2's first layers, made once in a run of the tests. Never changed by a test."""
    if NO_RUNTIME:
        pytest.skip(NO_RUNTIME)
    return exported_once(factory, small_network(layers=layers), backend="web", size=size, **wish)


def chromium() -> str:
    """The path of Chromium or Chrome on this machine; the test is skipped where there is none."""
    return find_browser() or pytest.skip("no chromium is installed: apt-get install chromium")


class _Static(SimpleHTTPRequestHandler):
    extensions_map = {".mjs": "text/javascript", ".wasm": "application/wasm"} | SimpleHTTPRequestHandler.extensions_map
    isolated = True

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
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
