"""The authors' outputs against network, masks, twin and artifact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ARCHS, CASES, both_archs, golden_cases, golden_network

import ppexport
from ppexport.backends.backend import FP32_GATE, NEAR_TIE
from ppexport.device import mask as host
from ppexport.networks import pure_pass
from ppexport.networks.atd.atd_light import mirror_pad
from ppexport.networks.network import Trace
from ppexport.parity.columns import ArtifactColumn
from ppexport.parity.compare import compare_columns
from ppexport.parity.inputs import ParityInput
from ppexport.parity.references import TwinColumn
from ppexport.parity.run import compute

LIMIT = 2e-5


def check_golden(case, arch, run) -> None:
    """That *run*, called as `run(categories, trace)`, makes the authors' picture and their choices.

    Where two categories are closer than a near tie, each processor rounds to its own choice, and one such choice moves
    a hundred tokens. So the picture is compared under the stored categories, which must then be the run's own but for
    near ties, and as it runs where no choice differs.
    """
    golden = torch.from_numpy(case[f"{ARCHS[arch]}_categories"])
    expected = torch.from_numpy(case[f"{ARCHS[arch]}_sr"])
    routed = slice(None) if arch == "atd_light" else torch.from_numpy(~case["pure"].reshape(-1))
    trace = Trace()
    assert (run(golden, trace) - expected).abs().max() <= LIMIT
    own, gaps = (torch.stack([t.reshape(-1) for t in kind])[:, routed] for kind in (trace.categories, trace.gaps))
    differs = own != golden[:, 0, routed]
    assert not differs.any() or gaps[differs].max() < NEAR_TIE
    if not differs.any():
        assert (run(None, None) - expected).abs().max() <= LIMIT


@golden_cases
@both_archs
def test_network_is_the_authors(case, arch):
    network = golden_network(case.name, arch)
    check_golden(case, arch, lambda categories, trace: network(case.lr, categories=categories, trace=trace))


@golden_cases
def test_labels_and_masks_are_equal_bit_for_bit(case):
    rgb = np.ascontiguousarray(case["lr"][0].transpose(1, 2, 0))
    padded = mirror_pad(case.lr)
    assert np.array_equal(host.pixel_labels(rgb), case["labels"][0])
    assert np.array_equal(pure_pass.pixel_labels(padded).numpy(), case["labels"])
    for csmf, field in ((False, "pure_grid"), (True, "pure")):
        assert np.array_equal(host.pure_mask(rgb, csmf=csmf), case[field][0])
        assert np.array_equal(pure_pass.pure_mask(padded, csmf=csmf).numpy(), case[field])


@golden_cases
@both_archs
def test_twin_is_the_authors(case, arch):
    twin = ppexport.make_twin(golden_network(case.name, arch), size=case.size)
    tokens = case["pure"].size
    impure_tokens = [tokens if arch == "atd_light" else int((~case["pure"]).sum())]

    def run(categories, trace):
        forced = None if categories is None else categories[:, 0].int()
        sr, impure = twin(case.lr, categories=forced, trace=trace)
        assert impure.tolist() == impure_tokens
        return sr

    check_golden(case, arch, run)


def check_artifact(name: str, arch: str, size: tuple[int, int], folder) -> None:
    """Every golden case of *size* through one artifact."""
    network = golden_network(name, arch)
    path = ppexport.export(network, backend="onnx", size=size, out=folder)
    shipped = ArtifactColumn(ppexport.open_artifact(path))
    twin = TwinColumn(ppexport.make_twin(network, size=size), [])
    inputs = [ParityInput(c.case, c["lr"]) for c in CASES if c.name == name and c.size == size]
    assert inputs
    for column in (twin, shipped):
        compute(column, inputs, lambda *_: None)
    pair = compare_columns(twin, shipped, inputs, FP32_GATE)
    assert pair.passed, pair.to_dict()


def test_an_artifact_meets_the_gate(tmp_path):
    check_artifact("atd_light_x2_trained", "pp_atd_light", (37, 53), tmp_path / "a")


@pytest.mark.slow
@both_archs
@pytest.mark.parametrize(("name", "size"), sorted({(c.name, c.size) for c in CASES}))
def test_every_artifact_meets_the_gate(name, arch, size, tmp_path):
    check_artifact(name, arch, size, tmp_path / "a")
