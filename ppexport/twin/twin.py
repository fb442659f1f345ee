"""What a static twin is: a network rewritten for one LR size, with what parity and the backends ask of it."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ppexport.device.capacities import check_capacities, check_size
from ppexport.errors import InputError, TwinError
from ppexport.networks.architecture import find_architecture
from ppexport.networks.load import check_network
from ppexport.networks.network import Network, Trace

if TYPE_CHECKING:
    from collections.abc import Callable


@runtime_checkable
class RoutedLayer(Protocol):
    """A layer that chooses a category for every token by its similarity to the entries of a dictionary."""

    def similarity(self, tokens: Tensor, dictionary: Tensor) -> Tensor:
        """What it chooses from: (n, t) similarities of *tokens* (n, c), its input, to the *dictionary* (t, c)."""


class PurePassModule(Protocol):
    """The Pure-Pass mask in the graph."""

    adaptive: bool
    """Whether the host chooses the colour centres, and so computes the mask: it is no part of a graph."""

    def __call__(self, padded: Tensor) -> Tensor:
        """Pure pixels (H * W,) bool of the padded image (1, 3, H, W)."""

    def labels(self, padded: Tensor) -> Tensor:
        """(1, 1, H, W) fp32: the label of every pixel."""


class StaticTwin(nn.Module):
    """A network for one input (1, 3, h, w) in [0, 1] and *capacity* slots at most; gives (sr, impure_tokens)."""

    rows: Tensor
    columns: Tensor

    def __init__(self, network: Network, size: tuple[int, int], capacity: int | None, flavour: str) -> None:
        """*capacity* is None where nothing takes slots. Raises TwinError for a size that cannot be padded."""
        super().__init__()
        # In a tuple, so that the network is no module of the twin, and is neither traced nor saved with it.
        self.source = (network,)
        self.flavour, self.scale = flavour, network.scale
        layout = network.layout
        self.size, self.padded, self.tokens = size, layout.padded(size), layout.tokens(size)
        self.capacity, self.group = self.tokens if capacity is None else capacity, layout.group
        self.pure_pass: PurePassModule | None = None
        """None for a network without Pure-Pass."""
        for name, side, padded in zip(("rows", "columns"), size, self.padded, strict=True):
            try:
                index = layout.index(side, padded)
            except InputError as error:
                raise TwinError(f"{network.arch}: {error}") from None
            self.register_buffer(name, torch.from_numpy(index).int())

    @property
    def network(self) -> Network:
        """The network that this twin rewrites."""
        return self.source[0]

    def with_capacity(self, capacity: int) -> StaticTwin:
        """The twin of the same network with *capacity* slots; this one where it has them."""
        return self if capacity == self.capacity else make_twin(self.network, self.size, capacity, self.flavour)

    def check(self, lr: Tensor, mask: Tensor | None, slots: Tensor | None, categories: Tensor | None) -> None:
        """Raise ValueError for inputs that this twin does not take, or of another shape or type.

        Plain numbers, so nothing of it enters the graph.
        """
        arch = self.network.arch
        if tuple(lr.shape) != (1, 3, *self.size) or not lr.is_floating_point():
            raise ValueError(f"this twin takes floats (1, 3, {self.size[0]}, {self.size[1]}), not {tuple(lr.shape)}")
        if (mask is not None or slots is not None) and self.pure_pass is None:
            raise ValueError(f"{arch} takes no mask and no slots: they are for networks with Pure-Pass")
        if categories is not None and not self.routed_layers():
            raise ValueError(f"{arch} takes no categories: none of its layers chooses any")
        if mask is not None and (tuple(mask.shape) != (1, 1, *self.padded) or not mask.is_floating_point()):
            raise ValueError(f"a mask is floats (1, 1, H', W') = {(1, 1, *self.padded)}, not {tuple(mask.shape)}")
        if slots is not None:
            allowed = range(self.group, self.capacity + 1, self.group)
            # torch.export knows the range of a symbolic length; a number made of it would end the symbol.
            symbolic = isinstance(slots.shape[-1], torch.SymInt)
            if slots.dim() != 2 or slots.shape[0] != 1 or (not symbolic and int(slots.shape[1]) not in allowed):
                allows = f"C a multiple of {self.group} up to {self.capacity}"
                raise ValueError(f"slots are (1, C), {allows}, not {tuple(slots.shape)}")

    def pad(self, lr: Tensor) -> Tensor:
        """The padded image (1, 3, H', W') of *lr* (1, 3, h, w), by two constant gathers."""
        if self.size[0] != self.padded[0]:
            lr = lr.index_select(2, self.rows)
        return lr if self.size[1] == self.padded[1] else lr.index_select(3, self.columns)

    def routed_layers(self) -> dict[str, nn.Module]:
        """{module path: layer} of the layers that choose categories, in the order in which they run."""
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
            categories: (layers, n) int32 of tokens or windows, in place of the routing of every layer.
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
        capacity: slots, a multiple of the layout's group; None is full capacity, exact for every image.
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
    layout = architecture.layout
    if capacity is not None and not layout.group:
        raise TwinError(f"{architecture.name} computes the same for every image: leave the capacity out")
    try:
        size = check_size(size, layout)
        if capacity is not None:
            (capacity,) = check_capacities([capacity], size, layout)
    except InputError as error:
        raise TwinError(str(error)) from None
    make: Callable[[Network, tuple[int, int], int | None, str], StaticTwin] = resolve_name(architecture.twin)
    return make(network, size, capacity, flavour)


def twin_flavour(network: Network, flavour: str) -> str:
    """The flavour of the twin that an artifact of *flavour* was made from: what no twin has starts from the portable
    one, and is a backend's own."""
    return flavour if flavour in find_architecture(network.arch).flavours else "portable"
