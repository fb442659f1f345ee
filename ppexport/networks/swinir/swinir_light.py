"""SwinIR-light (arXiv 2108.10257), with the module names of published checkpoints, and Pure-Pass on it.

A layer computes, on tokens x (b, n, c), where every second layer shifts its windows by half a window:

    x <- x + proj(attention(qkv(LayerNorm(x))))            inside windows of 8x8
    x <- x + fc2(GELU(fc1(LayerNorm(x))))

PP-SwinIR-light has the same weights. In layers of the regular grid and in layers of the shifted one, windows of which
every pixel is pure take their values in place of attention: x <- x + proj(v). Windows that the shift wraps around the
border always attend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppexport.errors import CheckpointError
from ppexport.networks.atd.atd_light import RGB_MEAN, PatchNorm
from ppexport.networks.atd.attention import WindowAttention, relative_position_index
from ppexport.networks.card import Compensation, PurePassOptions
from ppexport.networks.network import Network, Trace, pad
from ppexport.networks.pure_pass import PurePass, easy_pixels
from ppexport.networks.swinir import SwinIRConfig

if TYPE_CHECKING:
    from pydantic import BaseModel


Easy = Mapping[int, Tensor]
"""By shift of the grid: (b, n) bool, the tokens of windows that do not attend."""


class PPSwinIROptions(PurePassOptions):
    """Options of Pure-Pass, whose windows divide the 8 pixels to which images are padded."""

    window: Literal[2, 4, 8] = Field(default=8, description="window of Pure-Pass, in pixels")


class SwinAttention(WindowAttention):
    """Window attention with its own projection to q, k and v."""

    relative_position_index: Tensor

    def __init__(self, config: SwinIRConfig) -> None:
        super().__init__(config.dim, config.window, config.heads)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        # A published state dict holds this index, so it is a buffer and is checked when weights are loaded.
        self.register_buffer("relative_position_index", relative_position_index(config.window))


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., c) -> tokens (..., c)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SwinLayer(nn.Module):
    """One transformer layer, its windows shifted by *shift* pixels."""

    compensation: Compensation = "value"
    """What easy windows put in the place of attention."""

    def __init__(self, config: SwinIRConfig, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(config.dim)
        self.attn = SwinAttention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = Mlp(config.dim, config.hidden)

    def forward(self, x: Tensor, size: tuple[int, int], easy: Easy | None) -> Tensor:
        """Tokens (b, n, c) of an image of *size* -> tokens (b, n, c)."""
        attention, z = self.attn, self.norm1(x)
        qkv = attention.qkv(z)
        mixed = attention(qkv, size, self.shift, attention.relative_position_index)
        if easy is not None:
            v = qkv[..., 2 * x.shape[2] :]
            rest = {"value": v, "normed": z, "zero": torch.zeros_like(v)}[self.compensation]
            mixed = torch.where(easy[self.shift].unsqueeze(-1), attention.proj(rest), mixed)
        x = x + mixed
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class SwinGroup(nn.Module):
    """The layers of one block."""

    def __init__(self, config: SwinIRConfig, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinLayer(config, config.window // 2 if i % 2 else 0) for i in range(depth))

    def forward(self, x: Tensor, size: tuple[int, int], easy: Easy | None) -> Tensor:
        """Tokens (b, n, c) -> tokens (b, n, c)."""
        for layer in self.blocks:
            x = layer(x, size, easy)
        return x


class SwinBlock(nn.Module):
    """Transformer layers, a 3x3 convolution and a residual connection."""

    def __init__(self, config: SwinIRConfig, depth: int) -> None:
        super().__init__()
        self.residual_group = SwinGroup(config, depth)
        self.conv = nn.Conv2d(config.dim, config.dim, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int], easy: Easy | None) -> Tensor:
        """Tokens (b, n, c) -> tokens (b, n, c)."""
        b, _, c = x.shape
        out: Tensor = self.conv(self.residual_group(x, size, easy).transpose(1, 2).reshape(b, c, *size))
        return out.flatten(2).transpose(1, 2) + x


def border_mask(side: int, window: int) -> Tensor:
    """What published code adds to the logits of shifted windows of an image (side, side): 0, or -100 between the pieces
    of opposite borders -> (windows, window^2, window^2)."""
    pieces = torch.zeros(side, dtype=torch.int64)
    pieces[-window:], pieces[-(window // 2) :] = 1, 2
    image = (3 * pieces[:, None] + pieces).view(side // window, window, side // window, window)
    piece = image.transpose(1, 2).reshape(-1, window * window)
    return torch.where(piece[:, None] == piece[:, :, None], 0.0, -100.0)


class SwinIRLight(Network):
    """SwinIR-light: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clipped."""

    arch = "swinir_light"
    mean: Tensor

    def __init__(self, scale: int, options: BaseModel | None = None) -> None:
        super().__init__(scale, options)
        self.config = config = SwinIRConfig()
        dim = config.dim
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = PatchNorm(dim)
        self.layers = nn.ModuleList(SwinBlock(config, depth) for depth in config.depths)
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    def easy_tokens(self, padded: Tensor, mask: Tensor | None) -> Easy | None:
        """Which tokens do not attend, for the padded image (b, 3, H', W'); SwinIR-light has none."""
        if mask is not None:
            raise ValueError(f"{self.arch} takes no mask: load the weights as pp_swinir_light")
        return None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """As `Network.forward`. Tokens have no categories: *categories* must be None."""
        if categories is not None:
            raise ValueError(f"{self.arch} takes no categories")
        h, w = x.shape[2:]
        padded = pad(x, self.layout)
        easy = self.easy_tokens(padded, mask)
        size = (padded.shape[2], padded.shape[3])
        first = self.conv_first(padded - self.mean)
        tokens = self.patch_embed(first)
        for block in self.layers:
            tokens = block(tokens, size, easy)
        deep = self.norm(tokens).transpose(1, 2).reshape(first.shape)
        out: Tensor = self.upsample(self.conv_after_body(deep) + first) + self.mean
        return out[:, :, : h * self.scale, : w * self.scale]

    def check_state(self, state: dict[str, Tensor], where: Path | str) -> None:
        """Raise CheckpointError for weights of another window; take out the masks of published files, which the image
        size tells."""
        window = self.config.window
        for key in [key for key in state if key.endswith(".attn_mask")]:
            mask = state.pop(key)
            side = math.isqrt(len(mask) if mask.ndim else 0) * window
            if side == 0 or not torch.equal(mask.float(), border_mask(side, window)):
                raise CheckpointError(f"{where}: {key!r} is not the mask of shifted {window}x{window} windows")
        for key, own in self.state_dict().items():
            if not key.endswith(".relative_position_index") or key not in state or state[key].shape != own.shape:
                continue
            if not torch.equal(state[key].to(own.dtype), own):
                raise CheckpointError(f"{where}: {key!r} is not the {window}x{window} window index of {self.arch}")


class PPSwinIRLight(PurePass, SwinIRLight):
    """PP-SwinIR-light: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clipped."""

    arch = "pp_swinir_light"
    options: PPSwinIROptions

    def __init__(self, scale: int, options: PPSwinIROptions | None = None) -> None:
        super().__init__(scale, options or PPSwinIROptions())
        for module in self.modules():
            if isinstance(module, SwinLayer):
                module.compensation = self.options.compensation

    def easy_tokens(self, padded: Tensor, mask: Tensor | None) -> Easy:
        """Which tokens do not attend, for the padded image (b, 3, H', W') and its *mask* (b, H', W') if given."""
        pure, window = self.mask_of(padded, mask), self.config.window
        return {shift: easy_pixels(pure, window, shift).flatten(1) for shift in self.layout.grids}
