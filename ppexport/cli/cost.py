"""What a network costs on a picture, and how much of it Pure-Pass saves there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.mask import mask_from_labels, padded_tokens, pixel_labels
from ppexport.imaging.images import read_levels
from ppexport.networks.architecture import Macs, find_architecture
from ppexport.networks.load import card_of
from ppexport.networks.network import Network

OUTPUT = (720, 1280)
"""Height and width of the output for which papers count multiply-adds."""


@dataclass(frozen=True)
class Share:
    """Share of pure pixels of one picture, without and with cross-shift mask fusion."""

    name: str
    size: tuple[int, int]
    grid: float
    fused: float


@dataclass(frozen=True)
class Cost:
    """Cost of one picture, dense and with Pure-Pass."""

    size: tuple[int, int]
    """(h, w) of the LR picture, before padding."""
    dense: Macs
    actual: Macs
    tokens: int
    impure: int

    @property
    def pure_share(self) -> float:
        """Share of pure pixels, of the padded picture."""
        return 1 - self.impure / self.tokens

    @property
    def saving(self) -> float:
        """Share of the multiply-adds (published counting) that Pure-Pass saves, the mask's own included."""
        return 1 - self.actual.published / self.dense.published

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "lr_size": self.size,
            "tokens": self.tokens,
            "impure_tokens": self.impure,
            "pure_share": self.pure_share,
            "saving": self.saving,
            "macs_published": self.actual.published,
            "macs_pure": self.actual.pure,
            "dense_macs_published": self.dense.published,
            "dense_macs_pure": self.dense.pure,
            "branches": dict(self.actual.branches),
        }


def default_size(scale: int) -> tuple[int, int]:
    """LR size (h, w) of a 1280x720 output, rounded to whole pixels."""
    return round(OUTPUT[0] / scale), round(OUTPUT[1] / scale)


def options_of(network: Network) -> dict[str, Any] | None:
    """Pure-Pass options of *network*'s card, None without Pure-Pass."""
    options = card_of(network).options
    return None if options is None else options.model_dump()


def cost(network: Network, size: tuple[int, int], pure: NDArray[np.bool_] | None = None) -> Cost:
    """Cost of *network* on a picture of *size* with the mask *pure* (H', W'); without one nothing is pure."""
    architecture = find_architecture(network.arch)
    tokens = padded_tokens(size, architecture.multiple)
    impure = tokens if pure is None else int((~pure).sum())
    colors = (options_of(network) or {}).get("colors", 0)
    dense = architecture.cost(network.scale, size)
    return Cost(size, dense, architecture.cost(network.scale, size, impure, colors), tokens, impure)


def parameters(network: Network) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in network.parameters())


def share(path: Path, options: dict[str, Any]) -> Share:
    """Pure share of the picture *path* under Pure-Pass *options*, taken as LR."""
    rgb = read_levels(path)
    labels = pixel_labels(rgb, options["colors"])
    masks = [mask_from_labels(labels, options["window"], csmf) for csmf in (False, True)]
    return Share(path.name, (rgb.shape[0], rgb.shape[1]), *(float(m.mean()) for m in masks))
