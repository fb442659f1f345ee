"""Pictures of a parity run, as PNGs inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppexport.device.mask import padded_size
from ppexport.device.picture import to_uint8
from ppexport.files import is_plain_name
from ppexport.imaging.alpha import mask_overlay
from ppexport.imaging.bicubic import enlarge_bicubic
from ppexport.parity.columns import load_column, load_inputs
from ppexport.parity.run import heat
from ppexport.report.material import Parity

SHOWN = 320
"""Pixels of the longer side, at least."""
MOST = 6
"""Inputs that are shown: those with ground truth first, then the worst."""


@dataclass(frozen=True)
class Slide:
    """One input of a parity run."""

    name: str
    before: str
    """data: address of the bicubic enlargement."""
    after: str
    """Of what the artefact made."""
    mask: str | None
    """Of the pure pixels over the input; None where nothing tells."""
    error: str
    """Of the error against the twin."""
    largest: float
    """The largest error, peak 1."""
    pure: float | None
    """Share of pure pixels."""
    verdict: str


def address(rgb: NDArray[np.uint8]) -> str:
    """The picture (H, W, 3) as a data: address, enlarged in whole steps until it can be seen."""
    factor = max(1, -(-SHOWN // max(rgb.shape[:2])))
    out = io.BytesIO()
    Image.fromarray(rgb.repeat(factor, axis=0).repeat(factor, axis=1)).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def slides(parity: Parity) -> list[Slide]:
    """The pictures of a run, fewer where its columns are not there. Raises InputError for damaged ones."""
    pair, folder = parity.judged, parity.folder
    names = (pair["reference"], pair["other"])
    files = [folder / "inputs.npz", *(folder / f"{name}.npz" for name in names)]
    if not all(is_plain_name(f"{name}.npz") for name in names) or not all(f.is_file() for f in files):
        return []
    h, w = parity.data["size"]
    inputs = {item.name: item for item in load_inputs(files[0], (h, w))}
    reference, other = load_column(files[1]), load_column(files[2])
    rows = sorted(
        pair["rows"],
        key=lambda row: (not (row.get("task") or row.get("task_same_routing")), row["name"] != pair.get("worst")),
    )
    found: list[Slide] = []
    for row in rows:
        name = row["name"]
        if len(found) == MOST or name not in inputs or name not in reference or name not in other:
            continue
        lr, first, second = to_uint8(inputs[name].lr), reference[name], other[name]
        if first.sr.shape != second.sr.shape or second.sr.shape[2] % h:
            continue
        if not (np.isfinite(first.sr).all() and np.isfinite(second.sr).all()):
            continue
        difference = np.abs(first.sr.astype(np.float64) - second.sr).max(axis=(0, 1))
        largest = float(difference.max())
        mask, share = None, None
        if first.pure is not None and first.pure.size == padded_size(h) * padded_size(w):
            pure = first.pure.reshape(padded_size(h), padded_size(w))
            mask, share = address(mask_overlay(lr, pure)), float(pure.mean())
        found.append(
            Slide(
                name,
                address(enlarge_bicubic(lr, second.sr.shape[2] // h)),
                address(to_uint8(second.sr)),
                mask,
                address(np.asarray(heat(difference, max(largest, 1e-12)))),
                largest,
                share,
                "pass" if row["passed"] else "FAIL",
            )
        )
    return found
