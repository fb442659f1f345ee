"""The ATD family (arXiv 2401.08209, CVPR 2024), with the module names of published checkpoints, and Pure-Pass on it.

A layer computes, on tokens x (b, n, c):

    z  = LayerNorm(x);  qkv = Linear(z)
    x <- x + dictionary(z) + category(qkv) + window(qkv)
    x <- x + ConvFFN(LayerNorm(x))
    td <- s * td + (1 - s) * softmax_n(InstanceNorm(similarity^T)) @ x        (not in a block's last layer)

PP-ATD-light (arXiv 2510.01997) is the same network, whose pure tokens skip category attention. It adds no parameters: a
checkpoint of ATD-light loads as it is. What its paper leaves open are options of the model card. An `AtdConfig` says
what the networks of the family differ in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ppexport.errors import CheckpointError
from ppexport.networks.architecture import Architecture, find_architecture
from ppexport.networks.atd import AtdLight
from ppexport.networks.atd.attention import (
    CategoryAttention,
    DictionaryAttention,
    WindowAttention,
    relative_position_index,
)
from ppexport.networks.atd.config import PUBLISHED, AtdConfig
from ppexport.networks.atd.convolutions import ConvFFN, conv3x3, residual_convolution, upsampler
from ppexport.networks.card import Compensation, PurePassOptions
from ppexport.networks.network import Network, Trace, pad
from ppexport.networks.pure_pass import PurePass

RGB_MEAN = (0.4488, 0.4371, 0.4040)


class AtdOptions(BaseModel):
    """What weights of the family do not tell: the tokens of a group of category attention, 256 in the classical ATD.

    A group divides the 256 tokens of a window, to whose multiples images are padded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    category_size: Literal[32, 64, 128, 256] = Field(
        default=256, description="tokens of a group of category attention, as in training"
    )


class PPAtdOptions(AtdOptions, PurePassOptions):
    """The same, and the options of Pure-Pass."""


@dataclass
class Routing:
    """What all layers of one pass share: the pure mask, injected categories, and the trace to fill."""

    pure: Tensor | None = None
    condition: Tensor | None = None
    """What content-aware mixers know of every pixel (b, 4, h, w); None in networks without them."""
    forced: Iterator[Tensor] | None = None
    trace: Trace | None = None

    def categories(self, similarity: Tensor) -> Tensor:
        """Categories (b, n) for one layer's *similarity* (b, n, t)."""
        own = similarity.argmax(dim=-1)
        if self.trace is not None:
            self.trace.choose(similarity, own)
        return own if self.forced is None else next(self.forced)


class TransformerLayer(nn.Module):
    """One layer; *refines* is false for the last layer of a block."""

    compensation: Compensation = "zero"
    """What pure tokens take in place of category attention."""

    def __init__(self, config: AtdConfig, shift: int, refines: bool) -> None:
        super().__init__()
        dim = config.dim
        self.shift = shift
        self.refines = refines
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.attn_win = WindowAttention(dim, config.window, config.heads)
        self.attn_atd = DictionaryAttention(dim, config.dictionary_tokens, config.reduced_dim, config.is_second)
        self.attn_aca = CategoryAttention(dim, config.heads, config.category_size, config.is_second)
        self.convffn = ConvFFN(dim, config.hidden, config.kernel, config.dictionary_channels)
        self.fc_td = nn.Linear(dim, config.dictionary_channels) if config.is_second else None
        if refines:
            self.norm3 = nn.InstanceNorm1d(config.dictionary_tokens, affine=True)
            self.sigma = nn.Parameter(torch.zeros(config.dictionary_tokens, 1))

    def mix_windows(self, qkv: Tensor, size: tuple[int, int], index: Tensor, routing: Routing) -> Tensor:
        """Output (b, n, c) of the branch of windows, of *qkv* (b, n, 3c)."""
        out: Tensor = self.attn_win(qkv, size, self.shift, index)
        return out

    def forward(
        self, x: Tensor, dictionary: Tensor, size: tuple[int, int], index: Tensor, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        """Tokens *x* (b, n, c) and *dictionary* (b, t, c) -> both, for the next layer."""
        z = self.norm1(x)
        qkv = self.wqkv(z)
        from_dictionary, similarity = self.attn_atd(z, dictionary)
        categories = routing.categories(similarity)
        rest = {"value": qkv[..., -z.shape[-1] :], "normed": z, "zero": None}[self.compensation]
        from_category = self.attn_aca(qkv, categories, routing.pure, rest)
        x = x + self.mix_windows(qkv, size, index, routing) + from_dictionary + from_category
        extra = None
        if self.fc_td is not None:
            of_category = self.fc_td(dictionary)
            extra = of_category.gather(1, categories.unsqueeze(-1).expand(-1, -1, of_category.shape[-1]))
        x = x + self.convffn(self.norm2(x), size, extra)
        if self.refines:
            weights = self.norm3(similarity.transpose(-1, -2)).softmax(dim=-1)
            s = self.sigma.sigmoid()
            dictionary = s * dictionary + (1 - s) * (weights @ x)
        if routing.trace is not None:
            routing.trace.tokens.append(x)
        return x, dictionary


class LayerGroup(nn.Module):
    """The layers of one block and the token dictionary they share and refine."""

    def __init__(self, config: AtdConfig, depth: int, layer: type[TransformerLayer]) -> None:
        super().__init__()
        self.td = nn.Parameter(torch.randn(config.dictionary_tokens, config.dim))
        self.layers = nn.ModuleList(
            layer(config, shift=config.window // 2 if i % 2 else 0, refines=i < depth - 1 and not config.is_second)
            for i in range(depth)
        )

    def forward(self, x: Tensor, size: tuple[int, int], index: Tensor, routing: Routing) -> Tensor:
        """Tokens (b, n, c) -> tokens (b, n, c)."""
        dictionary = self.td.expand(x.shape[0], -1, -1)
        for layer in self.layers:
            x, dictionary = layer(x, dictionary, size, index, routing)
        return x


class Block(nn.Module):
    """Transformer layers, a convolution and a residual connection; in version 2 a LayerNorm behind them."""

    def __init__(self, config: AtdConfig, depth: int, layer: type[TransformerLayer]) -> None:
        super().__init__()
        self.residual_group = LayerGroup(config, depth, layer)
        self.conv = residual_convolution(config)
        self.norm = nn.LayerNorm(config.dim) if config.is_second else None

    def forward(self, x: Tensor, size: tuple[int, int], index: Tensor, routing: Routing) -> Tensor:
        """Tokens (b, n, c) -> tokens (b, n, c)."""
        b, _, c = x.shape
        y = self.residual_group(x, size, index, routing).transpose(1, 2).reshape(b, c, *size)
        out: Tensor = self.conv(y).flatten(2).transpose(1, 2) + x
        return out if self.norm is None else self.norm(out)


class PatchNorm(nn.Module):
    """The LayerNorm after the first convolution, under its published name `patch_embed.norm`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Image (b, c, h, w) -> normalised tokens (b, n, c)."""
        out: Tensor = self.norm(x.flatten(2).transpose(1, 2))
        return out


class ATDLight(Network):
    """A network of the ATD family: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clipped."""

    arch = "atd"
    general = AtdOptions
    layer = TransformerLayer
    """What its blocks are made of."""
    mean: Tensor
    relative_position_index_SA: Tensor

    def __init__(self, scale: int, options: BaseModel | None = None, config: AtdConfig | None = None) -> None:
        """*config* None is ATD-light. With `AtdOptions`, or another *config* than the published ones of light networks,
        the network is a general `atd`, whose groups are as large as its options say."""
        config = config or AtdConfig()
        if config not in PUBLISHED and not isinstance(options, AtdOptions):
            options = self.general.model_validate({**dict(options or {}), "category_size": config.category_size})
        super().__init__(scale, options)
        if isinstance(options, AtdOptions):
            config = replace(config, category_size=options.category_size)
        else:
            self.arch += PUBLISHED[config]
        self.config = config
        if scale not in ((4,) if config.upsampler == "nearest+conv" else (2, 3, 4)):
            raise ValueError(f"{self.arch} with {config.upsampler} is not made for scale {scale}")
        dim = config.dim
        self.conv_first = conv3x3(3, dim)
        self.patch_embed = PatchNorm(dim)
        self.layers = nn.ModuleList(Block(config, depth, self.layer) for depth in config.depths)
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = residual_convolution(config)
        tail = upsampler(config, scale)
        for name, module in tail.items():
            self.add_module(name, module)
        self.tail = tuple(tail)
        """The modules of the upsampler, in the order in which they run."""
        # A published state dict holds this index, so it is a buffer and is checked when weights are loaded.
        self.register_buffer("relative_position_index_SA", relative_position_index(config.window))
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    @property
    def architecture(self) -> Architecture:
        """With the sizes of this network."""
        return cast(AtdLight, find_architecture(self.arch)).sized(self.config)

    def pure_tokens(self, padded: Tensor, mask: Tensor | None) -> Tensor | None:
        """Pure tokens (b, n) of the padded image; ATD-light has none."""
        if mask is not None:
            raise ValueError(f"{self.arch} takes no mask: load the weights as pp_{self.arch}")
        return None

    def condition(self, first: Tensor) -> Tensor | None:
        """What content-aware mixers know of every pixel (b, 4, h, w), of the *first* convolution's output."""
        return None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        categories: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """As `Network.forward`."""
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(f"{self.arch} takes floats (b, 3, h, w) in [0, 1], not {x.dtype} {tuple(x.shape)}")
        h, w = x.shape[2:]
        padded = pad(x, self.layout)
        size = (padded.shape[2], padded.shape[3])
        first = self.conv_first(padded - self.mean)
        routing = Routing(
            pure=self.pure_tokens(padded, mask),
            condition=self.condition(first),
            forced=None if categories is None else iter(categories.long()),
            trace=trace,
        )
        tokens = self.patch_embed(first)
        for block in self.layers:
            tokens = block(tokens, size, self.relative_position_index_SA, routing)
        deep = self.norm(tokens).transpose(1, 2).reshape(first.shape)
        deep = self.conv_after_body(deep) + first
        for name in self.tail:
            deep = self.get_submodule(name)(deep)
        out: Tensor = deep + self.mean
        scale = self.scale
        return out[:, :, : h * scale, : w * scale]

    def check_state(self, state: dict[str, Tensor], where: Path | str) -> None:
        """Raise CheckpointError for weights of another window."""
        index = state.get("relative_position_index_SA")
        own = self.relative_position_index_SA
        if index is not None and index.shape == own.shape and not torch.equal(index.to(own.dtype), own):
            raise CheckpointError(f"{where}: 'relative_position_index_SA' is not the 16x16 window index of {self.arch}")


class PPATDLight(PurePass, ATDLight):
    """The same with Pure-Pass: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clipped."""

    arch = "pp_atd"
    general = PPAtdOptions
    options: PurePassOptions

    def __init__(self, scale: int, options: PurePassOptions | None = None, config: AtdConfig | None = None) -> None:
        super().__init__(scale, options or PurePassOptions(), config)
        for module in self.modules():
            if isinstance(module, TransformerLayer):
                module.compensation = self.options.compensation

    def pure_tokens(self, padded: Tensor, mask: Tensor | None) -> Tensor:
        """Pure tokens (b, H' * W') bool of the padded image (b, 3, H', W'), from *mask* (b, H', W') if given."""
        return self.mask_of(padded, mask).flatten(1)
