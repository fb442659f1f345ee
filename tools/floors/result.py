"""What was measured, and what follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from peers.figures import Spread
from peers.lineup import BOUND
from peers.machine import Machine
from peers.race import Outcome

from floors.kernel import Kernel
from floors.part import ROWS, Part
from floors.parts import total_macs
from ppexport.profile.statistics import Interval, median_interval

HEAT = "floors"
ARTEFACT = "ort-dense"


@dataclass(frozen=True)
class Floors:
    """The kernels of all parts, raced with the artefact and with sgemm."""

    model: str
    size: tuple[int, int]
    """(h, w) of the LR picture."""
    threads: int
    copies: int
    """Of every formulation in its graph."""
    machine: Machine
    parts: list[Part]
    kernels: dict[str, list[Kernel]]
    """Part -> those that run here, the artefact's first."""
    differences: dict[str, float]
    """Kernel -> largest absolute difference to the first of its part."""
    skipped: dict[str, str]
    """Kernel -> why it cannot run here."""
    outcome: Outcome
    network_flop: int
    """Of the dense network as it is published."""
    rates: list[float]
    """FLOP/s of sgemm, by turn."""

    def spread(self, key: str) -> Spread:
        """Median, p10 and p90 of one time, in ms."""
        return self.outcome.spread(HEAT, key)

    def rounds(self, key: str) -> list[float]:
        """Mean seconds in every round."""
        return [float(np.mean(times)) for times in self.outcome.times[HEAT][key]]

    def best(self, part: Part) -> Kernel:
        """The fastest formulation by its median."""
        return min(self.kernels[part.key], key=lambda kernel: self.spread(kernel.key).median)

    def best_in_rows(self, part: Part) -> Kernel:
        """The fastest formulation that fits between the others."""
        rows = [kernel for kernel in self.kernels[part.key] if kernel.formulation.layout == ROWS]
        return min(rows, key=lambda kernel: self.spread(kernel.key).median)

    @cached_property
    def chosen(self) -> dict[str, Kernel]:
        """Part -> its floor."""
        return {part.key: self.best(part) for part in self.parts}

    def floor_ms(self, part: Part) -> float:
        """The floor of all times that a part occurs."""
        return part.count * self.spread(self.chosen[part.key].key).median

    def sums(self, chosen: dict[str, Kernel], attention_only: bool = False) -> list[float]:
        """Per round, the seconds of a whole network made of *chosen*."""
        parts = [part for part in self.parts if part.attention or not attention_only]
        by_part = [[part.count * t for t in self.rounds(chosen[part.key].key)] for part in parts]
        return [sum(times) for times in zip(*by_part, strict=True)]

    def fitting(self) -> dict[str, Kernel]:
        """Part -> its floor among formulations in rows."""
        return {part.key: self.best_in_rows(part) for part in self.parts}

    def own(self) -> dict[str, Kernel]:
        """Part -> the artefact's formulation."""
        return {part.key: self.kernels[part.key][0] for part in self.parts}

    def to_artefact(self, chosen: dict[str, Kernel]) -> Interval:
        """The artefact's time divided by the sum of *chosen*."""
        return median_interval([a / s for a, s in zip(self.rounds(ARTEFACT), self.sums(chosen), strict=True)])

    def to_bound(self, seconds: list[float]) -> Interval:
        """*seconds* of every round divided by the arithmetic bound."""
        return median_interval([t / b for t, b in zip(seconds, self.rounds(BOUND), strict=True)])

    def attention_share(self) -> Interval:
        """Share of the floor that is attention."""
        some, every = self.sums(self.chosen, attention_only=True), self.sums(self.chosen)
        return median_interval([a / s for a, s in zip(some, every, strict=True)])

    @property
    def rate(self) -> float:
        """Median FLOP/s of sgemm."""
        return float(np.median(self.rates))

    @property
    def computed_macs(self) -> int:
        """Multiply-adds of all parts, which leave out what constants and cut windows save."""
        return total_macs(self.parts)

    def _part(self, part: Part) -> dict[str, Any]:
        """One part for JSON."""
        kernels = [
            {
                "formulation": kernel.formulation.name,
                "layout": kernel.formulation.layout,
                "of_the_artefact": i == 0,
                "seconds": self.outcome.times[HEAT][kernel.key],
                **{f"{name}_ms": value for name, value in asdict(self.spread(kernel.key)).items()},
                "largest_difference": self.differences[kernel.key],
            }
            for i, kernel in enumerate(self.kernels[part.key])
        ]
        return {
            "key": part.key,
            "name": part.name,
            "count": part.count,
            "macs": part.macs,
            "attention": part.attention,
            "formulations": kernels,
            "best": self.chosen[part.key].formulation.name,
            "floor_ms": self.floor_ms(part),
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        sums = {"floor": self.chosen, "floor_in_rows": self.fitting(), "own_formulations": self.own()}
        return {
            "model": self.model,
            "lr_size": list(self.size),
            "threads": self.threads,
            "rounds": self.outcome.done,
            "copies": self.copies,
            "machine": self.machine.to_dict(),
            "parts": [self._part(part) for part in self.parts],
            "skipped": self.skipped,
            "sums": {
                name: {"seconds": self.sums(chosen), "artefact_to_sum": asdict(self.to_artefact(chosen))}
                for name, chosen in sums.items()
            },
            "artefact_seconds": self.outcome.times[HEAT][ARTEFACT],
            "bound": {
                "network_flop": self.network_flop,
                "computed_macs": self.computed_macs,
                "sgemm_flop_per_second": self.rates,
                "seconds": self.outcome.times[HEAT][BOUND],
                "floor_to_bound": asdict(self.to_bound(self.sums(self.chosen))),
                "artefact_to_bound": asdict(self.to_bound(self.rounds(ARTEFACT))),
            },
            "attention_share": asdict(self.attention_share()),
        }
