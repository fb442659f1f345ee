"""The file of finished results, so that a killed ablation goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ablating.datasets import DataSet
from ablating.measure import Figures
from ppexport.errors import InputError
from ppexport.files import sha256_text, write_text
from ppexport.networks.card import Options

FORMAT = 1


def identity(weights_sha256: str, options: Options | None, data: DataSet) -> dict[str, Any]:
    """What decides a result: weights, options, and the bytes of the pictures. Not where they lie, nor a version."""
    chosen = None if options is None else options.model_dump()
    return {"weights_sha256": weights_sha256, "options": chosen, "pictures_sha256": data.sha256}


def _key(what: dict[str, Any]) -> str:
    return sha256_text(json.dumps(what, sort_keys=True, separators=(",", ":")))


class Store:
    """Results by identity, kept in one JSON file that is whole after every `put`."""

    def __init__(self, path: Path) -> None:
        """Read *path* if it is there. Raises InputError for a file that is no such store."""
        self.path = path
        self._entries: dict[str, Any] = {}
        self._figures: dict[str, Figures] = {}
        if not path.exists():
            if not path.parent.is_dir():
                raise InputError(f"{path} cannot be written: {path.parent} is not a folder")
            return
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']}, not {FORMAT}")
            self._entries = data["results"]
            self._figures = {key: _figures(entry) for key, entry in self._entries.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            text = f"{path} holds no results of an ablation ({type(error).__name__}: {error})"
            raise InputError(f"{text}: name another --state, or delete it to start again") from None

    def get(self, what: dict[str, Any]) -> Figures | None:
        """The result for the identity *what*, None if it is not finished."""
        return self._figures.get(_key(what))

    def put(self, what: dict[str, Any], data: DataSet, figures: Figures) -> None:
        """Keep *figures* for the identity *what*; names are written for people only."""
        names = [pair.name for pair in data.pairs]
        rows = zip(names, figures.psnr_y, figures.pure, strict=True)
        pictures = [{"name": name, "psnr_y": psnr_y, "pure": pure} for name, psnr_y, pure in rows]
        self._figures[_key(what)] = figures
        self._entries[_key(what)] = {**what, "data_set": data.name, "pictures": pictures}
        write_text(self.path, json.dumps({"format": FORMAT, "results": self._entries}, indent=1) + "\n")


def _figures(entry: dict[str, Any]) -> Figures:
    pictures = entry["pictures"]
    return Figures(tuple(float(p["psnr_y"]) for p in pictures), tuple(float(p["pure"]) for p in pictures))
