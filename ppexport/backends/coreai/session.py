"""Runs the functions of an asset in Apple's Core AI runtime, which on Linux computes on the CPU."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.errors import ArtifactError, InputError, first_line, require

FACTS = "ppexport."
"""Starts the names of this project's own metadata."""


@contextmanager
def quiet_runtime() -> Iterator[None]:
    """Send to standard error what the runtime prints: standard output is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def load_asset(path: Path) -> Any:
    """The asset at *path*. Raises ArtifactError where it is none, UnavailableError without coreai-core."""
    require("coreai", "coreai")
    from coreai.authoring import AIModelAsset

    if not path.is_dir() or not AIModelAsset.is_valid(str(path)):
        raise ArtifactError(f"{path} is not a Core AI asset")
    try:
        return AIModelAsset.load(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read as a Core AI asset: {first_line(error)}") from None


class Session:
    """An opened asset. It is compiled for this machine when it is first run, which takes seconds."""

    def __init__(self, path: Path) -> None:
        """Raises ArtifactError for a damaged asset, UnavailableError without coreai-core."""
        self.path, self.asset = path, load_asset(path)
        self._loop = asyncio.new_event_loop()
        self._open = AsyncExitStack()
        self._model: Any = None
        self._functions: dict[str, Any] = {}

    @property
    def facts(self) -> dict[str, str]:
        """The asset's own metadata."""
        return {k: str(v) for k, v in self.asset.metadata.custom_metadata.items()}

    def function(self, capacity: int | None = None) -> Any:
        """The function for *capacity* slots, None for the only one. Raises InputError where the asset has none."""
        name = "main" if capacity is None else f"capacity_{capacity}"
        try:
            if self._model is None:
                self._model = self._loop.run_until_complete(self._open.enter_async_context(self.asset.executable()))
            if name not in self._model.function_names:
                raise InputError(f"the asset has functions {', '.join(self._model.function_names)}, not {name!r}")
            if name not in self._functions:
                self._functions[name] = self._model.load_function(name)
        except (RuntimeError, ValueError, OSError) as error:
            raise ArtifactError(f"{self.path}: the Core AI runtime refuses it: {first_line(error)}") from None
        return self._functions[name]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs for *inputs* as the ONNX graph takes them; the length of `slots` (1, C) chooses the function."""
        from coreai.runtime import NDArray as Array

        fed = dict(inputs)
        slots = fed.pop("slots", None)
        with quiet_runtime():
            function = self.function(None if slots is None else slots.shape[1])
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
