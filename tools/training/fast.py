"""A network of the toolkit made faster for training on a CPU: the same numbers, more than twice as fast.

Profiling a step showed two thirds of it in attention matrices (products with 12 channels, softmax, bias, their
gradients and the copies in between) and a tenth in the gradient of the depthwise convolution. `speed_up` swaps the
classes of those modules for subclasses that call C, which is compiled on first use for the processor at hand; weights
and their names stay, and the network's code knows nothing of it.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.errors import UnavailableError
from ppexport.networks.atd import GROUP
from ppexport.networks.atd.atd_light import DepthwiseConv
from ppexport.networks.atd.attention import CategoryAttention, WindowAttention, mirror_slots

LANES = 16
"""Floats in a vector of the kernels; also the largest head."""
MAX_SLOTS = 256
"""Slots of the largest group."""


@lru_cache
def library(source: str, **constants: int) -> ctypes.CDLL:
    """The functions of *source* with its compile-time *constants*.

    Raises UnavailableError where there is no C compiler or it does not accept the file.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler (gcc) was found")
    folder = Path(tempfile.mkdtemp(prefix="ppexport-train-"))
    target = folder / "compiled.so"
    command = [compiler, "-O3", "-march=native", "-fPIC", "-shared", *(f"-D{k}={v}" for k, v in constants.items())]
    command += [str(Path(__file__).with_name(source)), "-lm", "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"{source} does not compile here: {done.stderr.strip()[:300]}")
        return ctypes.CDLL(str(target))
    finally:
        # A loaded library needs its file no longer.
        shutil.rmtree(folder, ignore_errors=True)


def address(x: Tensor | None) -> ctypes.c_void_p:
    """Where the data of a contiguous tensor lie; null for None."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


class _Problem(ctypes.Structure):
    """`Problem` of grouped_attention.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("qkv", "source", "target", "bias", "region")),
        *((name, ctypes.c_int64) for name in ("groups", "slots", "channels", "heads")),
        ("scale", ctypes.c_float),
    ]


@lru_cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads()), thread_name_prefix="attention")


def _per_head(function: Any, problem: _Problem, *tensors: Tensor | None) -> None:
    """Call *function* for all heads, dealt out to as many threads as torch uses."""
    heads, threads = problem.heads, min(problem.heads, torch.get_num_threads())
    function.restype = None
    rest = [address(t) for t in tensors]

    def call(part: int) -> None:
        first, last = part * heads // threads, (part + 1) * heads // threads
        function(ctypes.byref(problem), ctypes.c_int64(first), ctypes.c_int64(last), *rest)

    if threads == 1:
        call(0)
    else:
        list(_pool().map(call, range(threads)))


class _Attention(torch.autograd.Function):
    """(rows, 3c) -> (rows, c); rows that are nobody's target stay 0."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        heads: int,
        source: Tensor,
        target: Tensor,
        region: Tensor | None,
    ) -> Tensor:
        rows, width = qkv.shape
        groups, slots = source.shape
        qkv = qkv.contiguous()
        bias = None if bias is None else bias.contiguous()
        out = qkv.new_zeros(rows, width // 3)
        lse = qkv.new_empty(heads, groups * slots)
        problem = _Problem(
            *(address(t) for t in (qkv, source, target, bias, region)), groups, slots, width // 3, heads, float(scale)
        )
        _per_head(library("grouped_attention.c", HEAD=width // 3 // heads).attention_forward, problem, out, lse)
        ctx.save_for_backward(qkv, scale, bias, source, target, region, out, lse)
        ctx.heads = heads
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, scale, bias, source, target, region, out, lse = ctx.saved_tensors
        heads, (groups, slots), width = ctx.heads, source.shape, qkv.shape[1]
        dout = grads[0].contiguous()
        dqkv = torch.zeros_like(qkv)
        dbias = None if bias is None else torch.zeros_like(bias)
        dscale = qkv.new_zeros(heads)
        problem = _Problem(
            *(address(t) for t in (qkv, source, target, bias, region)), groups, slots, width // 3, heads, float(scale)
        )
        backward = library("grouped_attention.c", HEAD=width // 3 // heads).attention_backward
        _per_head(backward, problem, out, lse, dout, dqkv, dbias, dscale)
        return dqkv, dscale.sum().reshape(scale.shape), dbias, None, None, None, None


def grouped_attention(
    qkv: Tensor, scale: Tensor, bias: Tensor | None, heads: int, source: Tensor, target: Tensor, region: Tensor | None
) -> Tensor:
    """*qkv* (rows, 3c) float32, *scale* one number, *bias* (heads, s, s) or None, *source*, *target* (groups, s) int32,
    *region* (groups, s) uint8 or None -> (rows, c). Formula: grouped_attention.c. Differentiable in the first three.

    Raises ValueError for groups that the kernel has no room for.
    """
    if source.shape[1] % LANES or source.shape[1] > MAX_SLOTS:
        raise ValueError(f"a group has a multiple of {LANES} slots, at most {MAX_SLOTS}, not {source.shape[1]}")
    out: Tensor = _Attention.apply(qkv, scale, bias, heads, source, target, region)  # type: ignore[no-untyped-call]
    return out


@lru_cache(maxsize=32)
def window_slots(batch: int, height: int, width: int, window: int, shift: int) -> tuple[Tensor, Tensor | None]:
    """Token of every slot (groups, window^2) int32, and its region across the wrap (uint8), for shifted windows."""

    def partition(x: Tensor) -> Tensor:
        x = x.view(-1, height // window, window, width // window, window)
        return x.transpose(2, 3).reshape(-1, window * window).contiguous()

    tokens = torch.arange(batch * height * width, dtype=torch.int32).view(batch, height, width)
    if not shift:
        return partition(tokens), None
    sides = []
    for side in (height, width):
        region = torch.zeros(side, dtype=torch.uint8)
        region[-window:] = 1
        region[-shift:] = 2
        sides.append(region)
    regions = (sides[0][:, None] * 3 + sides[1][None, :]).expand(batch, -1, -1)
    return partition(tokens.roll((-shift, -shift), (1, 2))), partition(regions)


class FastWindowAttention(WindowAttention):
    """WindowAttention by grouped_attention.c: no roll, no partition, no mask, no attention matrix."""

    def forward(self, qkv: Tensor, size: tuple[int, int], shift: int, index: Tensor) -> Tensor:
        """As the base class."""
        b, n, width = qkv.shape
        source, region = window_slots(b, *size, self.window, shift)
        area = self.window**2
        table = self.relative_position_bias_table.t().contiguous()
        bias = table.index_select(1, index.flatten()).view(self.heads, area, area)
        scale = torch.tensor(self.scale)
        mixed = grouped_attention(qkv.reshape(b * n, width), scale, bias, self.heads, source, source, region)
        out: Tensor = self.proj(mixed).view(b, n, width // 3)
        return out


def category_slots(categories: Tensor, pure: Tensor | None) -> tuple[Tensor, Tensor]:
    """Token of every slot and the row its result goes to (-1: a copy in the tail), both (groups, s) int32."""
    b, n = categories.shape
    # Small whole numbers sort several times as fast in 16 bits as in 64.
    key = categories.to(torch.int16)
    if pure is not None:
        key = key.masked_fill(pure, torch.iinfo(torch.int16).max)
    order = key.argsort(dim=1, stable=True)
    counts = [n] * b if pure is None else (n - pure.sum(dim=1)).tolist()
    source, target = [], []
    for image, m in enumerate(counts):
        if m:
            position = torch.arange(-(-m // GROUP) * GROUP)
            ranked = order[image] + image * n
            # Impure tokens come first; when they fill their groups exactly there is nothing to mirror.
            token = ranked[:m] if m == len(position) else ranked[mirror_slots(position, m)]
            source.append(token)
            target.append(torch.where(position < m, token, -1))
    if not source:
        return torch.empty(0, GROUP, dtype=torch.int32), torch.empty(0, GROUP, dtype=torch.int32)
    return tuple(torch.cat(x).to(torch.int32).view(-1, GROUP) for x in (source, target))  # type: ignore[return-value]


class FastCategoryAttention(CategoryAttention):
    """CategoryAttention by grouped_attention.c: tokens are not copied into groups and back."""

    def forward(
        self, qkv: Tensor, categories: Tensor, pure: Tensor | None = None, compensation: Tensor | None = None
    ) -> Tensor:
        """As the base class."""
        b, n, width = qkv.shape
        source, target = category_slots(categories, pure)
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        mixed = grouped_attention(qkv.reshape(b * n, width), scale, None, self.heads, source, target, None)
        out: Tensor = self.proj(mixed).view(b, n, width // 3)
        if pure is None:
            return out
        rest = out.new_zeros(()) if compensation is None else compensation
        return torch.where(pure.unsqueeze(-1), rest, out)


class _Depthwise(torch.autograd.Function):
    """Tokens (b, h, w, c), weight (kernel, kernel, c) and bias (c) -> tokens (b, h, w, c)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        out = torch.empty_like(x)
        functions = library("depthwise.c", CHANNELS=x.shape[3], KERNEL=weight.shape[0])
        sizes = [ctypes.c_int64(side) for side in x.shape[:3]]
        if not functions.depthwise_forward(*sizes, *(address(t) for t in (x, weight, bias, out))):
            raise MemoryError
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dout = grads[0].contiguous()
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        functions = library("depthwise.c", CHANNELS=x.shape[3], KERNEL=weight.shape[0])
        sizes = [ctypes.c_int64(side) for side in x.shape[:3]]
        if not functions.depthwise_backward(*sizes, *(address(t) for t in (x, weight, dout, dx, dweight))):
            raise MemoryError
        return dx, dweight, dout.sum(dim=(0, 1, 2))


class FastDepthwiseConv(DepthwiseConv):
    """DepthwiseConv on tokens as they lie; sides are multiples of 16."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """As the base class."""
        b, n, c = x.shape
        conv = self.depthwise_conv[0]
        out = _Depthwise.apply(x.view(b, *size, c), conv.weight[:, 0].permute(1, 2, 0), conv.bias)  # type: ignore
        return F.gelu(out).view(b, n, c)


def _swap(module: nn.Module) -> type[nn.Module] | None:
    """The fast class for *module*, compiled; None where its sizes have none."""
    kind = type(module)
    if isinstance(module, (WindowAttention, CategoryAttention)):
        head, left = divmod(module.proj.in_features, module.heads)
        if left or head > LANES or getattr(module, "window", LANES) ** 2 > MAX_SLOTS:
            return None
        library("grouped_attention.c", HEAD=head)
        return {WindowAttention: FastWindowAttention, CategoryAttention: FastCategoryAttention}.get(kind)
    if kind is DepthwiseConv:
        conv = cast("nn.Conv2d", cast("nn.Sequential", module.depthwise_conv)[0])
        if conv.in_channels % LANES:
            return None
        library("depthwise.c", CHANNELS=conv.in_channels, KERNEL=conv.kernel_size[0])
        return FastDepthwiseConv
    return None


def speed_up(network: nn.Module) -> int:
    """Swap what can be swapped in *network*, on the CPU in float32, in place; returns how many modules.

    Raises UnavailableError where there is no C compiler.
    """
    swapped = 0
    for module in network.modules():
        fast = _swap(module)
        if fast is not None:
            module.__class__ = fast
            swapped += 1
    return swapped
