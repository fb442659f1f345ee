"""A finished comparison, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from peers.arithmetic import Arithmetic
from peers.candidate import Candidate
from peers.in_onnxruntime import OurArtifact
from peers.lineup import BOUND, PEERS, SHARES, set_key
from peers.machine import Machine
from peers.race import Outcome
from peers.saving import Saving

FORMAT = "ppexport-peers"
VERSION = 1


@dataclass
class Comparison:
    """Everything that was measured, and on what."""

    model: str
    scale: int
    size: tuple[int, int]
    """(h, w) of the LR picture."""
    threads: int
    machine: Machine
    pure_share: float
    """Of the padded picture that all candidates ran on."""
    busy_share: float
    """Of the picture without pure pixels."""
    dense_flop: int
    outcome: Outcome
    candidates: dict[str, Candidate]
    savings: list[Saving]
    memory: dict[str, int] = field(default_factory=dict)
    """Key -> peak bytes of a process that loads it and runs it once."""

    @property
    def rates(self) -> list[float]:
        """FLOP/s of sgemm in every turn, the warm-up left out."""
        bound = self.candidates.get(BOUND)
        count = sum(len(times) for times in self.outcome.times.get(PEERS, {}).get(BOUND, []))
        return bound.rates[-count:] if isinstance(bound, Arithmetic) and count else []

    def capacities(self, flavour: str) -> list[tuple[int, str]]:
        """Slots and key of every fixed capacity of *flavour* that was measured, ascending."""
        keys = [set_key(flavour, share) for share in SHARES]
        table = self.outcome.times.get(flavour, {})
        found = [
            (c.capacity, key) for key in keys if key in table and isinstance(c := self.candidates[key], OurArtifact)
        ]
        return sorted((slots, key) for slots, key in found if slots is not None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: raw seconds of every round, and what the tables say. Equal pictures have null for infinite dB."""
        outcome = self.outcome
        heats: dict[str, Any] = {}
        for heat, table in outcome.times.items():
            rows = {}
            for key, rounds in table.items():
                faster = outcome.faster(heat, key)
                assert faster is not None
                rows[key] = {
                    "name": outcome.names[key],
                    "ms": asdict(outcome.spread(heat, key)),
                    "times_as_fast_as_baseline": asdict(faster),
                    "decibel": outcome.decibel.get(key),
                    "peak_bytes": self.memory.get(key),
                    "seconds": rounds,
                }
            heats[heat] = {"baseline": next(iter(table)), "candidates": rows}
        rates = self.rates
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "scale": self.scale,
            "lr_size": list(self.size),
            "threads": self.threads,
            "rounds": self.outcome.done,
            "machine": self.machine.to_dict(),
            "pure_share": self.pure_share,
            "pure_share_of_busy_picture": self.busy_share,
            "dense_flop": self.dense_flop,
            "sgemm_flop_per_second": {"median": float(np.median(rates)), "best": max(rates)} if rates else None,
            "heats": heats,
            "skipped": outcome.skipped,
            "pure_pass": [saving.to_dict() for saving in self.savings],
        }

    def peers(self) -> list[str]:
        """Keys of the heat of all programs, in their order."""
        return list(self.outcome.times.get(PEERS, {}))
