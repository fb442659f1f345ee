"""Runs the functions of an asset in Apple's Core AI runtime, which on Linux computes on the CPU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.artifact import Artifact
from ppexport.device.capacities import capacity_function
from ppexport.device.quiet import quiet
from ppexport.device.runner import SessionRunner
from ppexport.errors import ArtifactError, InputError, first_line, require
from ppexport.files import sha256_file

PROGRAM, HASH = "main.mlirb", "main.hash"
"""An asset's program, and the 32 bytes of its SHA-256."""


def load_asset(path: Path) -> Any:
    """The asset at *path*, whose program has the SHA-256 that lies beside it.

    The runtime does not look (coreai-core 1.0.0b3), and a damaged program aborts the process that compiles it.

    Raises:
        ArtifactError: it is no asset, or damaged.
        UnavailableError: coreai-core is not installed.
    """
    require("coreai", "coreai")
    from coreai.authoring import AIModelAsset

    if not path.is_dir() or not AIModelAsset.is_valid(str(path)):
        raise ArtifactError(f"{path} is not a Core AI asset")
    try:
        if sha256_file(path / PROGRAM) != (path / HASH).read_bytes().hex():
            raise ArtifactError(f"{path} is damaged: {PROGRAM} does not match its hash in {HASH}")
        return AIModelAsset.load(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} is not a Core AI asset that can be read: {first_line(error)}") from None


class Session:
    """An opened asset. It is compiled for this machine when it is first run, which takes seconds."""

    def __init__(self, path: Path) -> None:
        """Raises ArtifactError for a damaged asset, UnavailableError without coreai-core."""
        self.path, self.asset = path, load_asset(path)
        self.facts = {k: str(v) for k, v in self.asset.metadata.creator_defined_metadata.items()}
        self._loop = asyncio.new_event_loop()
        self._open = AsyncExitStack()
        self._model: Any = None
        self._functions: dict[str, Any] = {}

    def function(self, capacity: int | None = None) -> Any:
        """The function for *capacity* slots, None for the only one. Raises InputError where the asset has none."""
        name = "main" if capacity is None else capacity_function(capacity)
        if name not in self._functions:
            try:
                with quiet():
                    if self._model is None:
                        opening = self._open.enter_async_context(self.asset.executable())
                        self._model = self._loop.run_until_complete(opening)
                    names = list(self._model.function_names)
                    if name not in names:
                        raise InputError(f"the asset has functions {', '.join(names)}, not {name!r}")
                    self._functions[name] = self._model.load_function(name)
            except (RuntimeError, ValueError, OSError) as error:
                raise ArtifactError(f"{self.path}: the Core AI runtime refuses it: {first_line(error)}") from None
        return self._functions[name]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs for *inputs* as the ONNX graph takes them; the length of `slots` (1, C) chooses the function."""
        from coreai.runtime import NDArray as Array

        fed = dict(inputs)
        slots = fed.pop("slots", None)
        function = self.function(None if slots is None else slots.shape[1])
        with quiet():
            given = {name: Array(np.ascontiguousarray(value)) for name, value in fed.items()}
            try:
                found = self._loop.run_until_complete(function(given))
            except (RuntimeError, ValueError) as error:
                raise ArtifactError(f"{self.path}: the Core AI runtime failed: {first_line(error)}") from None
            # Copies, since the runtime owns the buffers.
            return {name: np.array(value.numpy()) for name, value in found.items()}

    def close(self) -> None:
        """Release the runtime's model and its temporary files."""
        self._functions.clear()
        self._model = None
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._open.aclose())
            self._loop.close()

    def __del__(self) -> None:
        if hasattr(self, "_loop"):
            self.close()


class CoreAIRunner(SessionRunner):
    """A Core AI artifact in Apple's runtime: on Linux exact and slow, and no measure of a device's speed."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises ArtifactError for a damaged asset or one that is not what the manifest says."""
        self._asset = Session(artifact.model_file)
        super().__init__(artifact, self._asset)

    def _close(self) -> None:
        self._asset.close()
