"""Histogram -> the magnitude that int8's 127 stands for, by ONNX Runtime's calibrators.

max         the largest magnitude seen
entropy     the cut with the least Kullback-Leibler divergence between the numbers and their int8 version
percentile  a share of the numbers, 99.99 % unless told otherwise, is within

All are symmetric, since TensorRT takes no zero point.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ppexport.errors import InputError
from ppexport.quantize.calibration import Calibration
from ppexport.quantize.histogram import HALF

CALIBRATORS = ("max", "entropy", "percentile")
PERCENTILE = 99.99
JOINED = 4
"""Bins that join before the search for the least divergence, whose time grows with their square."""
LEVELS = 127


def _entropy(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> float:
    """The cut by ONNX Runtime's entropy calibrator for a signed histogram."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    joined = counts.reshape(-1, JOINED).sum(axis=1)
    collector = HistogramCollector("entropy", True, joined.size, LEVELS + 1, PERCENTILE, "same")
    most = np.float32(edges[-1])
    collector.histogram_dict = {"t": (joined, edges[::JOINED].astype(np.float32), -most, most, most)}
    low, high = _quietly(collector)["t"][:2]
    return float(max(-low, high))


def _percentile(magnitudes: NDArray[np.int64], width: float, share: float) -> float:
    """The cut by ONNX Runtime's percentile calibrator for a histogram of magnitudes."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector("percentile", True, HALF, LEVELS + 1, share, "same")
    edges = (np.arange(HALF + 1) * width).astype(np.float32)
    collector.histogram_dict = {"t": (magnitudes, edges, -edges[-1], edges[-1])}
    return float(_quietly(collector)["t"][1])


def _quietly(collector: object) -> Mapping[str, tuple[float, ...]]:
    """The collector's result; it prints to standard output, where JSON may go."""
    with contextlib.redirect_stdout(io.StringIO()):
        return collector.compute_collection_result()  # type: ignore[attr-defined, no-any-return]


def check_calibrator(calibrator: str, percentile: float) -> None:
    """Raise InputError for a calibrator that is not known or a share that is none."""
    if calibrator not in CALIBRATORS:
        raise InputError(f"a calibrator is one of {', '.join(CALIBRATORS)}, not {calibrator!r}")
    if not 50 < percentile <= 100:
        raise InputError(f"a percentile is above 50 and at most 100, not {percentile:g}")


def find_range(calibration: Calibration, name: str, calibrator: str, percentile: float = PERCENTILE) -> float:
    """The magnitude that 127 stands for in tensor *name*; above 0, and never above the largest seen.

    Raises InputError where the tensor was not recorded, or is always zero.
    """
    check_calibrator(calibrator, percentile)
    most = calibration.largest(name)
    if not most:
        raise InputError(f"tensor {name!r} was zero on all pictures: calibrate on others")
    if calibrator == "max":
        return most
    row, kept = calibration.kept_row(name), calibration.histograms
    if calibrator == "entropy":
        cut = _entropy(kept.counts[row], kept.edges(row))
    else:
        width = kept.width(row)
        cut = max(_percentile(kept.magnitudes(row), width, percentile), width)
    return min(cut, most)
