"""What every network is to the rest of the house: a module that knows its architecture and can tell of its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ppexport.device.mask import Layout
from ppexport.networks.architecture import Architecture, find_architecture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydantic import BaseModel

    from ppexport.networks.card import Card


@dataclass
class Trace:
    """What a network or its twin routed and computed in every layer, filled by `forward(..., trace=)`."""

    categories: list[Tensor] = field(default_factory=list)
    """Per layer (b, n) int64: the category each token or window chose, also when other categories were injected."""
    gaps: list[Tensor] = field(default_factory=list)
    """Per layer (b, n): how far the choice is from being another one; of similarities the best less the second best."""
    tokens: list[Tensor] = field(default_factory=list)
    """Per layer (b, n, c) or (b, c, h, w): the layer's output, or what it normalises and returns."""
    inputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Per layer of a twin: the tokens (n, c) and the dictionary (t, c) that it reads."""

    def choose(self, similarity: Tensor, own: Tensor) -> None:
        """Record the categories *own* and their gap in *similarity* (..., n, t)."""
        best = similarity.topk(2, dim=-1).values
        self.categories.append(own)
        self.gaps.append(best[..., 0] - best[..., 1])


def pad(x: Tensor, layout: Layout) -> Tensor:
    """Images (b, c, h, w), padded to the right and to the bottom as *layout* says.

    Raises InputError for images that are too small to be reflected.
    """
    for axis, padded in zip((2, 3), layout.padded((x.shape[2], x.shape[3])), strict=True):
        if x.shape[axis] != padded:
            x = x.index_select(axis, torch.from_numpy(layout.index(x.shape[axis], padded)).to(x.device))
    return x


class Network(nn.Module):
    """A network: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clipped."""

    arch: str
    """The name of its `Architecture`."""
    card: Card | None = None
    """The card that it was loaded with; None for one that was built by hand."""
    digest: str | None = None
    """SHA-256 of the weights that it was loaded with."""

    def __init__(self, scale: int, options: BaseModel | None = None) -> None:
        super().__init__()
        self.scale, self.options = scale, options

    @property
    def architecture(self) -> Architecture:
        """Its architecture, with the sizes of this network where they may differ."""
        return find_architecture(self.arch)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Super-resolve *x* (b, 3, h, w).

        Args:
            x: images in [0, 1].
            mask: (b, H', W') bool over the padded image, True = pure, in place of the computed one.
            categories: (layers, b, n) of tokens or windows, in place of the routing of every layer.
            trace: records what each layer chose and computed.
        """
        raise NotImplementedError

    @property
    def layout(self) -> Layout:
        """How it pads its input, and what takes slots."""
        return self.architecture.layout

    def routed(self, pure: NDArray[np.bool_]) -> int:
        """Slots that an image with these *pure* pixels (H', W') needs."""
        return self.layout.routed(pure, getattr(self.options, "share", 1.0))

    def pure_pixels(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Labels (b, H', W') and pure pixels (b, H', W') bool of the padded *x*; None without Pure-Pass."""
        return None

    def check_state(self, state: dict[str, Tensor], where: Path | str) -> None:
        """Raise CheckpointError where the weights *state*, read from *where*, are of another scale or configuration.

        Names, shapes and types of all tensors are compared afterwards.
        """
