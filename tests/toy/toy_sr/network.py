"""The toy in PyTorch, and its twin."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ppexport.networks.network import Network
from ppexport.twin.twin import StaticTwin


class ToyNetwork(Network):
    """conv -> pixel shuffle."""

    arch = "toy"

    def __init__(self, scale: int) -> None:
        super().__init__(scale)
        self.conv = nn.Conv2d(3, 3 * scale**2, 3, padding=1)

    def forward(self, x, mask=None, *, categories=None, trace=None):
        """(b, 3, h, w) -> (b, 3, h * scale, w * scale)."""
        h, w = x.shape[2:]
        padded = F.pad(x, (0, -w % 4, 0, -h % 4))
        return F.pixel_shuffle(self.conv(padded), self.scale)[:, :, : h * self.scale, : w * self.scale]


class ToyTwin(StaticTwin):
    """The toy for one size."""

    def __init__(self, network: ToyNetwork, size: tuple[int, int]) -> None:
        super().__init__(network, size, None, "portable")
        self.conv = network.conv

    def pad(self, lr):
        """Zeros to the right and to the bottom."""
        return F.pad(lr, (0, self.padded[1] - self.size[1], 0, self.padded[0] - self.size[0]))

    def forward(self, lr, mask=None, slots=None, categories=None, trace=None):
        """(1, 3, h, w) -> sr, and that nothing was routed."""
        h, w = (side * self.scale for side in self.size)
        sr = F.pixel_shuffle(self.conv(self.pad(lr)), self.scale)[:, :, :h, :w]
        return sr, torch.zeros(1, dtype=torch.int32)


def make_twin(network: ToyNetwork, size: tuple[int, int], capacity: int | None, flavour: str) -> ToyTwin:
    """The twin that the architecture names."""
    return ToyTwin(network, size).eval()
