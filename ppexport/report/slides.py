"""Pictures of a parity run, as PNGs inside the page."""

from __future__ import annotations

import base64
import io
from typing import Any

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


def _address(rgb: NDArray[np.uint8]) -> str:
    """The picture (H, W, 3) as a data: address, enlarged in whole steps until it can be seen."""
    factor = max(1, -(-SHOWN // max(rgb.shape[:2])))
    out = io.BytesIO()
    Image.fromarray(rgb.repeat(factor, axis=0).repeat(factor, axis=1)).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def slides(parity: Parity) -> list[dict[str, Any]]:
    """The pictures of a run, fewer where its columns are not kept. Raises InputError for damaged ones.

    Returns for every input its name and verdict; data: addresses of "before" (bicubic enlargement), "after" (what the
    artifact made), "mask" (pure pixels over the input, None where they are not known) and "error" against the
    reference; the largest error, of peak 1; and the share of pure pixels, or None.
    """
    pair, folder = parity.judged, parity.folder
    names = (pair["reference"], pair["other"])
    files = [folder / "inputs.npz", *(folder / f"{name}.npz" for name in names)]
    if not all(is_plain_name(f"{name}.npz") for name in names) or not all(f.is_file() for f in files):
        return []
    h, w = parity.data["size"]
    padded = padded_size(h), padded_size(w)
    inputs = {item.name: item for item in load_inputs(files[0], (h, w))}
    reference, other = load_column(files[1]).samples, load_column(files[2]).samples
    rows = [row for row in parity.rows if all(row["name"] in column for column in (inputs, reference, other))]
    rows.sort(key=lambda row: (not (row.get("task") or row.get("task_same_routing")), row["name"] != pair.get("worst")))
    found: list[dict[str, Any]] = []
    for row in rows:
        name = row["name"]
        lr, first, second = to_uint8(inputs[name].lr), reference[name], other[name]
        whole = np.isfinite(first.sr).all() and np.isfinite(second.sr).all()
        if len(found) == MOST or first.sr.shape != second.sr.shape or second.sr.shape[2] % h or not whole:
            continue
        difference = np.abs(first.sr.astype(np.float64) - second.sr).max(axis=(0, 1))
        largest = float(difference.max())
        pure = None if first.pure is None or first.pure.size != padded[0] * padded[1] else first.pure.reshape(padded)
        found.append(
            {
                "name": name, "verdict": "pass" if row["passed"] else "FAIL", "largest": largest,
                "before": _address(enlarge_bicubic(lr, second.sr.shape[2] // h)),
                "after": _address(to_uint8(second.sr)),
                "error": _address(np.asarray(heat(difference, max(largest, 1e-12)))),
                "mask": None if pure is None else _address(mask_overlay(lr, pure)),
                "pure": None if pure is None else float(pure.mean()),
            }
        )  # fmt: skip
    return found
