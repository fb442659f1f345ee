"""What the servers of a page answer with: the artifact's files, each with its type and its hash checked, and JSON."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Callable, NamedTuple, Optional

from ppexport.backends.onnx.run_external import graph_bytes
from ppexport.device.artifact import MANIFEST, Artifact
from ppexport.errors import ArtifactError

LOGGER = logging.getLogger("ppexport")
KINDS = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".mjs": "text/javascript; charset=utf-8",
    ".js": "text/javascript; charset=utf-8", ".json": "application/json", ".wasm": "application/wasm",
    ".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}  # fmt: skip
BINARY = "application/octet-stream"


class Request(NamedTuple):
    """What a client asks for, after everything that can be checked without knowing what it means."""

    method: str
    name: str
    """Of the path what follows the token and its slash."""
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes
    stay: Callable[[float], None]
    """Called with the seconds that the answer may take longer."""


class Reply(NamedTuple):
    """An answer."""

    status: int
    body: bytes
    kind: str = BINARY


def reply_json(data: Mapping[str, Any], status: int = 200) -> Reply:
    """*data* as an answer."""
    return Reply(status, json.dumps(data).encode("utf-8"), KINDS[".json"])


def refuse(status: int, error: str) -> Reply:
    """An answer that says why not."""
    return reply_json({"error": error}, status)


NOT_FOUND = refuse(404, "there is nothing here")


class PageFiles:
    """The files of an artifact, each compared with its hash when it is first asked for, and then kept."""

    def __init__(self, artifact: Artifact, index: str) -> None:
        """*index* is the file that the path itself shows.

        Raises ArtifactError where the artifact has no such page, or its model names other files.
        """
        if index not in artifact.manifest.files:
            raise ArtifactError(
                f"{artifact.path} holds no {index}: a page is made by `ppexport export MODEL --backend web`"
            )
        graph_bytes(artifact)
        self.artifact, self.index = artifact, index
        self._kept = {MANIFEST: artifact.manifest.to_json().encode("utf-8")}
        self._lock = threading.Lock()

    def get(self, name: str) -> Optional[Reply]:
        """The file *name*, the index for ""; None for what the manifest does not list."""
        name = name or self.index
        with self._lock:
            if name not in self._kept:
                if name not in self.artifact.manifest.files:
                    return None
                try:
                    self._kept[name] = self.artifact.read(self.artifact.path / name)
                except ArtifactError as error:
                    LOGGER.warning("%s", error)
                    return refuse(500, "this file was changed on the computer after the page was opened")
            return Reply(200, self._kept[name], KINDS.get(PurePosixPath(name).suffix, BINARY))
