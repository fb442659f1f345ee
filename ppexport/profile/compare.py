"""Two measurements beside each other: the ratio of their latencies, with its interval.

Offline, two `profile.json` of different times: the interval covers what varied within each run, and nothing that
changed between them, such as heat or other programs; marks and differences are listed, and deciding is the reader's.
Interleaved, two subjects of one run: the machine's drift hits both, and mostly cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.errors import InputError, counted
from ppexport.profile.result import Profile
from ppexport.profile.statistics import PERCENTILES, Interval, ratio_independent, ratio_interleaved


@dataclass(frozen=True)
class Side:
    """One subject of one measurement."""

    profile: Profile
    index: int

    @property
    def subject(self) -> dict[str, Any]:
        """What the file says of it."""
        return self.profile.subjects[self.index]

    @property
    def ms(self) -> NDArray[np.float64]:
        """Its latencies, in the order of measurement."""
        return np.asarray(self.profile.samples[self.index]["ns"], np.float64) / 1e6


@dataclass(frozen=True)
class Comparison:
    """B against A."""

    a: Side
    b: Side
    interleaved: bool
    ratios: dict[str, Interval]
    """B's latency divided by A's, at p50, p90 and p99."""
    differences: tuple[str, ...]
    """What else differs, for people."""

    def slower(self, percentile: str, limit: float) -> bool:
        """Whether B is slower than *limit* times A beyond doubt: the whole interval lies above."""
        return self.ratios[percentile].low > limit

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        sides = {
            name: {
                "file": str(side.profile.path), "subject": side.subject["name"], "summary": side.subject["summary"],
                "marks": side.profile.data["marks"],
            }
            for name, side in (("a", self.a), ("b", self.b))
        }  # fmt: skip
        return {
            "format": "ppexport-comparison",
            "version": 1,
            **sides,
            "interleaved": self.interleaved,
            "ratios": {name: interval.to_dict() for name, interval in self.ratios.items()},
            "differences": list(self.differences),
        }


def only_subject(profile: Profile) -> Side:
    """The subject of a run of one. Raises InputError for a run of several."""
    if len(profile.subjects) > 1:
        names = ", ".join(subject["name"] for subject in profile.subjects)
        raise InputError(f"{profile.path} holds several subjects ({names}): compare it alone, as `compare FILE`")
    return Side(profile, 0)


def differences_of(a: Side, b: Side) -> tuple[str, ...]:
    """What differs between two measurements besides what was measured."""
    found = []
    first, second = a.profile.data, b.profile.data
    for what, key in (("processor", "cpu"), ("system", "system"), ("cores", "usable_cores")):
        if first["machine"].get(key) != second["machine"].get(key):
            found.append(f"{what}: {first['machine'].get(key)} and {second['machine'].get(key)}")
    hashes = [[image.get("sha256") for image in data["images"]] for data in (first, second)]
    if hashes[0] != hashes[1]:
        found.append("the images differ, and cost follows content")
    plans = [data["protocol"]["plan"].get("name") for data in (first, second)]
    if plans[0] != plans[1]:
        found.append(f"protocol: {plans[0]} and {plans[1]}")
    for what in ("model", "size", "scale", "precision", "flavour", "runtime", "runtime_versions", "threads"):
        if a.subject.get(what) != b.subject.get(what):
            found.append(f"{what}: {a.subject.get(what)} and {b.subject.get(what)}")
    return tuple(found)


def compare_offline(a: Side, b: Side) -> Comparison:
    """B against A, measured at different times."""
    images = (b.profile.images, a.profile.images)
    ratios = {name: ratio_independent(b.ms, a.ms, percent, images) for name, percent in PERCENTILES.items()}
    return Comparison(a, b, False, ratios, differences_of(a, b))


def compare_interleaved(profile: Profile) -> Comparison:
    """The second subject of a run of two against the first. Raises InputError for another number."""
    if len(profile.subjects) != 2:
        held = counted(len(profile.subjects), "measurement")
        raise InputError(f"{profile.path} holds {held}, not two: name a second run to compare it with")
    a, b = Side(profile, 0), Side(profile, 1)
    ratios = {
        name: ratio_interleaved(b.ms, a.ms, percent, 2 * profile.images) for name, percent in PERCENTILES.items()
    }  # fmt: skip
    return Comparison(a, b, True, ratios, differences_of(a, b))
