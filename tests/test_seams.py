"""Tiles of a real network: no border shows, and the picture is close to the whole-image network's."""

from __future__ import annotations

import numpy as np
import torch
from conftest import golden_network, photo
from test_upscale import artifact as make_artifact

from ppexport.device.picture import psnr, psnr_y, to_input, to_uint8
from ppexport.device.runner import Result, Runner
from ppexport.imaging.tiles import plan_grid
from ppexport.imaging.upscaling import upscale_array

TILE = (48, 48)


class NetworkRunner(Runner):
    """The PyTorch network as a runner of one size."""

    def _run(self, prepared):
        network = golden_network("atd_light_x2_trained", "pp_atd_light")
        return Result(network(torch.from_numpy(prepared.lr)).numpy(), 0, prepared.capacity)


def steps(sr, borders, axis):
    """Mean absolute step between neighbouring rows (or columns): at *borders*, and everywhere."""
    difference = np.abs(np.diff(sr.astype(float), axis=axis)).mean(axis=(1 - axis, 2))
    return difference[[b - 1 for b in borders]].mean(), difference.mean()


def test_no_border_of_a_tile_shows():
    hr = photo(128, 128, "chelsea.png", 40, 60)
    lr = np.ascontiguousarray(hr[::2, ::2])
    runner = NetworkRunner(make_artifact(TILE, 2))
    tiled = upscale_array(runner, lr).rgb
    whole = to_uint8(golden_network("atd_light_x2_trained", "pp_atd_light")(torch.from_numpy(to_input(lr))).numpy())
    assert psnr(tiled, whole) > 45
    assert abs(psnr_y(tiled, hr, 2) - psnr_y(whole, hr, 2)) < 0.1
    grid = plan_grid(lr.shape[:2], TILE)
    for axis, origins in ((0, grid.rows), (1, grid.columns)):
        # A tile begins at its origin; its neighbour ends a tile's length after the origin before.
        borders = [2 * o for o in origins[1:]] + [2 * (o + TILE[axis]) for o in origins[:-1]]
        assert borders
        (at, everywhere), (at_whole, everywhere_whole) = steps(tiled, borders, axis), steps(whole, borders, axis)
        # Compared with the same rows of the untiled picture, since content has steps of its own there.
        assert at / everywhere <= 1.02 * at_whole / everywhere_whole
