"""Google's `benchmark_model`, which measures on devices without Python (`profile/perf_binary.py`).

The program writes no samples, only the mean of its runs. So it is started again and again, with the next picture, for
a few runs each, and a sample is the mean of these. A start loads and packs the weights anew, which is in no sample.
Flags and output are those of tflite/tools/benchmark (README.md and benchmark_model.cc). Untested on hardware.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ppexport.backends.backend import Measured
from ppexport.backends.litert.tflite import read_model, text
from ppexport.device.picture import to_input
from ppexport.errors import InputError
from ppexport.remote.address import TransferError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ppexport.device.artifact import Artifact

NEEDS = ("ai_edge_litert", "litert-run")
RUNS = 8
"""Of one start, whose mean is a sample."""
INSIDE = (
    f"benchmark_model: the mean of {RUNS} runs of the interpreter with XNNPACK, from a tensor in host memory on; not "
    "checks, conversion from 8 bits, tiling. A sample has one picture, and the first two runs of its start are left out"
)
MEASURE = rf"""
if [ "$device" != cpu ]; then echo "benchmark_model is run on the CPU alone" >&2; exit 2; fi
if [ "$threads" -eq 0 ]; then threads=$(nproc); fi
read -r layer shape < inputs
began=$(date +%s) done=0 number=0
while [ "$done" -lt "$queries" ] || [ "$(($(date +%s) - began))" -lt "$seconds" ]; do
    if [ ! -e "set-$number.bin" ]; then number=0; fi
    program --graph="$model" --num_threads="$threads" --use_xnnpack=true --num_runs={RUNS} --min_secs=0 \
        --warmup_runs=2 --warmup_min_secs=0 --report_peak_memory_footprint=true --input_layer="$layer" \
        --input_layer_shape="$shape" --input_layer_value_files="$layer:set-$number.bin" > once 2>&1 ||
        {{ code=$?; tail -n 3 once >&2; exit "$code"; }}
    cat once >> result
    done=$((done + {RUNS})) number=$((number + 1))
done
"""
NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,20})?(?:e[+-]?[0-9]{1,3})?)"
TIMES = re.compile(
    rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, Warmup \(avg\): {NUMBER}, "
    rf"Inference \(avg\): {NUMBER}\s*$",
    re.MULTILINE,
)
PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {NUMBER}")
MOST_US = 1e12


def sent(artifact: Artifact, images: NDArray[np.uint8]) -> dict[str, bytes]:
    """{file: bytes} of the *images* (count, h, w, 3) and of `inputs`, the input's tensor and shape, for the program."""
    graph = read_model(artifact.read(artifact.model_file)).subgraphs[0]
    tensor = graph.tensors[int(graph.inputs[0])]
    name, shape = text(tensor.name), ",".join(str(int(side)) for side in tensor.shape)
    if not re.fullmatch(r"[\w./-]{1,200}", name):
        raise InputError(f"{artifact.path.name} calls its input {name!r}, which benchmark_model does not take")
    files = {f"set-{i}.bin": to_input(rgb).tobytes() for i, rgb in enumerate(images)}
    return {**files, "inputs": f"{name} {shape}\n".encode()}


def read(result: str, output: str) -> Measured:
    """What the program has measured, of what it printed at every start. Raises TransferError where that is nothing."""
    found = [[float(value) for value in match.groups()] for match in TIMES.finditer(result)]
    if not found:
        raise TransferError("benchmark_model ended well, but it printed no timings")
    for row in found:
        if not all(0 <= us < MOST_US for us in row) or not row[3]:
            raise TransferError(f"benchmark_model reports a run that took {row[3]:g} us")
    peaks = [float(match[1]) for match in PEAK.finditer(result)]
    (load, first, _, _), megabytes = found[0], max(peaks, default=0.0)
    peak = round(megabytes * 2**20) if megabytes < 1e9 else 0
    return Measured([max(1, round(row[3] * 1000)) for row in found], peak, round(load * 1000), round(first * 1000))
