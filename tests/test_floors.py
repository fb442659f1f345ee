"""tools/kernel_floors.py: its parts are the network, all formulations of a part agree, and its sums are right.

Nothing here asserts a time.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from shared import ROOT
from typer.testing import CliRunner

# What is imported above lets programs of tools/ be found.
# isort: split
import kernel_floors
from floors.agreement import apart, check
from floors.attention import STYLES, scale_of
from floors.graph import make_model
from floors.kernel import Kernel
from floors.measuring import open_kernels
from floors.part import HEADS, PACKED, ROWS, WINDOWS, Draw, Formulation, Part
from floors.parts import parts_of, total_macs
from floors.result import ARTEFACT, HEAT, Floors
from floors.shape import GROUP, Shape
from floors.tables import markdown, tables
from floors.windows import block_order, kind_bias, windows
from peers.in_torch import Source
from peers.lineup import BOUND
from peers.machine import Machine
from peers.race import Outcome
from peers.report import FLOORS, fresh, write_speed

from ppexport.backends.onnx.export_onnx import OUTPUTS, example, fuse, trace
from ppexport.backends.onnx.simplify import simplify_file
from ppexport.errors import ExportError, UnavailableError
from ppexport.networks.atd.cost import count_macs
from ppexport.networks.atd.network import AtdConfig
from ppexport.twin.twin import make_twin

NAME = "pp_atd_light_x2"
SMALL = Shape(AtdConfig(2), (32, 32))
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Constant"}
"""Operators that move nothing."""


@pytest.fixture(scope="module")
def parts():
    return parts_of(SMALL)


@pytest.fixture(scope="module")
def kernels(parts):
    return open_kernels(parts, threads=1, copies=2)


def test_every_formulation_runs_and_agrees(parts, kernels):
    opened, skipped = kernels
    assert not skipped
    for part in parts:
        differences = check(opened[part.key])
        assert len(differences) == len(part.formulations)
        assert all(np.isfinite(list(differences.values())))


def test_results_are_not_trivial(parts, kernels):
    for part in parts:
        for name, value in kernels[0][part.key][0].results().items():
            assert np.ptp(value) > 0, (part.key, name)


def test_names_are_unique_and_every_part_has_a_form_in_rows(parts):
    assert len({part.key for part in parts}) == len(parts)
    for part in parts:
        names = [form.name for form in part.formulations]
        assert len(set(names)) == len(names)
        assert part.formulations[0].layout == ROWS
        assert {form.layout for form in part.formulations} <= {ROWS, HEADS, PACKED, WINDOWS}


@pytest.mark.parametrize("size", [(16, 16), (16, 48), (37, 53)])
def test_other_sizes_agree_too(size):
    shape = Shape(AtdConfig(3), size)
    wanted = [part for part in parts_of(shape) if part.key in ("windows-shifted", "conv-first", "sort")]
    opened, _ = open_kernels(wanted, threads=1, copies=1)
    for part in wanted:
        check(opened[part.key])


def test_attention_is_that_of_torch(parts, kernels):
    part = next(part for part in parts if part.key == "categories")
    q, k, v = (
        torch.from_numpy(part.inputs[x]).view(-1, GROUP, SMALL.heads, SMALL.width).transpose(1, 2) for x in "qkv"
    )
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale_of(SMALL))
    rows = expected.transpose(1, 2).reshape(SMALL.n, SMALL.c)
    np.testing.assert_allclose(kernels[0][part.key][0].results()["out"], rows, atol=1e-5)


def test_the_sort_is_a_stable_sort(parts, kernels):
    part = next(part for part in parts if part.key == "sort")
    found = kernels[0][part.key][0].results()
    order = block_order(SMALL, shifted=False)
    by_key = np.argsort(part.inputs["keys"], kind="stable")
    np.testing.assert_array_equal(order[found["source"]], by_key)
    np.testing.assert_array_equal(by_key[found["back"]], order)


def test_position_bias_is_that_of_the_offsets():
    table = np.arange(31 * 31, dtype=np.float32).reshape(1, 31, 31)
    kind = SMALL.kinds(shifted=True)[1]
    bias = kind_bias(table, kind)
    i, j = 3, kind.area - 1
    offset = [a - b + 15 for a, b in zip(divmod(i, kind.width), divmod(j, kind.width), strict=True)]
    assert (kind.height, kind.width) == (8, 16)
    assert bias[0, i, j] == table[0, offset[0], offset[1]]


def test_heads_outermost_is_another_bias():
    bias = np.zeros((4, 8, 8), np.float32)
    assert {style.bias(bias).shape for style in STYLES} == {(1, 4, 8, 8), (4, 1, 8, 8)}


def lone(*formulations, tolerance=1e-4):
    """A part of one sum."""
    x = np.ones((4, 2), np.float32)
    return Part("lone", "lone", 1, 0, {"x": x}, {"y": "float"}, formulations, tolerance=tolerance)


def test_a_formulation_that_differs_is_refused():
    wrong = Formulation("wrong", "one = Constant <value_float = 1.001> ()\ny = Mul (x, one)")
    opened, _ = open_kernels([lone(Formulation("right", "y = Identity (x)"), wrong)], 1, 1)
    with pytest.raises(ExportError, match="lone: wrong is not right"):
        check(opened["lone"])


def test_nan_and_other_shapes_do_not_agree():
    x = np.ones((2, 2), np.float32)
    assert apart({"y": x}, {"y": x * np.nan}) == (np.inf, np.inf)
    assert apart({"y": x}, {"y": x[:1]}) == (np.inf, np.inf)


def test_what_cannot_run_is_skipped_but_not_the_artefacts_own():
    right, unknown = Formulation("right", "y = Identity (x)"), Formulation("unknown", "y = NoSuchOperator (x)")
    opened, skipped = open_kernels([lone(right, unknown)], 1, 1)
    assert len(opened["lone"]) == 1
    assert "ONNX Runtime cannot run it" in skipped["lone: unknown"]
    with pytest.raises(UnavailableError):
        open_kernels([lone(unknown, right)], 1, 1)


def operators(model: onnx.ModelProto, target) -> Counter[str]:
    """Operators of *model* as ONNX Runtime executes them, but for those that move nothing."""
    options = onnxruntime.SessionOptions()
    # One level lower than all, for the highest one chooses the layout of images across parts.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # A product with a transposed operand is one operator where the operand is no constant.
    names = (node.op_type.replace("FusedMatMul", "MatMul") for node in onnx.load(target).graph.node)
    return Counter(name for name in names if name not in VIEWS)


def test_copies_are_computed_one_by_one(tmp_path, parts):
    for part in parts:
        for form in part.formulations:
            one, three = (operators(make_model(part, form, n), tmp_path / "copies.onnx") for n in (1, 3))
            assert three == Counter({name: 3 * count for name, count in one.items()}), form.name


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    """What `build` writes for the dense network in the flavour `ort`, without the checks, which take longest."""
    folder = tmp_path_factory.mktemp("floors")
    twin = make_twin(Source(NAME, True).load(), SMALL.size, flavour="ort")
    with torch.no_grad():
        trace(twin, {"lr": example(twin)}, OUTPUTS, folder / "traced.onnx")
    simplify_file(folder / "traced.onnx", folder / "simplified.onnx")
    return fuse(onnx.load(folder / "simplified.onnx"), (SMALL.size[0] * SMALL.size[1],))


def test_the_parts_are_all_that_the_artefact_computes(parts, artefact, tmp_path):
    found: Counter[str] = Counter()
    for part in parts:
        once = operators(make_model(part, part.formulations[0]), tmp_path / "part.onnx")
        found.update({name: part.count * count for name, count in once.items()})
    assert found == operators(artefact, tmp_path / "whole.onnx")


@pytest.mark.parametrize(("scale", "size"), [(2, (32, 32)), (3, (64, 48)), (4, (37, 53))])
def test_multiply_adds_are_the_networks(scale, size):
    shape = Shape(AtdConfig(scale), size)
    # A block's first keys and values are constants, and shifted windows are cut along the wrap.
    constant = shape.blocks * shape.t * shape.c * (shape.r + shape.c)
    area = shape.config.window**2
    cut = shape.shifted * sum(2 * kind.tokens * (area - kind.area) * shape.c for kind in shape.kinds(shifted=True))
    assert total_macs(parts_of(shape)) == count_macs(scale, size).pure - constant - cut


# The result


def fake(rounds: int = 3) -> Floors:
    """Two parts, three kernels, and times of 1, 2 and 3 ms."""
    right = Formulation("right", "y = Identity (x)")
    heads, slow = replace(right, name="in heads", layout=HEADS), replace(right, name="slow")
    attention = replace(lone(right, heads), key="attention", name="attention", count=2, macs=10**9, attention=True)
    other = replace(lone(slow), key="other", name="other")
    kernels = {part.key: [Kernel(part, form, 1, 1) for form in part.formulations] for part in (attention, other)}
    ms = {"attention: right": 3, "attention: in heads": 2, "other: slow": 1, ARTEFACT: 10, BOUND: 4}
    outcome = Outcome(times={HEAT: {key: [[t / 1e3, t / 1e3]] * rounds for key, t in ms.items()}})
    return Floors(
        model=NAME,
        size=(32, 32),
        threads=1,
        copies=1,
        machine=Machine("a processor", 2, "Linux", {"onnxruntime": "1"}, "2026-01-01"),
        parts=[attention, other],
        kernels=kernels,
        differences=dict.fromkeys(ms, 0.0),
        skipped={"other: new": "no such operator"},
        outcome=outcome,
        network_flop=2 * 10**9,
        rates=[1e12, 1e12],
    )


def test_sums_take_the_best_and_those_that_fit():
    floors = fake()
    assert floors.sums(floors.chosen) == pytest.approx([5e-3] * 3)
    assert floors.sums(floors.fitting()) == pytest.approx([7e-3] * 3)
    assert floors.to_artefact(floors.chosen).middle == pytest.approx(2)
    assert floors.to_bound(floors.sums(floors.chosen)).middle == pytest.approx(1.25)
    assert floors.attention_share().middle == pytest.approx(0.8)


def test_tables_and_json_hold_every_kernel():
    floors = fake()
    parts, sums, arithmetic = tables(floors)
    assert [row[3] for row in parts.rows] == ["right", "in heads", "slow", "no such operator"]
    assert parts.rows[1][4] == "best, heads"
    assert parts.rows[0][4] == "artefact's"
    assert "80.0 %" in next(row[0] for row in sums.rows if "attention" in row[0])
    # 2 * 2 G at 1000 GFLOP/s.
    assert arithmetic.rows[-1][1:5] == ["2.000", "4.0", "5.0", "1.2"]
    for table in (parts, sums, arithmetic):
        assert {len(row) for row in table.rows} == {len(table.columns)}
    data = json.loads(json.dumps(floors.to_dict()))
    assert [part["best"] for part in data["parts"]] == ["in heads", "slow"]
    assert data["sums"]["floor"]["artefact_to_sum"]["middle"] == pytest.approx(2)


def test_the_section_has_its_place(tmp_path):
    path = tmp_path / "SPEED.md"
    write_speed(path, NAME, FLOORS, markdown(fake()))
    assert "Parts and their formulations" in path.read_text(encoding="utf-8")
    assert f"<!-- {FLOORS} -->" in fresh(NAME)


def test_the_program_says_what_it_cannot_do():
    runner = CliRunner()
    assert "Example" in runner.invoke(kernel_floors.app, ["--help"]).output
    result = runner.invoke(kernel_floors.app, ["no_such_model"])
    assert result.exit_code != 0
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_draws_are_the_same_in_every_run():
    first, second = (windows(SMALL, Draw(SMALL), shifted=True) for _ in range(2))
    np.testing.assert_array_equal(first.inputs["q"], second.inputs["q"])
    assert (ROOT / "tools" / "kernel_floors.py").is_file()
