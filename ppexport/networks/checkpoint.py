"""Reads weights files, safely and strictly: PyTorch checkpoints and `.safetensors`, as people have them."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppexport.errors import CheckpointError, first_line
from ppexport.networks.card import SUFFIXES, check_weights_file
from ppexport.networks.network import Network

WRAPPERS = ("params_ema", "generator_ema", "params", "state_dict", "net_g", "model")
"""Where a checkpoint keeps its state dict, or the next wrapper, best first."""
PREFIXES = ("module.", "generator.", "_orig_mod.")
"""Of the keys of a network that was saved inside a wrapper (DataParallel, a generator, torch.compile)."""
OBJECT = re.compile(r"\bGLOBAL ([\w.]+)")
"""Names the class in the message of torch for a pickle that holds more than tensors."""
HALVES = (torch.float16, torch.bfloat16)
WAY_OUT = "save the tensors alone where it was made, with torch.save(network.state_dict(), FILE)"


def read_state(path: Path) -> dict[str, Tensor]:
    """The flat state dict in *path*, without the wrappers around it and without the prefixes of its keys.

    Args:
        path: its suffix, in any case, tells the format. Pickled files are read with `weights_only=True`, so that no
            code in them runs.

    Raises:
        CheckpointError: the file is missing, truncated or hostile, or holds no tensors.
    """
    check_weights_file(path)
    state = _unwrapped(_safetensors(path) if path.suffix.lower() == SUFFIXES[0] else _pickled(path))
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path} holds no state dict (looked for {', '.join(WRAPPERS)} and a flat one)")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: entry {key!r} is not a tensor")
        if value.is_meta or value.is_nested or value.is_quantized or value.layout != torch.strided:
            raise CheckpointError(f"{path}: {key!r} is not an ordinary dense tensor")
    return _without_prefixes(state)


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {first_line(error)}") from None


def _pickled(path: Path) -> Any:
    """What *path* holds. Nothing of what torch says of a refused file is passed on: it advises to load it unsafely."""
    if _is_torchscript(path):
        raise CheckpointError(f"{path} is a TorchScript archive, which holds a program: {WAY_OUT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes provoke
        found = OBJECT.search(str(error))
        if found:
            raise CheckpointError(
                f"{path} holds objects of {found[1]} beside its tensors, which only code could read: {WAY_OUT}"
            ) from None
        raise CheckpointError(f"{path} is damaged or is no weights file of PyTorch") from None


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _unwrapped(state: Any) -> Any:
    """The innermost dict in *state* that is in no wrapper any more; of several wrappers the best."""
    # A hostile file may hold a dict that holds itself.
    for _ in WRAPPERS:
        if isinstance(state, dict):
            state = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), state)
    return state


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """*state* without the prefixes that all of its keys have, which may be several."""
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_state(network: Network, state: dict[str, Tensor], where: str) -> None:
    """Load *state* into *network*, whose keys, shapes and types it must have. Weights of 16 bits are widened, which a
    warning says.

    Raises CheckpointError, which names the file *where* and the key.
    """
    own = network.state_dict()
    network.check_state(state, where)
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
    narrow = sorted({str(v.dtype).removeprefix("torch.") for v in state.values() if v.dtype in HALVES})
    if narrow:
        warnings.warn(f"{where} holds {' and '.join(narrow)} weights, which become float32 here", stacklevel=2)
    network.load_state_dict(state, strict=True)
