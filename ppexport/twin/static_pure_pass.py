"""The Pure-Pass mask inside the graph, equal bit for bit to `ppexport.device.mask` and `networks.pure_pass`.

Before (networks/pure_pass.py): int32 keys, repeat_interleave, a padded OR.

After: the keys, to some 300,000, are int32 too, since some processors compute every float in fp16. Uniform windows are
found by max pooling, and the result stays at half-window resolution, where both grids are made of whole cells, until
one nearest-neighbour enlargement at the end. Adaptive colour centres are the host's to choose, so such a mask is an
input of a graph and never inside it; called in PyTorch, this chooses them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppexport.device.mask import color_centers, key_weights
from ppexport.errors import TwinError
from ppexport.networks import pure_pass
from ppexport.networks.card import MaskOptions


class StaticPurePass(nn.Module):
    """Padded image (1, 3, H, W) -> pure pixels (H * W,) bool."""

    weights: Tensor
    offsets: Tensor

    def __init__(self, options: MaskOptions, height: int, width: int) -> None:
        super().__init__()
        self.window = options.window
        self.csmf = options.csmf and min(height, width) > options.window
        self.colors, self.adaptive = options.colors, options.centres == "adaptive"
        weights, offsets = key_weights(color_centers(options.colors))
        self.register_buffer("weights", torch.from_numpy(weights).to(torch.int32).view(1, -1, 3, 1, 1))
        self.register_buffer("offsets", torch.from_numpy(offsets).to(torch.int32).view(1, -1, 1, 1))

    def labels(self, padded: Tensor) -> Tensor:
        """(1, 1, H, W) fp32: the label of every pixel. Raises TwinError where a graph is traced that cannot have it."""
        if self.adaptive:
            tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
            if tracing or torch.compiler.is_compiling():
                raise TwinError("a graph cannot choose adaptive colour centres: give it the mask, an input of the twin")
            return pure_pass.pixel_labels(padded, self.colors, "adaptive").unsqueeze(1).float()
        pixels = (padded.clamp(0, 1) * 255 + 0.5).floor().to(torch.int32)
        keys = self.offsets
        for c in range(3):
            keys = keys + self.weights[:, :, c] * pixels[:, c : c + 1]
        return keys.argmax(dim=1, keepdim=True).float()

    def uniform(self, labels: Tensor) -> Tensor:
        """Half-window cells (1, 1, 2h, 2w) of *labels* (1, 1, h * window, w * window): 1 where its window is pure."""
        top = F.max_pool2d(labels, self.window)
        bottom = -F.max_pool2d(-labels, self.window)
        return enlarge((top == bottom).float(), 2)

    def forward(self, padded: Tensor) -> Tensor:
        """Pure pixels (H * W,) bool of the padded image (1, 3, H, W) in [0, 1]."""
        labels = self.labels(padded)
        cells = self.uniform(labels)
        half = self.window // 2
        if self.csmf:
            shifted = self.uniform(labels[:, :, half:-half, half:-half])
            cells = torch.maximum(cells, F.pad(shifted, (1, 1, 1, 1)))
        return enlarge(cells, half).view(-1) > 0.5


def enlarge(cells: Tensor, times: int) -> Tensor:
    """Repeat every cell of (1, 1, h, w) *times* in both directions, by rank 4 and 5 tensors."""
    if times == 1:
        return cells
    _, _, h, w = cells.shape
    wide = cells.view(h, 1, w, 1).expand(h, times, w, times)
    return wide.reshape(1, 1, h * times, w * times)
