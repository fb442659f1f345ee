"""What is timed: the base class of all candidates."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.float32]


class Candidate(ABC):
    """One way to super-resolve one picture. Holds paths and numbers until `prepare`, so that a child can be sent it."""

    flush = False
    """Whether this candidate computes with denormals as zeros; the caller's thread is switched before every turn."""
    reference: str | None = None
    """Network whose picture it must give: "dense", "pure_pass", or None where it may differ."""

    def __init__(self, key: str, name: str, lr: Image) -> None:
        self.key = key
        self.name = name
        self.lr = lr

    @abstractmethod
    def prepare(self) -> None:
        """Load whatever a run needs. Raises UnavailableError with one sentence where it cannot run here."""

    def close(self) -> bool:
        """Let go of what `prepare` loaded; False where there is nothing whose place in memory matters."""
        return False

    @abstractmethod
    def run(self) -> Image:
        """Super-resolve the picture: float32 (1, 3, h * scale, w * scale), not clipped."""

    def time(self) -> float:
        """Seconds of one run, from the picture in host memory to the picture in host memory."""
        begin = time.perf_counter()
        self.run()
        return time.perf_counter() - begin
