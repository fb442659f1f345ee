"""What a network costs: multiply-adds of a picture, and what its Pure-Pass mask saves there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppexport.device.mask import padded_tokens, pure_mask
from ppexport.imaging.images import read_levels
from ppexport.networks.architecture import Macs, find_architecture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ppexport.networks.network import Network

    Mask = NDArray[np.bool_]
    """Pure pixels (H', W') of a padded LR image."""


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one picture, dense and with Pure-Pass."""

    dense: Macs
    actual: Macs
    tokens: int
    impure: int

    @property
    def pure_share(self) -> float:
        """Share of the pixels that are pure."""
        return 1 - self.impure / self.tokens

    @property
    def saving(self) -> float:
        """Share of the multiply-adds (published counting) that Pure-Pass saves, the mask's own included."""
        return 1 - self.actual.published / self.dense.published


def default_size(scale: int) -> tuple[int, int]:
    """LR size (h, w) of a 1280x720 output, for which papers count, rounded to whole pixels."""
    return round(720 / scale), round(1280 / scale)


def options_of(network: Network) -> dict[str, Any]:
    """The options of *network*; {} for one that has none."""
    return {} if network.options is None else network.options.model_dump()


def has_mask(arch: str) -> bool:
    """Whether networks of the architecture *arch* have a Pure-Pass mask."""
    return find_architecture(arch).masks != ("none",)


def mask_of(arch: str, options: Mapping[str, Any], rgb: NDArray[Any]) -> Mask | None:
    """The mask that a network of *arch* with *options* computes for *rgb* (h, w, 3); None where it has none."""
    return pure_mask(rgb, options["colors"], options["window"], options["csmf"]) if has_mask(arch) else None


def cost(network: Network, size: tuple[int, int], pure: Mask | None = None) -> Cost:
    """Cost of *network* on a picture of *size* (h, w) with the mask *pure*; without one nothing is pure."""
    return cost_of(network.arch, network.scale, options_of(network), size, pure)


def cost_of(arch: str, scale: int, options: Mapping[str, Any], size: tuple[int, int], pure: Mask | None = None) -> Cost:
    """As `cost`, of a network of the architecture *arch* with *scale* and *options*."""
    architecture = find_architecture(arch)
    tokens = padded_tokens(size, architecture.multiple)
    dense = architecture.cost(scale, size, architecture.routed_tokens(size, options, None))
    if pure is None:
        return Cost(dense, dense, tokens, tokens)
    routed = architecture.routed_tokens(size, options, pure)
    actual = architecture.cost(scale, size, routed, options.get("colors", 0))
    return Cost(dense, actual, tokens, int((~pure).sum()))


@dataclass(frozen=True)
class Saved:
    """What Pure-Pass saves on several pictures; all are means over the pictures."""

    pictures: int
    pure_share: float
    saving: float
    """Share of a picture's multiply-adds, as `Cost.saving`."""
    macs_published: float
    dense_macs_published: float


def saved_on(
    networks: Sequence[Network],
    paths: Sequence[Path],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Saved | None]:
    """What the masks of *networks* save on the LR pictures *paths*; None for a network without a mask.

    *progress* is called with (done, total). Raises ImageError for a picture that cannot be read.
    """
    costs: list[list[Cost]] = [[] for _ in networks]
    for done, path in enumerate(paths):
        progress(done, len(paths))
        rgb = read_levels(path)
        for network, found in zip(networks, costs, strict=True):
            pure = mask_of(network.arch, options_of(network), rgb)
            if pure is not None:
                found.append(cost(network, (rgb.shape[0], rgb.shape[1]), pure))
    progress(len(paths), len(paths))
    return [_saved(found) if found else None for found in costs]


def _saved(costs: Sequence[Cost]) -> Saved:
    figures = [(c.pure_share, c.saving, c.actual.published, c.dense.published) for c in costs]
    return Saved(len(costs), *np.mean(figures, axis=0).tolist())
