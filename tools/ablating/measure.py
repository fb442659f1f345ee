"""One variant on one data set: PSNR-Y and pure share of every picture, and the multiply-adds at that share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from training.fast import speed_up

from ablating.datasets import DataSet
from ablating.variants import with_options
from ppexport.cli.cost import Cost, default_size
from ppexport.device.mask import padded_tokens, pure_mask
from ppexport.errors import UnavailableError
from ppexport.networks.atd.cost import count_macs
from ppexport.networks.atd.network import ATDLight
from ppexport.networks.card import Options
from ppexport.parity.evaluation import evaluate, network_upscaler


@dataclass(frozen=True)
class Figures:
    """Per picture of a data set, in its order: PSNR-Y in dB, and the pure share of the padded LR in [0, 1]."""

    psnr_y: tuple[float, ...]
    pure: tuple[float, ...]

    @property
    def mean_psnr_y(self) -> float:
        """Mean over the pictures, in dB."""
        return float(np.mean(self.psnr_y))

    @property
    def mean_pure(self) -> float:
        """Mean over the pictures, in [0, 1]."""
        return float(np.mean(self.pure))


def made_fast(network: ATDLight) -> ATDLight:
    """*network* itself, with the compiled kernels of training where there is a C compiler, else as it is.

    The kernels round otherwise than PyTorch, by about 1e-6, which can settle a near tie of two categories the other
    way: up to 0.003 dB in one picture, 0.0002 dB in the mean over the bundled photographs.
    """
    with suppress(UnavailableError):
        speed_up(network)
    return network


def measure(
    network: ATDLight, options: Options | None, data: DataSet, progress: Callable[[int, int], None] | None = None
) -> Figures:
    """The weights of *network* under *options* (None: without Pure-Pass) on whole pictures; *progress* as `evaluate`.

    Raises InputError or ImageError for pictures that cannot be evaluated.
    """
    shares: list[float] = []
    upscale = network_upscaler(made_fast(with_options(network, options)))

    def noting(lr: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if options is None:
            shares.append(0.0)
        else:
            shares.append(float(pure_mask(lr, options.colors, options.window, options.csmf).mean()))
        return upscale(lr)

    result = evaluate(noting, list(data.pairs), network.config.scale, progress or (lambda done, total: None))
    return Figures(tuple(s.psnr_y for s in result.scores), tuple(shares))


def cost_at(scale: int, pure: float, options: Options | None) -> Cost:
    """Cost of 1280x720 output where the share *pure* of the padded LR pixels is pure; in the published counting."""
    size = default_size(scale)
    tokens = padded_tokens(size)
    impure = round(tokens * (1 - pure))
    colors = 0 if options is None else options.colors
    return Cost(size, count_macs(scale, size), count_macs(scale, size, impure, colors), tokens, impure)
