"""ONNX files in the runtime that a search is for, timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.onnx.run_onnxruntime import make_session
from ppexport.backends.openvino.run_openvino import Session
from ppexport.errors import InputError
from ppexport.profile.statistics import median_interval

RUNTIMES = ("onnxruntime", "openvino")
Inputs = Mapping[str, NDArray[Any]]
Run = Callable[[Inputs], NDArray[np.float32]]
"""Inputs -> `sr`."""


def open_in_onnxruntime(model: Path, threads: int) -> Run:
    """The file *model* in ONNX Runtime's CPU provider."""
    session = make_session(model.read_bytes(), str(model), threads)
    return lambda inputs: np.asarray(session.run(["sr"], dict(inputs))[0], np.float32)


def open_in_openvino(model: Path, threads: int) -> Run:
    """The file *model* in OpenVINO's CPU plugin, in fp32 but for what Q/DQ says."""
    session = Session(model.read_bytes(), str(model), threads=threads)
    return lambda inputs: np.asarray(session.run(dict(inputs), ["sr"])["sr"], np.float32)


def open_in(runtime: str, model: Path, threads: int) -> Run:
    """The file *model* in *runtime*.

    Raises InputError for one that is not known, UnavailableError for one that is missing, ArtifactError where it
    refuses the file.
    """
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
    ratio = median_interval(ratios)
    return Ratio(ratio.middle, ratio.low, ratio.high, 1000 * float(np.median(base_times)))
