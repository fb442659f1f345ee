"""Category attention whose heads are told apart after its queries, keys and values, not with them.

Before (twin/layers.py): one rank-5 permutation of the slots, whose parts are then selected. With a symbolic number of
slots XNNPACK permutes and does not select, so every layer has a subgraph with nothing but that permutation.

After: the slots are cut into queries, keys and values at once, and each is permuted in the subgraph that uses it.
"""

from __future__ import annotations

from torch import Tensor, nn

from ppexport.twin.layers import StaticCategoryAttention


class SplitHeads(StaticCategoryAttention):
    """As `StaticCategoryAttention`."""

    def __init__(self, source: StaticCategoryAttention) -> None:
        nn.Module.__init__(self)
        self.heads, self.group, self.channels, self.scale = source.heads, source.group, source.channels, source.scale
        self.dense, self.router, self.proj = source.dense, source.router, source.proj

    def attend(self, slots: Tensor) -> Tensor:
        """As `StaticCategoryAttention.attend`."""
        c, shape = self.channels, (-1, self.group, self.heads, self.channels // self.heads)
        q, k, v = (slots[:, i * c : (i + 1) * c].reshape(*shape).permute(0, 2, 1, 3) for i in range(3))
        weights = (q * self.scale @ k.transpose(2, 3)).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(-1, c))
        return out
