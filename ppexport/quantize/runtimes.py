"""ONNX files in the runtime that a search is for, timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.onnx.session import load
from ppexport.errors import InputError, UnavailableError, first_line, require

RUNTIMES = ("onnxruntime", "openvino")
Inputs = Mapping[str, NDArray[Any]]
Run = Callable[[Inputs], NDArray[np.float32]]
"""Inputs -> `sr`."""
RESAMPLES = 2000


def open_in_onnxruntime(model: bytes, threads: int) -> Run:
    """*model* in ONNX Runtime's CPU provider."""
    session = load(model, "the graph to time", intra_op_num_threads=threads)
    return lambda inputs: np.asarray(session.run(["sr"], dict(inputs))[0], np.float32)


def open_in_openvino(model: bytes, threads: int) -> Run:
    """*model* in OpenVINO's CPU plugin, in fp32 but for what Q/DQ says."""
    require("openvino", "openvino")
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = core.compile_model(core.read_model(model), "CPU", settings)
    except RuntimeError as error:
        raise UnavailableError(f"OpenVINO does not take the graph: {first_line(error)}") from None
    return lambda inputs: np.asarray(compiled(dict(inputs))["sr"], np.float32)


def open_in(runtime: str, model: bytes, threads: int) -> Run:
    """*model* in *runtime*. Raises InputError for one that is not known, UnavailableError for one that is missing."""
    if runtime not in RUNTIMES:
        raise InputError(f"a runtime is one of {', '.join(RUNTIMES)}, not {runtime!r}")
    return (open_in_onnxruntime if runtime == "onnxruntime" else open_in_openvino)(model, threads)


@dataclass(frozen=True)
class Ratio:
    """Time of one graph over that of another, from rounds in which both took turns."""

    median: float
    low: float
    high: float
    """Bootstrap interval of 95 % of the median."""
    base_ms: float
    """Median time of the other graph."""


def compare_times(run: Run, base: Run, inputs: Inputs, rounds: int) -> Ratio:
    """Time *run* against *base*, A B B A in every round, each run twice and the second timed, as caches are then its
    own."""
    ratios, base_times = [], []

    def timed(which: Run) -> float:
        which(inputs)
        begin = time.perf_counter()
        which(inputs)
        return time.perf_counter() - begin

    timed(run)
    for _ in range(rounds):
        first, second, third, fourth = timed(base), timed(run), timed(run), timed(base)
        ratios.append((second + third) / (first + fourth))
        base_times.append((first + fourth) / 2)
    sample = np.random.default_rng(0).choice(np.array(ratios), (RESAMPLES, rounds))
    low, high = np.percentile(np.median(sample, axis=1), (2.5, 97.5))
    return Ratio(float(np.median(ratios)), float(low), float(high), 1000 * float(np.median(base_times)))
