"""The calibration file: ranges, percentiles and histograms of a model's tensors, and what they were measured on.

An .npz file without pickled objects: `about` is JSON (`About`), `names` the tensors, `figures` and `percentiles` a row
for each, `kept`, `counts` and `exponents` the histograms of those that enter or leave a convolution or linear layer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.errors import InputError, first_line
from ppexport.files import atomic_path, sha256_file
from ppexport.quantize.histogram import BINS, COLUMNS, Histograms

FORMAT, VERSION = "ppexport-calibration", 1
PERCENTILES = (0.99, 0.999, 0.9999, 0.99999)
"""Shares of the magnitudes that the columns of `percentiles` hold."""
MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class About:
    """What a calibration was measured on."""

    name: str
    weights_sha256: str
    options: dict[str, Any]
    scale: int
    size: list[int]
    """(h, w) of the LR crops."""
    crops: int
    images: list[dict[str, str]]
    """{"name", "sha256" of the pixels} of every picture."""
    images_sha256: str
    """Of the sorted pixel hashes."""
    warnings: list[str] = field(default_factory=list)
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was measured."""

    about: About
    names: tuple[str, ...]
    figures: NDArray[np.float64]
    """(tensors, len(COLUMNS))."""
    percentiles: NDArray[np.float64]
    """(tensors, len(PERCENTILES)): of the magnitudes."""
    kept: tuple[str, ...]
    histograms: Histograms
    """Of the tensors `kept`."""
    sha256: str = ""
    """Of the file it was read from."""

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def row(self, name: str) -> int:
        """The row of tensor *name*. Raises InputError where it was not recorded."""
        if name not in self._rows:
            raise InputError(f"the calibration of {self.about.name} has no tensor {name!r}: calibrate this model again")
        return self._rows[name]

    def figure(self, name: str, column: str) -> float:
        """A figure of tensor *name*, one of COLUMNS. Raises InputError where it was not recorded."""
        return float(self.figures[self.row(name), COLUMNS.index(column)])

    def largest(self, name: str) -> float:
        """The largest magnitude of tensor *name*. Raises InputError where it was not recorded."""
        return max(-self.figure(name, "low"), self.figure(name, "high"), 0.0)


def summarise(about: About, names: tuple[str, ...], histograms: Histograms, keep: frozenset[str]) -> Calibration:
    """A calibration of finished *histograms*, of which those of *keep* stay."""
    percentiles = np.array([[histograms.percentile(row, p) for p in PERCENTILES] for row in range(len(names))])
    rows = [row for row, name in enumerate(names) if name in keep]
    part = Histograms(histograms.counts[rows], histograms.exponents[rows], histograms.figures[rows])
    return Calibration(about, names, histograms.figures, percentiles, tuple(names[r] for r in rows), part)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write *calibration* to *path*, atomically."""
    about = json.dumps({"format": FORMAT, "version": VERSION, **asdict(calibration.about)})
    arrays = {
        "about": np.frombuffer(about.encode(), np.uint8),
        "names": np.array(calibration.names),
        "figures": calibration.figures,
        "percentiles": calibration.percentiles,
        "kept": np.array(calibration.kept),
        "counts": calibration.histograms.counts.astype(np.uint32),
        "exponents": calibration.histograms.exponents,
    }
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path, what: str) -> dict[str, NDArray[Any]]:
    """All arrays of the .npz file *path*, never unpickled. Raises InputError; *what* says what it should have been."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is too large to be {what}")
        with np.load(path, allow_pickle=False) as data:
            return {key: data[key] for key in data.files}
    except InputError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib each raise their own kinds
        raise InputError(f"{path} is not {what}: {first_line(error)}") from None


def load_calibration(path: Path) -> Calibration:
    """Read a file that `save_calibration` wrote. Raises InputError."""
    arrays = load_arrays(path, "a calibration file that `ppexport calibrate` wrote")
    try:
        said = json.loads(bytes(arrays["about"]).decode())
        if said.pop("format") != FORMAT or said.pop("version") != VERSION:
            raise ValueError("another format or version")
        about = About(**said)
        names, kept = (tuple(str(n) for n in arrays[key]) for key in ("names", "kept"))
        figures, percentiles, counts = arrays["figures"], arrays["percentiles"], arrays["counts"]
        shapes = [a.shape for a in (figures, percentiles, counts, arrays["exponents"])]
        expected = [(len(names), len(COLUMNS)), (len(names), len(PERCENTILES)), (len(kept), BINS), (len(kept),)]
        if shapes != expected or not set(kept) <= set(names):
            raise ValueError(f"arrays of shapes {shapes}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a calibration file that `ppexport calibrate` wrote: {error}") from None
    rows = [names.index(name) for name in kept]
    histograms = Histograms(counts.astype(np.int64), arrays["exponents"], figures[rows])
    return Calibration(about, names, figures, percentiles, kept, histograms, sha256_file(path))
