"""What a network costs: multiply-adds of a picture, and what its Pure-Pass mask saves there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppexport.device.picture import to_input
from ppexport.imaging.images import read_levels
from ppexport.networks.architecture import Macs

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
    """Tokens that take slots."""
    pure_share: float
    """Share of the pixels that are pure."""

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


def labels_and_mask(network: Network, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Mask] | None:
    """Labels and pure pixels (H', W') that *network* finds in *rgb* (h, w, 3); None for one without Pure-Pass."""
    import torch

    found = network.pure_pixels(torch.from_numpy(to_input(rgb)))
    return None if found is None else (found[0][0].numpy().astype(np.uint8), found[1][0].numpy())


def cost(network: Network, size: tuple[int, int], pure: Mask | None = None) -> Cost:
    """Cost of *network* on a picture of *size* (h, w) with the mask *pure* (H', W'); without one nothing is pure.

    Raises InputError for a picture that is too small for the network, as running it does.
    """
    for side, padded in zip(size, network.layout.padded(size), strict=True):
        network.layout.index(side, padded)
    architecture, options = network.architecture, options_of(network)
    tokens = network.layout.tokens(size)
    dense = architecture.cost(network.scale, size, architecture.fixed_tokens(size, options))
    if pure is None:
        return Cost(dense, dense, tokens, tokens, 0.0)
    impure = network.routed(pure)
    actual = architecture.cost(network.scale, size, impure, options["colors"])
    return Cost(dense, actual, tokens, impure, float(pure.mean()))


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
            routed = labels_and_mask(network, rgb)
            if routed is not None:
                found.append(cost(network, (rgb.shape[0], rgb.shape[1]), routed[1]))
    progress(len(paths), len(paths))
    return [_saved(found) if found else None for found in costs]


def _saved(costs: Sequence[Cost]) -> Saved:
    figures = [(c.pure_share, c.saving, c.actual.published, c.dense.published) for c in costs]
    return Saved(len(costs), *np.mean(figures, axis=0).tolist())
