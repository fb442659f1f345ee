"""The lengths that the parts of one network have at one LR size."""

from __future__ import annotations

from dataclasses import dataclass

from ppexport.device.mask import padded_size
from ppexport.networks.atd.attention import GROUP_SIZE
from ppexport.networks.atd.network import AtdConfig
from ppexport.twin.blocks import Kind, kinds_of

GROUP = GROUP_SIZE


@dataclass(frozen=True)
class Shape:
    """A dense ATD-light, and the size (h, w) of its LR picture before padding."""

    config: AtdConfig
    size: tuple[int, int]

    @property
    def padded(self) -> tuple[int, int]:
        """(H, W), multiples of 16."""
        return padded_size(self.size[0]), padded_size(self.size[1])

    @property
    def n(self) -> int:
        """Tokens: pixels of the padded picture."""
        return self.padded[0] * self.padded[1]

    @property
    def c(self) -> int:
        """Channels of a token."""
        return self.config.dim

    @property
    def heads(self) -> int:
        """Heads of window and category attention."""
        return self.config.heads

    @property
    def width(self) -> int:
        """Channels of a head."""
        return self.c // self.heads

    @property
    def t(self) -> int:
        """Tokens of the dictionary, which are the categories."""
        return self.config.dictionary_tokens

    @property
    def r(self) -> int:
        """Channels that tokens and dictionary are compared in."""
        return self.config.reduced_dim

    @property
    def layers(self) -> int:
        """Transformer layers."""
        return self.config.layers

    @property
    def blocks(self) -> int:
        """Blocks of layers, each with a dictionary of its own."""
        return len(self.config.depths)

    @property
    def refining(self) -> int:
        """Layers that refine the dictionary: all but the last of every block."""
        return self.layers - self.blocks

    @property
    def shifted(self) -> int:
        """Layers whose windows are shifted: every second one of a block."""
        return sum(depth // 2 for depth in self.config.depths)

    @property
    def plain(self) -> int:
        """Layers whose windows are not shifted."""
        return self.layers - self.shifted

    def shift(self, shifted: bool) -> int:
        """Pixels that the windows of a layer are shifted by."""
        return self.config.window // 2 if shifted else 0

    def kinds(self, shifted: bool) -> list[Kind]:
        """The kinds of blocks that window attention works in."""
        return kinds_of(*self.padded, self.config.window, self.shift(shifted))
