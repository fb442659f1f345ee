"""The three token mixers of an ATD layer (arXiv 2401.08209, section 3): dictionary, category and window attention.

All work on tokens (b, n, c) in row-major image order; category and window attention share a qkv (b, n, 3c). Module and
parameter names are those of published checkpoints.

Category attention (AC-MSA) works on slots. Tokens are sorted by ascending category, ties by token position (a stable
sort). Slot p of an image with m impure tokens reads the sorted token r(p): q = p mod 2m, r = q if q < m else 2m-1-q,
which is ATD's mirrored tail, defined also for small m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mirror_slots(slots: Tensor, m: int) -> Tensor:
    """r(p) for slots p (int64) over *m* >= 1 sorted tokens."""
    q = slots % (2 * m)
    return torch.where(q < m, q, 2 * m - 1 - q)


@dataclass(frozen=True)
class Routes:
    """Slots of a batch, flattened over its images. Indices count tokens of the flattened batch (b * n)."""

    source: Tensor
    """(S,) token read by every slot; S is a multiple of the group size."""
    tokens: Tensor
    """(M,) the impure tokens, in slot order."""
    slots: Tensor
    """(M,) the slot that holds each of them."""


def route(categories: Tensor, pure: Tensor | None, group: int) -> Routes:
    """Routes for *categories* (b, n) int64 and *pure* (b, n) bool, True = skips the branch; None = no pure token.

    n is that of a padded image, so at least 256 tokens and thus a *group*.
    """
    b, n = categories.shape
    key = categories if pure is None else categories.masked_fill(pure, torch.iinfo(categories.dtype).max)
    order = key.argsort(dim=1, stable=True)
    counts = [n] * b if pure is None else (n - pure.sum(dim=1)).tolist()
    source, tokens, slots, start = [], [], [], 0
    for image, m in enumerate(counts):
        position = torch.arange(-(-m // group) * group, device=categories.device)
        ranked = order[image] + image * n
        source.append(ranked[mirror_slots(position, m)])
        tokens.append(ranked[:m])
        slots.append(position[:m] + start)
        start += len(position)
    return Routes(torch.cat(source), torch.cat(tokens), torch.cat(slots))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of (..., s, d) tensors; *bias* is added to the logits (..., s, s)."""
    logits = q @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1) @ v


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(b, s, 3c) -> q, k, v of (b, heads, s, c / heads)."""
    b, s, width = qkv.shape
    q, k, v = qkv.view(b, s, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def merge_heads(x: Tensor) -> Tensor:
    """(b, heads, s, d) -> (b, s, heads * d)."""
    b, heads, s, d = x.shape
    return x.transpose(1, 2).reshape(b, s, heads * d)


class DictionaryAttention(nn.Module):
    """ATD-CA: cosine cross-attention from every token to the block's token dictionary (equations 3 and 4)."""

    def __init__(self, dim: int, dictionary_tokens: int, reduced_dim: int, second: bool = False) -> None:
        """*second*: as version 2 of the network has it, with one scale for all entries, up to 3."""
        super().__init__()
        self.dictionary_tokens, self.largest = dictionary_tokens, 3 if second else 1
        self.wq = nn.Linear(dim, reduced_dim)
        self.wk = nn.Linear(dim, reduced_dim)
        self.wv = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.full((1 if second else dictionary_tokens,), 0.5))

    def temperature(self) -> Tensor:
        """What the similarity to every entry is multiplied with, (t,) or (1,)."""
        return 1 + self.scale.clamp(0, self.largest) * math.log(self.dictionary_tokens)

    def forward(self, z: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens *z* (b, n, c), *dictionary* (b, t, c) -> output (b, n, c), similarity (b, n, t) that sums to 1."""
        q = F.normalize(self.wq(z), dim=-1)
        k = F.normalize(self.wk(dictionary), dim=-1)
        similarity = (q @ k.transpose(-1, -2) * self.temperature()).softmax(dim=-1)
        return similarity @ self.wv(dictionary), similarity


class CategoryAttention(nn.Module):
    """AC-MSA: attention inside groups of tokens of like category (section 3.3), for the impure tokens only."""

    logit_scale: Tensor

    def __init__(self, dim: int, heads: int, group: int, second: bool = False) -> None:
        """*group*: tokens of a group. *second*: as version 2 of the network has it, with a fixed scale."""
        super().__init__()
        self.heads, self.group = heads, group
        if second:
            self.register_buffer("logit_scale", torch.tensor(math.log((dim // heads) ** -0.5)), persistent=False)
        else:
            self.logit_scale = nn.Parameter(torch.full((1, 1), math.log(10)))
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, qkv: Tensor, categories: Tensor, pure: Tensor | None = None, compensation: Tensor | None = None
    ) -> Tensor:
        """Branch output (b, n, c) of *qkv* (b, n, 3c) and *categories* (b, n).

        Where *pure* (b, n) is true the output is *compensation* (b, n, c).
        """
        b, n, width = qkv.shape
        dim = width // 3
        routes = route(categories, pure, self.group)
        groups = qkv.reshape(b * n, width)[routes.source].view(-1, self.group, width)
        q, k, v = split_heads(groups, self.heads)
        q = q * self.logit_scale.clamp(max=math.log(100)).exp()
        mixed = merge_heads(attend(q, k, v)).view(-1, dim)
        mixed = self.proj(mixed[routes.slots])
        rest = mixed.new_zeros(b * n, dim) if compensation is None else compensation.reshape(b * n, dim)
        return rest.index_copy(0, routes.tokens, mixed).view(b, n, dim)


def relative_position_index(window: int) -> Tensor:
    """(window^2, window^2) int64: the row of the bias table for a pair of positions in a window."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    side = 2 * window - 1
    base = (y * side + x).flatten()
    return base[:, None] - base[None, :] + (window - 1) * side + (window - 1)


def window_partition(x: Tensor, window: int) -> Tensor:
    """Image (b, h, w, c) -> windows (b * h/window * w/window, window^2, c)."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


def window_merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Windows (b * h/window * w/window, window^2, c) -> image (b, h, w, c)."""
    c = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, c)


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(h/window * w/window, window^2, window^2): 0 inside one region of the shifted image, -100 across the wrap."""
    regions = []
    for size in (height, width):
        region = torch.zeros(size, device=device)
        region[-window:] = 1
        region[-shift:] = 2
        regions.append(region)
    image = (regions[0][:, None] * 3 + regions[1][None, :]).view(1, height, width, 1)
    ids = window_partition(image, window).squeeze(-1)
    return (ids[:, None, :] != ids[:, :, None]).float() * -100.0


class WindowAttention(nn.Module):
    """SW-MSA: attention inside 16x16 windows with a relative position bias (as in Swin)."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.proj = nn.Linear(dim, dim)

    def bias(self, index: Tensor) -> Tensor:
        """The position bias (heads, window^2, window^2), of *index* from relative_position_index."""
        area = self.window * self.window
        return self.relative_position_bias_table[index.flatten()].view(area, area, self.heads).permute(2, 0, 1)

    def forward(self, qkv: Tensor, size: tuple[int, int], shift: int, index: Tensor) -> Tensor:
        """Branch output (b, n, c) of *qkv* (b, n, 3c) for an image of *size*; *index* from relative_position_index."""
        b, n, width = qkv.shape
        h, w = size
        image = qkv.view(b, h, w, width)
        if shift:
            image = image.roll((-shift, -shift), dims=(1, 2))
        windows = window_partition(image, self.window)
        q, k, v = split_heads(windows, self.heads)
        bias = self.bias(index)
        if shift:
            mask = shift_mask(h, w, self.window, shift, qkv.device)
            bias = (bias + mask.unsqueeze(1)).repeat(b, 1, 1, 1)
        mixed = self.proj(merge_heads(attend(q * self.scale, k, v, bias)))
        out = window_merge(mixed, self.window, h, w)
        if shift:
            out = out.roll((shift, shift), dims=(1, 2))
        return out.reshape(b, n, width // 3)
