"""Results of slow runs, kept on disk until all of them are there, so that work which was ended goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppexport.errors import InputError
from ppexport.files import atomic_path, is_plain_name
from ppexport.parity.columns import load_arrays

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

UNFINISHED = ".unfinished"
"""The folder of them in that of a parity run."""


class Kept:
    """A folder of results by name; those of another *key* were made from something else, and are removed."""

    def __init__(self, root: Path, key: str) -> None:
        """*key* is a plain name, that of the folder in *root* that holds everything."""
        self.root, self.folder = root, root / key
        for other in root.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def arrays(self, name: str, run: Callable[[], Arrays]) -> Arrays:
        """What is kept as *name*, else what *run* returns, which then is kept."""
        if not is_plain_name(name):
            raise InputError(f"{name!r} is not a plain name of a result")
        path = self.folder / f"{name}.npz"
        if path.is_file():
            try:
                return load_arrays(path)
            except InputError:
                # What is damaged is made again.
                path.unlink()
        found = run()
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found)  # type: ignore[arg-type]
        return found

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)
