"""A network and a backend as another package would bring them: nothing of ppexport knows of them."""

from __future__ import annotations

from typing import Any

from ppexport.device.mask import Layout
from ppexport.networks.architecture import Architecture, Macs


class Toy(Architecture):
    """One 3x3 convolution and a pixel shuffle."""

    name = "toy"
    summary = "one convolution, for tests"
    scales = (2,)
    layout = Layout(4, "mirror", group=0)
    twin = "toy_sr.network:make_twin"
    branches = ("convolution",)

    def build(self, scale: int, options: Any) -> Any:
        """An untrained toy."""
        from toy_sr.network import ToyNetwork

        return ToyNetwork(scale)

    def branch_of(self, module: str, moves: bool) -> tuple[str, str]:
        """All of it is the convolution."""
        return "network", "convolution"

    def cost(self, scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
        """27 multiply-adds for each output channel and pixel."""
        return Macs({"convolution": size[0] * size[1] * 27 * 3 * scale**2})


ARCHITECTURES = [Toy()]
