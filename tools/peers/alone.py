"""What a candidate takes in a process of its own. Imports no torch."""

from __future__ import annotations

from peers.candidate import Candidate
from peers.child import peak_bytes


def peak_of_one_run(candidate: Candidate) -> int:
    """Peak bytes of loading and one run."""
    candidate.prepare()
    candidate.run()
    return peak_bytes()
