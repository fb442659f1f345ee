"""The bound: what the multiply-adds alone would take at this machine's best rate."""

from __future__ import annotations

import torch

from peers.candidate import Candidate, Image
from ppexport.networks.atd.cost import Macs

SIDE = 1024
FLOP_PER_MAC = 2
"""One multiplication and one addition."""


def flop(macs: Macs) -> int:
    """Floating point operations of convolutions, linear layers and matmuls; norms, softmax and GELU are left out."""
    return FLOP_PER_MAC * macs.pure


def bound_seconds(operations: int, rate: float) -> float:
    """Seconds that *operations* take at *rate* FLOP/s."""
    return operations / rate


class Arithmetic(Candidate):
    """No network: the best of several sgemm of 1024x1024 says at what rate, and the time is that of its FLOP."""

    def __init__(self, key: str, name: str, lr: Image, operations: int, threads: int, tries: int = 8) -> None:
        super().__init__(key, name, lr)
        self.operations, self.threads, self.tries = operations, threads, tries
        self.rates: list[float] = []
        """FLOP/s of every turn."""

    def prepare(self) -> None:
        """Make the matrices."""
        torch.set_num_threads(self.threads)
        generator = torch.Generator().manual_seed(0)
        self._a, self._b = (torch.rand(SIDE, SIDE, generator=generator) for _ in range(2))
        self._out = torch.empty(SIDE, SIDE)

    def run(self) -> Image:
        """One product; the picture is not touched."""
        torch.mm(self._a, self._b, out=self._out)
        return self.lr

    def time(self) -> float:
        """Seconds that the network's operations take at the best rate of this turn."""
        best = min(super(Arithmetic, self).time() for _ in range(self.tries))
        self.rates.append(FLOP_PER_MAC * SIDE**3 / best)
        return bound_seconds(self.operations, self.rates[-1])
