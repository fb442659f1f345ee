"""Everything a run needs to go on where it was, in one file that is whole or absent."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ppexport.errors import CheckpointError
from ppexport.files import atomic_path

_FORMAT = 1


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
        """Go on from averaged *weights*."""
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
