"""Two measurements beside each other: the ratio of their latencies, with its interval.

Offline: two `profile.json` of different times. The interval covers what varied within each run, and nothing that
changed between them, such as heat or other programs. Marks and differences are listed, and the reader decides.
Interleaved: two subjects of one run. A drift of the machine's speed affects both, and mostly cancels.
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
        """Its latencies (queries,) in the order of measurement."""
        return np.asarray(self.profile.samples[self.index]["ns"], np.float64) / 1e6

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        name, summary, data = self.subject["name"], self.subject["summary"], self.profile.data
        return {"file": str(self.profile.path), "subject": name, "summary": summary, "marks": data["marks"]}


@dataclass(frozen=True)
class Comparison:
    """B against A."""

    a: Side
    b: Side
    interleaved: bool
    ratios: dict[str, Interval]
    """B's latency divided by A's, at p50, p90 and p99."""

    @property
    def differences(self) -> list[str]:
        """What else differs between the two, for people."""
        first, second = self.a.profile.data, self.b.profile.data
        machine = (("processor", "cpu"), ("system", "system"), ("cores", "usable_cores"))
        pairs = [(what, first["machine"].get(key), second["machine"].get(key)) for what, key in machine]
        pairs.append(("protocol", *(data["protocol"]["plan"].get("name") for data in (first, second))))
        pairs.append(("busy neighbours", *(data["protocol"]["plan"].get("load", 0) for data in (first, second))))
        names = ("model", "size", "scale", "precision", "flavour", "runtime", "runtime_versions", "threads")
        pairs += [(name, self.a.subject.get(name), self.b.subject.get(name)) for name in names]
        hashes = [[image.get("sha256") for image in data["images"]] for data in (first, second)]
        content = [] if hashes[0] == hashes[1] else ["the images differ, and cost follows content"]
        return content + [f"{what}: {one} and {other}" for what, one, other in pairs if one != other]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": "ppexport-comparison", "version": 1, "a": self.a.to_dict(), "b": self.b.to_dict(),
            "interleaved": self.interleaved,
            "ratios": {name: vars(interval) for name, interval in self.ratios.items()},
            "differences": self.differences,
        }  # fmt: skip


def compare_offline(first: Profile, second: Profile) -> Comparison:
    """The only subject of *second* against that of *first*. Raises InputError for a run of several."""
    for profile in (first, second):
        if len(profile.subjects) > 1:
            names = ", ".join(subject["name"] for subject in profile.subjects)
            raise InputError(f"{profile.path} holds several subjects ({names}): compare it alone, as `compare FILE`")
    a, b, images = Side(first, 0), Side(second, 0), (second.images, first.images)
    ratios = {name: ratio_independent(b.ms, a.ms, percent, images) for name, percent in PERCENTILES.items()}
    return Comparison(a, b, False, ratios)


def compare_interleaved(profile: Profile) -> Comparison:
    """The second subject of a run of two against the first. Raises InputError for another number."""
    if len(profile.subjects) != 2:
        held = counted(len(profile.subjects), "measurement")
        raise InputError(f"{profile.path} holds {held}, not two: name a second run to compare it with")
    a, b, images = Side(profile, 0), Side(profile, 1), 2 * profile.images
    ratios = {name: ratio_interleaved(b.ms, a.ms, percent, images) for name, percent in PERCENTILES.items()}
    return Comparison(a, b, True, ratios)
