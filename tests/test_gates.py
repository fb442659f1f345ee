"""The gates of parity, and cards that ask for more than they do."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ppexport.backends.backend import FP16_GATE, FP32_GATE, Built, Gate, backends, find_backend
from ppexport.device.artifact import parse_manifest
from ppexport.errors import CardError, InputError
from ppexport.exporting import describe, export
from ppexport.networks.architecture import find_architecture
from ppexport.networks.card import bundled_cards, make_card, read_card
from ppexport.parity.run import TWIN_COLUMN, TWIN_GATE, check_gates, tighten

FIELDS = {"name": "m", "summary": "", "arch": "atd_light", "scale": 2, "licence": "MIT"}


@pytest.mark.parametrize(
    "gates", [{"fp16": {"psnr": -1}}, {"fp16": {"ssim": 1}}, {"fp16": 60}, {"FP 16": {"psnr": 60}}]
)
def test_a_card_with_gates_that_are_none_is_refused(gates):
    with pytest.raises(CardError, match="bad model card: gates"):
        make_card(**FIELDS, gates=gates)


def test_a_card_with_a_gate_for_a_precision_that_no_backend_has_is_refused(tmp_path):
    card = read_card(bundled_cards()["pp_atd_light_x2"])
    card = card.model_copy(update={"gates": make_card(**FIELDS, gates={"fp64": {"psnr": 60}}).gates})
    with pytest.raises(InputError, match="a gate of the card of pp_atd_light_x2 is one of .*fp32.*twin.*not 'fp64'"):
        export((card, tmp_path / "none.pth"), backend="onnx", size=(16, 16), out=tmp_path / "a")


def test_gates_are_tightened_limit_by_limit():
    gate = FP16_GATE
    assert tighten(gate, {}, "x") == gate
    assert tighten(gate, {"psnr": 60}, "x") == replace(gate, psnr=60.0)
    assert tighten(gate, {"psnr": gate.psnr, "max_abs": 0.1}, "x") == replace(gate, max_abs=0.1)
    assert tighten(gate, {"task_change": 0.0}, "x") == replace(gate, task_change=0.0)


@pytest.mark.parametrize(
    "asked",
    [{"psnr": 54.9}, {"psnr": math.nan}, {"task_change": 0.021}, {"near_tie": 1e-9}, {"psnr": True}, {"psnr": "9"}],
)
def test_a_looser_gate_is_an_error(asked):
    with pytest.raises(InputError, match=r"the gate: .*(a card may only tighten a gate|is not a valid limit)"):
        tighten(FP16_GATE, asked, "the gate")


def manifest_of(card):
    """What an artifact of *card* would say."""
    job = SimpleNamespace(
        card=card, architecture=find_architecture(card.arch), size=(16, 16), precision="fp32", capacities=(256,),
        mask="graph",
    )  # fmt: skip
    return describe(job, Built(["model.onnx"]), find_backend("onnx"), {"model.onnx": "0" * 64})


def test_an_artifact_carries_the_gates_of_its_card():
    bundled = read_card(bundled_cards()["pp_atd_light_x2"])
    gates = make_card(**FIELDS, gates={"fp16": {"psnr": 60}, "twin": {"psnr": 120}}).gates
    card = bundled.model_copy(update={"gates": gates})
    assert card.hash() == bundled.hash(), "gates change nothing that is computed"
    manifest = manifest_of(card)
    assert parse_manifest(manifest.to_json(), "m") == manifest
    twin = replace(TWIN_GATE, psnr=120.0)
    assert check_gates(replace(manifest, precision="fp16")) == (twin, replace(FP16_GATE, psnr=60.0))
    assert check_gates(manifest) == (twin, FP32_GATE)
    loose = replace(manifest, gates={"fp32": {"psnr": 1.0}})
    with pytest.raises(InputError, match="the gate 'fp32' of pp_atd_light_x2: psnr 1 asks for less than"):
        check_gates(loose)


@pytest.mark.parametrize("name", bundled_cards())
def test_bundled_cards_tighten(name):
    card = read_card(bundled_cards()[name])
    for key, asked in card.gates.items():
        gates = (
            [b.precisions[key] for b in backends().values() if key in b.precisions]
            if key != TWIN_COLUMN
            else [TWIN_GATE]
        )
        assert gates
        assert all(isinstance(tighten(gate, asked.model_dump(exclude_none=True), key), Gate) for gate in gates)
