"""The comparison with the twin that every builder ends with, with a stand-in for the model file."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_networks import SIZE, small_network

import ppexport
from ppexport.backends.backend import backends
from ppexport.backends.self_check import check_finite, example, self_check
from ppexport.errors import ExportError

WHAT = {"least": 60.0, "kind": "graph", "backend": "coreml"}


def job(*capacities, mask="graph"):
    """What `self_check` asks a job."""
    return SimpleNamespace(capacities=capacities, mask=mask, precision="fp16")


@pytest.fixture(scope="module")
def twin():
    return ppexport.make_twin(small_network(), size=SIZE)


class Stand:
    """A model file that computes what the twin does, but for *change*; it records what it was run with."""

    def __init__(self, twin, change=lambda sr, impure: (sr, impure)):
        self.twin, self.change, self.runs = twin, change, []

    def __call__(self, inputs, categories):
        self.runs.append({name: value.shape for name, value in inputs.items()})
        with torch.no_grad():
            given = {name: torch.from_numpy(value) for name, value in inputs.items()}
            sr, impure = self.twin(**given, categories=torch.from_numpy(categories).int())
        return self.change(sr.numpy(), int(impure))


def test_a_capacity_set_is_checked_where_it_fits_and_in_full(twin):
    stand = Stand(twin)
    self_check(stand, twin, job(128, 256), **WHAT)
    lr = (1, 3, *SIZE)
    assert stand.runs == [{"lr": lr, "slots": (1, 128)}, {"lr": lr, "slots": (1, 256)}]
    stand = Stand(twin)
    self_check(stand, twin, job(128, 256, mask="input"), full=False, lr=example(SIZE), **WHAT)
    assert stand.runs == [{"lr": lr, "mask": (1, 1, 16, 16), "slots": (1, 128)}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda sr, impure: (sr + np.float32(0.01), impure),
            r"graph differs from the twin \(40\.0 dB with 256 slots\)",
        ),
        (lambda sr, impure: (sr, impure + 1), "differs from the twin"),
        (lambda sr, impure: (sr * np.nan, impure), "in fp16 the graph gives NaN or infinite values: .* 65504"),
    ],
)
def test_what_differs_is_refused(change, message, twin):
    with pytest.raises(ExportError, match=message):
        self_check(Stand(twin, change), twin, job(256), **WHAT)


@pytest.mark.parametrize("name", backends())
def test_the_way_out_of_numbers_beyond_fp16_fits_the_backend(name):
    record = backends()[name]
    advised = r"or calibrate the model.*" if "fp16" in record.calibrated | record.may_calibrate else ""
    way = rf"export it as fp32(, {advised})?$" if "fp32" in record.precisions else "export it for a CPU$"
    with pytest.raises(ExportError, match=f"in fp16 the graph gives NaN or infinite values: .*{way}") as caught:
        check_finite(np.array([np.nan]), "graph", "fp16", name)
    assert ("calibrate" in str(caught.value)) == bool(advised)


def test_a_file_that_clips_is_compared_with_a_clipped_picture(twin):
    clips = Stand(twin, lambda sr, impure: (sr.clip(0, 1), impure))
    self_check(clips, twin, job(256), clipped=True, **{**WHAT, "least": 120.0})
    with pytest.raises(ExportError, match="differs from the twin"):
        self_check(clips, twin, job(256), **{**WHAT, "least": 120.0})
