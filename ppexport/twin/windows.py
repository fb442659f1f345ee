"""Window partition and merge with tensors of rank 4 (Core ML takes at most 5), and the cyclic shift.

Before (networks/attention.py), rank 6:

    x.view(b, h/16, 16, w/16, 16, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 256, c)
    x.roll((-8, -8), dims=(1, 2))

After, one image, the columns of a window and the channels stay together as one axis:

    x.view(h/16, 16, w/16, 16*c).permute(0, 2, 1, 3).reshape(-1, 256, c)
    two slices and a concatenation per axis
"""

from __future__ import annotations

import torch
from torch import Tensor


def partition(image: Tensor, window: int) -> Tensor:
    """Image (h, w, c) -> windows (h/window * w/window, window^2, c)."""
    h, w, c = image.shape
    x = image.reshape(h // window, window, w // window, window * c).permute(0, 2, 1, 3)
    return x.reshape(-1, window * window, c)


def merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Windows (h/window * w/window, window^2, c) -> image (h, w, c)."""
    c = windows.shape[-1]
    x = windows.reshape(height // window, width // window, window, window * c).permute(0, 2, 1, 3)
    return x.reshape(height, width, c)


def roll(image: Tensor, shift: int) -> Tensor:
    """Shift *image* (h, w, c) cyclically by *shift* pixels down and right; negative is up and left."""
    rows = torch.cat((image[-shift:], image[:-shift]), dim=0)
    return torch.cat((rows[:, -shift:], rows[:, :-shift]), dim=1)
