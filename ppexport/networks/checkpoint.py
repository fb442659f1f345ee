"""Reads weights files, safely and strictly: published `.pth` checkpoints and `.safetensors`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppexport.errors import CheckpointError, first_line
from ppexport.networks.atd import ATDLight

WRAPPERS = ("params_ema", "params")
"""Where a published checkpoint keeps its state dict, best first."""
INDEX = "relative_position_index_SA"
LAST = "upsample.0.weight"


def read_state(path: Path) -> dict[str, Tensor]:
    """The flat state dict in *path*. `.pth` and `.pt` are unpickled with `weights_only=True`: no code of theirs runs.

    Raises CheckpointError for a file that is missing, truncated, hostile or holds no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in (".pth", ".pt"):
            raise CheckpointError(f"{path}: weights are .safetensors, .pth or .pt files")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    except Exception as error:  # torch.load raises whatever the bytes provoke
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and was refused: {first_line(error)}"
        ) from None
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path} holds no state dict (looked for {', '.join(WRAPPERS)} and a flat one)")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: entry {key!r} is not a tensor")
        if value.is_meta or value.is_nested or value.is_quantized or value.layout != torch.strided:
            raise CheckpointError(f"{path}: {key!r} is not an ordinary dense tensor")
    return state


def load_state(network: ATDLight, state: dict[str, Tensor], where: str) -> None:
    """Load *state* into *network*, every key and shape as must be; CheckpointError names *where* and the key."""
    own = network.state_dict()
    scale = network.config.scale
    last = state.get(LAST)
    if last is not None and last.ndim == 4 and last.shape[0] != 3 * scale**2:
        root = (last.shape[0] / 3) ** 0.5
        found = f"x{root:.0f}" if root == int(root) else f"another scale ({last.shape[0]} output channels)"
        raise CheckpointError(f"{where} holds weights for {found}, not x{scale} (key {LAST})")
    for key in own:
        if key not in state:
            raise CheckpointError(f"{where} has no key {key!r}, which {network.arch} needs")
    for key, value in state.items():
        if key not in own:
            raise CheckpointError(f"{where} has a key that {network.arch} does not know: {key!r}")
        if value.shape != own[key].shape:
            raise CheckpointError(f"{where}: {key!r} has shape {tuple(value.shape)}, not {tuple(own[key].shape)}")
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex():
            raise CheckpointError(f"{where}: {key!r} has type {value.dtype}, not {own[key].dtype}")
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise CheckpointError(f"{where}: {key!r} holds NaN or infinite values")
    if not torch.equal(state[INDEX].to(own[INDEX].dtype), own[INDEX]):
        raise CheckpointError(f"{where}: {INDEX!r} is not the 16x16 window index of {network.arch}")
    network.load_state_dict(state, strict=True)
