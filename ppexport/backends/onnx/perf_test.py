"""onnxruntime_perf_test, which measures on devices without Python (`profile/perf_binary.py`).

Every choice is an explicit flag. It keeps its samples in memory until it ends, so a run that is killed has measured
nothing; and it takes the pictures at random and does not say which. Flags and the result file, `model,seconds,peak
bytes,CPU %,number` a line, are those of onnxruntime/test/perftest (README.md and performance_runner.cc). Untested on
hardware.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ppexport.backends.backend import Measured
from ppexport.device.picture import to_input
from ppexport.remote.address import TransferError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ppexport.device.artifact import Artifact

NEEDS = ("onnx", "export")
INSIDE = (
    "onnxruntime_perf_test: the run of the session, from a tensor in host memory on; not checks, conversion from 8 "
    "bits, tiling. Which picture a query had is not known"
)
SECOND = 1_000_000_000
NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,20})?(?:e[+-]?[0-9]{1,3})?)"
LINE = re.compile(rf"[^,\n]{{0,200}},{NUMBER},([0-9]{{1,18}}),-?[0-9]{{1,6}},[0-9]{{1,12}}")
FIGURES = {
    "load": (re.compile(rf"^Session creation time cost: ?{NUMBER} s", re.MULTILINE), SECOND),
    "first": (re.compile(rf"^First inference time cost: ?{NUMBER} ms", re.MULTILINE), SECOND // 1000),
}
"""What the program prints of its start, and how many ns its unit has."""
MEASURE = r"""
for file in set-*.pb; do
    number=${file#set-}
    mkdir -p "test_data_set_${number%.pb}"
    cp "$file" "test_data_set_${number%.pb}/input_0.pb"
done
measure() {
    program "$@" -e "$device" -c 1 -x "$threads" -y 1 -o 99 -C 'session.set_denormal_as_zero|1' "./$model" result
}
measure -m duration -t "$seconds" || exit
count=$(grep -c , result) || count=0
if [ "$count" -lt "$queries" ]; then measure -m times -r "$((queries - count))"; fi
"""


def sent(artifact: Artifact, images: NDArray[np.uint8]) -> dict[str, bytes]:
    """{file: bytes} of the *images* (count, h, w, 3), as the program reads them."""
    from onnx import numpy_helper

    tensors = [numpy_helper.from_array(to_input(rgb), "lr") for rgb in images]
    return {f"set-{i}.pb": tensor.SerializeToString() for i, tensor in enumerate(tensors)}


def read_result(text: str) -> tuple[list[int], int]:
    """The samples of a result file in ns, and the peak memory in bytes; statistics after them are not read.

    Raises TransferError for anything else.
    """
    ns, peak = [], 0
    for line in text.splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            if "," in line:
                raise TransferError(f"the benchmark program's result file has a line that is no result: {line[:80]!r}")
            continue
        seconds = float(found[1])
        if not 0 < seconds < 1e6:
            raise TransferError(f"the benchmark program reports a query that took {found[1]} s")
        ns.append(max(1, round(seconds * SECOND)))
        peak = max(peak, int(found[2]))
    if not ns:
        raise TransferError("the benchmark program ended well, but its result file holds no query")
    return ns, peak


def figure(name: str, output: str) -> int:
    """Nanoseconds of loading or the first query, as the program prints them; 0 where it does not."""
    pattern, unit = FIGURES[name]
    found = pattern.search(output)
    value = float(found[1]) if found else 0.0
    return round(value * unit) if value < 1e9 else 0


def read(result: str, output: str) -> Measured:
    """What the program has measured. Raises TransferError as `read_result`."""
    ns, peak = read_result(result)
    return Measured(ns, peak, figure("load", output), figure("first", output))
