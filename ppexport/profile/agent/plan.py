"""How long to measure: the single-stream protocol of MLPerf, with batch 1 and one query at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict


@dataclass(frozen=True)
class Plan:
    """When warm-up and measurement are over. Seconds are spent inside queries."""

    name: str
    queries: int
    """Timed queries of every subject, at least."""
    seconds: float
    """Seconds of timed queries of every subject, at least."""
    warm_change: float = 0.02
    """Warm-up ends once the median of a window moved less than this from that of the window before."""
    warm_windows: int = 20
    """Warm-up ends after so many windows in any case, and the run is then marked."""
    sensor_seconds: float = 1.0
    """Time between two readings of the sensors."""


PLANS: Dict[str, Plan] = {
    "full": Plan("full", 1024, 60.0),
    "quick": Plan("quick", 64, 6.0),
    # Ten minutes show thermal droop; how many queries fit in is the device's business.
    "sustained": Plan("sustained", 64, 600.0),
}


def plan_from(data: Dict[str, Any]) -> Plan:
    """The plan that `vars(plan)` was written from. Raises ValueError for anything that cannot be one."""
    try:
        plan = Plan(**data)
        numbers = (plan.queries, plan.seconds, plan.warm_change, plan.warm_windows, plan.sensor_seconds)
        valid = all(isinstance(n, (int, float)) and not isinstance(n, bool) and n >= 0 for n in numbers)
    except TypeError as error:
        raise ValueError("no plan: %s" % error) from None
    if not valid or plan.queries < 1 or plan.warm_windows < 2:
        raise ValueError("no plan: %r" % (data,))
    return plan
