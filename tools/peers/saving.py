"""What Pure-Pass saves in time beside what it saves in multiply-adds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from peers.candidate import Candidate
from peers.in_onnxruntime import OurArtifact
from peers.race import Outcome
from ppexport.profile.statistics import Interval


@dataclass(frozen=True)
class Saving:
    """One flavour against its own dense ATD-light."""

    flavour: str
    pure_share: float
    capacity: int
    """Slots that the runner chose on the picture with pure pixels."""
    macs_saved: float
    """Share of the dense network's multiply-adds."""
    time_saved: Interval
    """Share of the dense artefact's time, the host's mask and choice included."""
    cost_without_pure: Interval | None
    """How much longer the picture without pure pixels takes than in the dense artefact, as a share."""
    host_ms: float
    """Median of the host's part of a call: checks, mask, choice of the capacity."""

    @property
    def realised(self) -> Interval:
        """Time saved as a share of the multiply-adds saved."""
        return self.time_saved.map(1 / self.macs_saved)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "realised": asdict(self.realised)}


def saving(
    flavour: str, outcome: Outcome, candidates: dict[str, Candidate], pure_share: float, macs_saved: float
) -> Saving | None:
    """The saving of *flavour*, None where it was not measured or nothing is saved."""
    auto = candidates.get(f"{flavour}-auto-pure")
    relative = outcome.relative(flavour, f"{flavour}-auto-pure")
    if relative is None or not isinstance(auto, OurArtifact) or macs_saved <= 0:
        return None
    busy = outcome.relative(flavour, f"{flavour}-auto-busy")
    assert auto.capacity is not None
    return Saving(
        flavour=flavour,
        pure_share=pure_share,
        capacity=auto.capacity,
        macs_saved=macs_saved,
        time_saved=relative.map(-1, 1),
        cost_without_pure=None if busy is None else busy.map(1, -1),
        host_ms=1e3 * float(np.median(auto.host_seconds)),
    )
