"""What becomes int8 and how its ranges are found: the choice of a user, or of `ppexport quantize-search`.

A range is the magnitude that int8's 127 stands for, found in a histogram by ONNX Runtime's calibrators:

    max         the largest magnitude seen
    entropy     the cut with the least Kullback-Leibler divergence between the numbers and their int8 version
    percentile  a share of the numbers, 99.99 % unless the recipe says otherwise, is within

All are symmetric, since TensorRT takes no zero point.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ppexport.errors import InputError
from ppexport.files import write_text
from ppexport.networks.architecture import architectures, place_of
from ppexport.networks.card import first_error
from ppexport.quantize.calibration import Calibration
from ppexport.quantize.histogram import HALF

KNOWN = architectures().values()
ROUTING = frozenset(known.int8_routing for known in KNOWN)
"""The groups that choose categories, which are measured and never placed."""
GROUPS = tuple(dict.fromkeys(name for known in KNOWN for name in known.int8_groups if name not in ROUTING))
"""The groups that may be placed."""
DEFAULT_GROUPS = tuple(name for name in GROUPS if all(name not in known.int8_costly for known in KNOWN))
"""Without a recipe."""
CALIBRATORS = ("max", "entropy", "percentile")
PERCENTILE = 99.99
JOINED = 4
"""Bins that join before the search for the least divergence, whose time grows with their square."""
LEVELS = 127
MAX_BYTES = 1 << 20
"""A recipe lists the pictures that chose it, up to 4096."""
HEADER = "# Written by `ppexport quantize-search`; read by `ppexport export --recipe`.\n"


def group_of(module: str | None) -> str | None:
    """The group of the layer *module*, a dotted path; None where it is in none."""
    roles = ((name, role) for known in KNOWN for name, role in known.int8_groups.items())
    return next((name for name, role in roles if place_of(role, module) is not None), None)


def check_groups(names: Iterable[str]) -> tuple[str, ...]:
    """*names* in the order of GROUPS. Raises InputError for one that is not known or is never quantised."""
    chosen = set(names)
    if chosen & ROUTING:
        raise InputError(f"{min(chosen & ROUTING)} chooses the categories and stays in float: leave it out")
    unknown = sorted(chosen - set(GROUPS))
    if unknown:
        raise InputError(f"{unknown[0]!r} is no group of layers; there are {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if group in chosen)


def check_calibrator(calibrator: str) -> str:
    """*calibrator*. Raises InputError for one that is not known."""
    if calibrator not in CALIBRATORS:
        raise InputError(f"a calibrator is one of {', '.join(CALIBRATORS)}, not {calibrator!r}")
    return calibrator


class Recipe(BaseModel):
    """Groups of layers in int8, and the calibrator of their activations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: tuple[str, ...] = DEFAULT_GROUPS
    calibrator: str = "percentile"
    percentile: float = PERCENTILE
    weight_bits: Literal[7, 8] = 8
    """7 for OpenVINO on CPUs without VNNI, whose products of 8 bits saturate (backends/openvino/run_openvino.py)."""
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the weights that it was found for; a bundled recipe is taken for these alone."""
    measured: dict[str, Any] = Field(default_factory=dict)
    """What the search measured for this choice; only people read it."""

    @field_validator("groups", "calibrator")
    @classmethod
    def _known(cls, value: Any) -> Any:
        try:
            return check_calibrator(value) if isinstance(value, str) else check_groups(value)
        except InputError as error:
            raise ValueError(str(error)) from None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises InputError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is too large to be a recipe")
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not a readable recipe: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise InputError(f"{path} is not a recipe: {first_error(error)}") from None


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write *recipe* to *path*, atomically."""
    write_text(path, HEADER + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def find_range(calibration: Calibration, name: str, calibrator: str, percentile: float = PERCENTILE) -> float:
    """The magnitude that 127 stands for in tensor *name*; above 0, and never above the largest seen.

    Raises InputError where the tensor was not recorded, or is always zero, for a calibrator that is not known, and for
    a *percentile* that is not above 50 and at most 100.
    """
    check_calibrator(calibrator)
    if not 50 < percentile <= 100:
        raise InputError(f"a percentile is above 50 and at most 100, not {percentile:g}")
    most = calibration.largest(name)
    if not most:
        raise InputError(f"tensor {name!r} was zero on all pictures: calibrate on others")
    if calibrator == "max":
        return most
    row, kept = calibration.kept_row(name), calibration.histograms
    if calibrator == "entropy":
        joined = kept.counts[row].reshape(-1, JOINED).sum(axis=1)
        edges = kept.edges(row)
        # For a signed histogram ONNX Runtime needs the range and the largest magnitude beside it.
        last = np.float32(edges[-1])
        low, high = _computed("entropy", joined, edges[::JOINED], (-last, last, last), PERCENTILE)
        cut = float(max(-low, high))
    else:
        width = kept.width(row)
        ends = np.arange(HALF + 1, dtype=np.float64) * width
        last = np.float32(ends[-1])
        high = _computed("percentile", kept.magnitudes(row), ends, (-last, last), percentile)[1]
        cut = max(float(high), width)
    return min(cut, most)


def _computed(
    method: str, counts: NDArray[np.int64], edges: NDArray[np.float64], rest: tuple[np.float32, ...], share: float
) -> tuple[float, float]:
    """The lowest and the highest number within the range that ONNX Runtime's calibrator finds in a histogram."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, True, counts.size, LEVELS + 1, share, "same")
    collector.histogram_dict = {"t": (counts, edges.astype(np.float32), *rest)}
    # It prints to standard output, where JSON may go.
    with contextlib.redirect_stdout(io.StringIO()):
        low, high = collector.compute_collection_result()["t"][:2]
    return low, high
