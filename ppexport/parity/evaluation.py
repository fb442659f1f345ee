"""PSNR-Y and SSIM-Y of a network or an artifact on folders of HR pictures, with their LR files or LR made here.

LR is made by antialiased bicubic (`ppexport.imaging.bicubic`), and metrics are the field's: luma of 8-bit pictures,
with a border of *scale* pixels left off. Grey pictures are evaluated as RGB, as the training framework of the ATD
authors does; papers that take grey as its own luma report about 0.09 dB less on Set14, which has one grey picture. A
network sees every picture whole, an artifact in tiles of its size.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.picture import TAPS, psnr_y, ssim_y, to_input, to_uint8
from ppexport.device.runner import Runner
from ppexport.errors import InputError
from ppexport.imaging.bicubic import crop_to_multiple, enlarge_bicubic, resize_bicubic
from ppexport.imaging.images import pictures_in, read_image
from ppexport.imaging.upscaling import upscale_array

HR_MARK = re.compile(r"(_SRF_\d+)?_HR$", re.IGNORECASE)
"""What is left off the name of an HR picture: img_001_SRF_2_HR.png belongs to img_001_SRF_2_LR.png."""

Pixels = NDArray[np.uint8]
Upscaler = Callable[[Pixels], Pixels]
"""uint8 LR (h, w, 3) -> uint8 SR (h * scale, w * scale, 3)."""


@dataclass(frozen=True)
class Pair:
    """An HR picture, and its LR file if it has one."""

    name: str
    hr: Path
    lr: Path | None


@dataclass(frozen=True)
class Score:
    """One picture: PSNR-Y in dB and SSIM-Y of the model and of bicubic enlargement."""

    name: str
    psnr_y: float
    ssim_y: float
    bicubic_psnr_y: float
    bicubic_ssim_y: float


@dataclass(frozen=True)
class Evaluation:
    """All pictures of a folder."""

    scale: int
    scores: tuple[Score, ...]

    @property
    def mean(self) -> Score:
        """The mean over the pictures, as papers report it."""
        columns = {key: [getattr(s, key) for s in self.scores] for key in asdict(self.scores[0]) if key != "name"}
        return Score("mean", **{key: float(np.mean(values)) for key, values in columns.items()})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"scale": self.scale, "mean": asdict(self.mean), "images": [asdict(s) for s in self.scores]}


def _marked(folder: Path, mark: str) -> list[Path]:
    """The pictures of *folder* whose names end in *mark*; all if none does."""
    paths = pictures_in(folder)
    return [path for path in paths if path.stem.upper().endswith(mark)] or paths


def _by_name(paths: list[Path], mark: re.Pattern[str]) -> dict[str, Path]:
    """The pictures under their names without *mark*. Raises InputError for two of one name."""
    named: dict[str, Path] = {}
    for path in paths:
        other = named.setdefault(mark.sub("", path.stem), path)
        if other != path:
            raise InputError(f"{path.parent} holds two pictures of one name: {other.name} and {path.name}")
    return named


def find_pairs(hr: Path, lr: Path | None, scale: int) -> list[Pair]:
    """HR pictures of folder *hr*, each with its LR in folder *lr* if that is given.

    An LR picture has the HR's name, or img_001_SRF_2_LR for img_001_SRF_2_HR, or 0801x2 for 0801 (at scale 2). If some
    names end in _HR or _LR, only these are taken, so that both may share a folder.
    Raises InputError naming the first HR picture without a partner, or two of one name.
    """
    high = _by_name(_marked(hr, "_HR"), HR_MARK)
    if lr is None:
        return [Pair(name, path, None) for name, path in high.items()]
    files = _marked(lr, "_LR")
    exact = {path.stem: path for path in files}
    mark = re.compile(rf"(_SRF_{scale})?_LR$|x{scale}$", re.IGNORECASE)
    low = _by_name([path for path in files if path.stem not in high], mark)
    for name, path in high.items():
        if name not in exact and name not in low:
            raise InputError(f"{lr} holds no LR picture for {path.name}")
    return [Pair(name, path, exact.get(name) or low[name]) for name, path in high.items()]


def _pixels(path: Path) -> Pixels:
    """An opaque 8-bit picture (H, W, 3)."""
    picture = read_image(path)
    if picture.transparent or picture.rgb.dtype != np.uint8 or picture.frames is not None:
        raise InputError(f"{path}: pictures to evaluate on are opaque, still, and have 8 bits a channel")
    return np.asarray(picture.rgb, np.uint8)


def read_pair(pair: Pair, scale: int) -> tuple[Pixels, Pixels]:
    """The HR picture of *pair*, cropped to multiples of *scale*, and its LR picture, which is made where it has none.

    Raises InputError for pictures that are transparent, not 8-bit, too small, or not of *scale*.
    """
    whole = _pixels(pair.hr)
    if min(whole.shape[:2]) // scale * scale - 2 * scale < TAPS:
        raise InputError(f"{pair.hr} is too small to evaluate: {TAPS} pixels must remain without the border")
    hr = crop_to_multiple(whole, scale)
    lr = resize_bicubic(hr, scale) if pair.lr is None else _pixels(pair.lr)
    if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
        raise InputError(f"{pair.lr} times {scale} is not the size of {pair.hr.name}: another scale or another picture")
    return hr, lr


def quality(picture: Pixels, hr: Pixels, scale: int) -> tuple[float, float]:
    """PSNR-Y in dB and SSIM-Y of *picture* against *hr*."""
    return psnr_y(picture, hr, scale), ssim_y(picture, hr, scale)


def evaluate(
    upscale: Upscaler, pairs: list[Pair], scale: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Evaluation:
    """Evaluate *upscale* on *pairs*; *progress* is called with (done, total).

    Raises InputError as `read_pair`.
    """
    scores = []
    for done, pair in enumerate(pairs):
        progress(done, len(pairs))
        hr, lr = read_pair(pair, scale)
        figures = [quality(picture, hr, scale) for picture in (upscale(lr), enlarge_bicubic(lr, scale))]
        scores.append(Score(pair.name, *figures[0], *figures[1]))
    progress(len(pairs), len(pairs))
    return Evaluation(scale, tuple(scores))


def network_upscaler(network: Any, threads: int | None = None) -> Upscaler:
    """Whole pictures through a PyTorch network; *threads* is how many all of this process takes, None leaves it."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)

    def run(lr: Pixels) -> Pixels:
        with torch.no_grad():
            sr = network(torch.from_numpy(to_input(lr))).numpy()
        # Converted to 8 bits they would become ordinary colours.
        if not np.isfinite(sr).all():
            raise InputError("the network returned NaN or infinite values: its weights are damaged or too large")
        return to_uint8(sr)

    return run


def artifact_upscaler(runner: Runner) -> Upscaler:
    """Pictures through an artifact, in tiles of its size."""
    return lambda lr: upscale_array(runner, lr).rgb
