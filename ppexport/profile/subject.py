"""An artefact in a runtime, as the measuring loop takes it.

Inside the clock of a query: the checks of the input and the result, Pure-Pass mask and choice of the capacity where the
host computes them, and the run from float32 in host memory to float32 in host memory, copies to a device and back
included. Outside: reading and decoding of files, conversion from 8 bits, tiling, blending.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ppexport.picture import to_input
from ppexport.profile.agent.measure import Query, Subject
from ppexport.profile.runtimes import Target, open_target

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no numpy.typing.
    import numpy as np
    from numpy.typing import NDArray

INSIDE = (
    "checks of the input and the result; mask and choice of the capacity where the host computes them; the run from "
    "float32 in host memory to float32 in host memory, with copies to the device and back. Not inside: file reading "
    "and decoding, conversion from 8 bits, tiling, blending"
)


class ArtifactSubject(Subject):
    """An artefact in a runtime."""

    def __init__(self, target: Target, images: NDArray[np.uint8]) -> None:
        """*images* are (count, h, w, 3)."""
        self.target = target
        self.inputs = [to_input(rgb) for rgb in images]
        self.with_mask = True

    def load(self) -> None:
        """Open the artefact, hashes checked, and make a session. Raises PpexportError."""
        self.runner = open_target(self.target)
        self.with_mask = self.runner.artifact.manifest.mask != "none"

    def query(self, image: int) -> Query:
        """Super-resolve one image."""
        begin = time.perf_counter_ns()
        prepared = self.runner.prepare(self.inputs[image])
        host = time.perf_counter_ns() - begin
        result = self.runner.run(prepared)
        return Query(host, result.capacity, result.impure_tokens if self.with_mask else -1)
