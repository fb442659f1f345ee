"""What a static twin is: a network rewritten for one LR size, with what parity and the backends ask of it."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppexport.device.artifact import check_capacities, check_size
from ppexport.errors import InputError, TwinError
from ppexport.networks.architecture import find_architecture
from ppexport.networks.load import check_network
from ppexport.networks.network import Network, Trace


class RoutedLayer(Protocol):
    """A layer that chooses a category for every token."""

    def similarity(self, tokens: Tensor, dictionary: Tensor) -> Tensor:
        """What it chooses from: (n, t) similarities of *tokens* (n, c), its input, to the *dictionary* (t, c)."""


class PurePassModule(Protocol):
    """The Pure-Pass mask in the graph."""

    def __call__(self, padded: Tensor) -> Tensor:
        """Pure pixels (H * W,) bool of the padded image (1, 3, H, W)."""

    def labels(self, padded: Tensor) -> Tensor:
        """(1, 1, H, W) fp32: the label of every pixel."""


class StaticTwin(nn.Module):
    """A network for one input (1, 3, h, w) in [0, 1] and *capacity* slots at most; gives (sr, impure_tokens)."""

    rows: Tensor
    columns: Tensor

    def __init__(
        self, network: Network, size: tuple[int, int], padded: tuple[int, int], capacity: int, flavour: str
    ) -> None:
        super().__init__()
        # In a tuple, so that the network is no module of the twin, and is neither traced nor saved with it.
        self.source = (network,)
        self.flavour, self.scale = flavour, network.scale
        self.size, self.padded, self.capacity = size, padded, capacity
        self.tokens = padded[0] * padded[1]
        self.pure_pass: PurePassModule | None = None
        """None for a network without Pure-Pass."""

    @property
    def network(self) -> Network:
        """The network that this twin rewrites."""
        return self.source[0]

    def with_capacity(self, capacity: int) -> StaticTwin:
        """The twin of the same network with *capacity* slots; this one where it has them."""
        return self if capacity == self.capacity else make_twin(self.network, self.size, capacity, self.flavour)

    def check_lr(self, lr: Tensor) -> None:
        """Raise ValueError unless *lr* is one image of this size. Plain numbers, so nothing of it enters the graph."""
        if tuple(lr.shape) != (1, 3, *self.size) or not lr.is_floating_point():
            raise ValueError(f"this twin takes floats (1, 3, {self.size[0]}, {self.size[1]}), not {tuple(lr.shape)}")

    def pad_by(self, index: Callable[[int, int], NDArray[np.int64]]) -> None:
        """Have `pad` read row and column *index*(size, padded) of the image."""
        for name, size, padded in zip(("rows", "columns"), self.size, self.padded, strict=True):
            self.register_buffer(name, torch.from_numpy(index(size, padded)).int())

    def pad(self, lr: Tensor) -> Tensor:
        """The padded image (1, 3, H', W') of *lr* (1, 3, h, w), by two constant gathers."""
        if self.size[0] != self.padded[0]:
            lr = lr.index_select(2, self.rows)
        return lr if self.size[1] == self.padded[1] else lr.index_select(3, self.columns)

    def routed_layers(self) -> dict[str, RoutedLayer]:
        """{module path: layer} of the layers that route, in the order in which they run."""
        return {}

    def forward(
        self,
        lr: Tensor,
        mask: Tensor | None = None,
        slots: Tensor | None = None,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Super-resolve *lr*.

        Args:
            lr: (1, 3, h, w) in [0, 1].
            mask: (1, 1, H', W') of 1 (pure) and 0, in place of the computed one.
            slots: (1, C): its length, whatever it holds, is used in place of the capacity.
            categories: (layers, n) int32, in place of the routing of every layer.
            trace: records what every layer chose and computed.

        Returns:
            sr (1, 3, h * scale, w * scale), not clipped, and impure_tokens (1,) int32: 0 for a network without
            routing; where it exceeds the capacity, the picture is not the network's.
        """
        raise NotImplementedError


def make_twin(
    network: nn.Module, size: tuple[int, int], capacity: int | None = None, flavour: str = "portable"
) -> StaticTwin:
    """The static twin of *network*.

    Args:
        network: of a registered architecture, in float32 on the CPU.
        size: (h, w) of the LR images, before padding.
        capacity: slots of category attention, a multiple of 128; None is full capacity, exact for every image.
        flavour: "portable"; "ort", arranged for ONNX Runtime's CPU kernels; "tensorrt", with padded heads.

    Raises:
        TwinError: the rewrite cannot express this size, capacity or flavour.
        InputError: `networks.load.check_network` refuses the network.
    """
    network = check_network(network)
    architecture = find_architecture(network.arch)
    if flavour not in architecture.flavours:
        raise TwinError(
            f"a flavour of {architecture.name} is one of {', '.join(architecture.flavours)}, not {flavour!r}"
        )
    try:
        size = check_size(size)
        if capacity is not None:
            (capacity,) = check_capacities([capacity], size)
    except InputError as error:
        raise TwinError(str(error)) from None
    make: Callable[[Network, tuple[int, int], int | None, str], StaticTwin] = resolve_name(architecture.twin)
    return make(network, size, capacity, flavour)
