"""The authors' outputs against network, masks, twin and artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ARCHS, CASES, GOLDEN, both_archs, golden_arrays, golden_cases, golden_network

import ppexport
from ppexport.backends.backend import FP32_GATE, NEAR_TIE, open_artifact
from ppexport.device import mask as host
from ppexport.device.mask import ATD_LAYOUT
from ppexport.networks import pure_pass
from ppexport.networks.architecture import find_architecture
from ppexport.networks.network import Network, Trace, pad
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
    padded = pad(case.lr, ATD_LAYOUT)
    assert np.array_equal(host.pixel_labels(rgb), case["labels"][0])
    assert np.array_equal(pure_pass.pixel_labels(padded).numpy(), case["labels"])
    # The file of version 2 leaves out what the others say of the same pictures.
    fields = [(True, "pure")] if "_v2_" in case.name else [(False, "pure_grid"), (True, "pure")]
    for csmf, field in fields:
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


def check_artifact(name: str, network: Network, size: tuple[int, int], path: Path) -> None:
    """Every golden case of *size* of *name* through the artifact of *network* at *path*."""
    shipped = ArtifactColumn(ppexport.open_artifact(path))
    twin = TwinColumn(ppexport.make_twin(network, size=size), [])
    inputs = [ParityInput(c.case, c["lr"]) for c in CASES if c.name == name and c.size == size]
    assert inputs
    for column in (twin, shipped):
        compute(column, inputs, lambda *_: None)
    pair = compare_columns(twin, shipped, inputs, FP32_GATE)
    assert pair.passed, pair.to_dict()


def test_an_artifact_meets_the_gate(artifact):
    """The bundled network's: those of the golden weights are slow, and what they compute is above."""
    check_artifact("atd_light_x2_trained", ppexport.load_network("pp_atd_light_x2"), (37, 53), artifact)


SWINIR, CAMIXER = "swinir_light_x2_random.safetensors", "CAMixerSR_S.pth"
OTHERS = [(SWINIR, case, "sr") for case in ("coffee48x40", "chelsea37x50", "flat16")]
OTHERS += [(CAMIXER, case, f"sr_{ratio}") for case in ("coffee48x80", "hubble32") for ratio in (0.5, 1.0)]
"""(weights, case, picture) of the networks that choose nothing for single tokens."""


def other_network(weights: str, picture: str):
    """The network of *weights*, whose *picture* names the share of hard windows where it has one."""
    options = {"ratio": float(picture.removeprefix("sr_"))} if weights == CAMIXER else {}
    return ppexport.load_network(checkpoint=GOLDEN / weights, **options)


def other_arrays(weights: str, case: str, picture: str):
    """What goes into the network and what its authors' code made of it."""
    arrays = golden_arrays("camixersr_s_x4" if weights == CAMIXER else weights.removesuffix(".safetensors"))
    return arrays[f"{case}.lr"], arrays[f"{case}.{picture}"]


@pytest.mark.parametrize(("weights", "case", "picture"), OTHERS)
def test_other_networks_and_their_twins_are_the_authors(weights, case, picture):
    network = other_network(weights, picture)
    lr, expected = map(torch.from_numpy, other_arrays(weights, case, picture))
    assert (network(lr) - expected).abs().max() <= LIMIT
    for flavour in find_architecture(network.arch).flavours:
        twin = ppexport.make_twin(network, size=tuple(lr.shape[2:]), flavour=flavour)
        assert (twin(lr)[0] - expected).abs().max() <= LIMIT


def check_other_artifact(weights, case, picture, folder) -> None:
    """One golden case through an artifact of its size."""
    network, (lr, expected) = other_network(weights, picture), other_arrays(weights, case, picture)
    path = ppexport.export(network, backend="onnx", size=lr.shape[2:], out=folder)
    item = ParityInput(case, lr)
    twin, shipped = TwinColumn(ppexport.make_twin(network, lr.shape[2:]), []), ArtifactColumn(open_artifact(path))
    for column in (twin, shipped):
        compute(column, [item], lambda *_: None)
    pair = compare_columns(twin, shipped, [item], FP32_GATE)
    assert pair.passed, pair.to_dict()
    with open_artifact(path) as runner:
        assert np.abs(runner(lr)[0] - expected).max() <= 10 ** (-FP32_GATE.psnr / 20)


def test_an_artifact_of_published_weights_meets_the_gate(tmp_path):
    check_other_artifact(CAMIXER, "hubble32", "sr_0.5", tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "case", "picture"), OTHERS)
def test_every_artifact_of_another_network_meets_the_gate(weights, case, picture, tmp_path):
    check_other_artifact(weights, case, picture, tmp_path / "a")


@pytest.mark.slow
@both_archs
@pytest.mark.parametrize(("name", "size"), sorted({(c.name, c.size) for c in CASES}))
def test_every_artifact_meets_the_gate(name, arch, size, tmp_path):
    network = golden_network(name, arch)
    check_artifact(name, network, size, ppexport.export(network, backend="onnx", size=size, out=tmp_path / "a"))
