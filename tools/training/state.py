"""What a run keeps: the networks and their weights, the files of its folder, its log, and all it needs to continue."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Generator, Tensor, nn

from ppexport.errors import CheckpointError, InputError
from ppexport.files import atomic_path, write_text
from ppexport.networks.atd.atd_light import ATDLight, PPATDLight
from ppexport.networks.checkpoint import load_state, read_state

NETWORKS: dict[str, Callable[[int], ATDLight]] = {"atd_light": ATDLight, "pp_atd_light": PPATDLight}
"""Architecture name -> builder that takes the scale. A network maps (b, 3, h, w) in [0, 1] to (b, 3, sh, sw)."""

_FORMAT = 1
OUTPUT_LAYER = "upsample.0."
"""The only parameters whose shape depends on the scale."""


def build(arch: str, scale: int) -> ATDLight:
    """A freshly initialised network. Raises InputError for an unknown architecture or scale."""
    if arch not in NETWORKS:
        raise InputError(f"{arch!r} is no network of the toolkit: choose one of {', '.join(sorted(NETWORKS))}")
    try:
        return NETWORKS[arch](scale)
    except ValueError as error:
        raise InputError(str(error)) from None


def start_from(network: ATDLight, path: Path) -> bool:
    """Load *path* into *network*, leaving its last convolution alone when the checkpoint is of another scale.

    Returns whether everything was loaded. Raises CheckpointError when anything else differs.
    """
    weights, own = read_state(path), network.state_dict()
    fresh = {
        name: value
        for name, value in own.items()
        if name.startswith(OUTPUT_LAYER) and name in weights and weights[name].shape != value.shape
    }
    load_state(network, weights | fresh, str(path))
    return not fresh


def write_weights(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write *weights* to a .safetensors file atomically."""
    with atomic_path(path) as temporary:
        # Not save_file: it replaces the file by one that only its owner can read.
        temporary.write_bytes(save({k: v.detach().contiguous() for k, v in weights.items()}, metadata=metadata))


class RunFiles:
    """The files of a run: its state, its log (one JSON object a line), a picture of that, and the averaged weights."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder, self.weights = folder, weights
        self.state, self.log, self.plot = (folder / name for name in ("state.pt", "log.jsonl", "loss.png"))

    def claim(self) -> None:
        """Make the folder and keep other processes out of it until this one ends, however it ends.

        Raises InputError when it cannot be written, is in use, or the weights could not be written later.
        """
        if self.weights.suffix != ".safetensors":
            raise InputError(f"--out takes a .safetensors file, not {self.weights.name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            # The folder itself is locked, so that no file beside the run's own has to travel with it.
            lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be a run folder: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is training in {self.folder}") from None
        # A process killed while it wrote leaves its unfinished file behind.
        for target in (self.state, self.weights, self.log, self.plot):
            for left in target.parent.glob(f".{target.name}.*{target.suffix}"):
                left.unlink(missing_ok=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """All entries; a last line cut off by a kill is left out."""
    entries: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return entries


def rewind_log(path: Path, step: int) -> None:
    """Drop the entries after *step*: they were made after the state that a resumed run continues from."""
    kept = [entry for entry in read_log(path) if entry.get("step", 0) <= step]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))


def append_log(path: Path, entry: dict[str, Any]) -> None:
    """Add one line."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def plot_log(path: Path, target: Path) -> bool:
    """Draw loss, learning rate and validation PSNR-Y over the steps; returns False where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    entries = read_log(path)
    train = [e for e in entries if e.get("kind") == "train"]
    check = [e for e in entries if e.get("kind") == "validation"]
    figure = Figure(figsize=(9, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot([e["step"] for e in train], [e["loss"] for e in train], linewidth=0.8)
    top.set_ylabel("L1 loss")
    top.set_yscale("log")
    rate = top.twinx()
    rate.plot([e["step"] for e in train], [e["lr"] for e in train], color="tab:gray", linestyle=":")
    rate.set_ylabel("learning rate")
    bottom.plot([e["step"] for e in check], [e["psnr_y"] for e in check], marker="o", markersize=3)
    bottom.set_ylabel("validation PSNR-Y (dB)")
    bottom.set_xlabel("step")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True


class Ema:
    """Exponential moving average of a network's parameters; buffers of whole numbers stay as they are."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        # The tensors of a state dict share memory with the network, so they are looked up once.
        live = network.state_dict()
        self.weights = {k: v.clone() for k, v in live.items()}
        names = [k for k, v in live.items() if v.is_floating_point()]
        self._live = [live[k] for k in names]
        self._averaged = [self.weights[k] for k in names]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network after step number *step* (from 1); early ones count more: there is little to average."""
        torch._foreach_lerp_(self._averaged, self._live, 1 - min(self.decay, (1 + step) / (10 + step)))

    def load(self, weights: dict[str, Tensor]) -> None:
        """Continue from averaged *weights*."""
        for name, value in self.weights.items():
            value.copy_(weights[name])


@dataclass
class Position:
    """Where a run is."""

    step: int = 0
    progress: float = 0.0
    trained: float = 0.0
    """Seconds spent in steps."""
    best: float = float("-inf")
    """Best validation PSNR-Y in dB so far."""


@dataclass(frozen=True)
class RunState:
    """The live objects of a run that are saved and restored together."""

    identity: dict[str, Any]
    """Architecture and scale: a saved state of another network is refused."""
    network: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    generator: Generator
    """Source of all chance in the data."""
    position: Position

    def save(self, path: Path) -> None:
        """Write the state atomically: after a kill at any moment *path* is the old or the new state."""
        state = {
            "format": _FORMAT,
            "identity": self.identity,
            "network": self.network.state_dict(),
            "ema": self.ema.weights,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "position": vars(self.position),
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Restore from *path*. Raises CheckpointError if it is unreadable or of another network."""
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        if state.get("format") != _FORMAT or state["identity"] != self.identity:
            raise CheckpointError(
                f"{path} is the state of {state.get('identity')}, not of {self.identity}: choose another run folder"
            )
        self.network.load_state_dict(state["network"])
        self.ema.load(state["ema"])
        # How a step is computed is this program's choice, not the saved state's.
        ways = [{k: group[k] for k in ("foreach", "fused")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, way in zip(self.optimizer.param_groups, ways, strict=True):
            group.update(way)
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        for name, value in state["position"].items():
            setattr(self.position, name, value)
