"""Time by layer: names to modules, modules to branches, and the formats of the runtimes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import exported_once, photo
from small_networks import SIZE, small_network

from ppexport.backends.backend import Operation
from ppexport.backends.coreml import trial
from ppexport.backends.coreml.run_mac import planned
from ppexport.backends.onnx import ort_trace
from ppexport.backends.openvino import counters
from ppexport.backends.tensorrt import trtexec
from ppexport.device.job import Job
from ppexport.device.measure import PLANS
from ppexport.device.target import choose
from ppexport.errors import InputError
from ppexport.networks.architecture import find_architecture
from ppexport.profile.by_layer import layers_result, measure_layers, read_layers, spans_of, summed
from ppexport.profile.result import beginning

LAYER = "/layers.1/residual_group/layers.4"
PATH = "layers.1.residual_group.layers.4"


ATD = find_architecture("pp_atd_light")


def spans_of_atd(operations):
    return spans_of(operations, ATD)


@pytest.mark.parametrize(
    ("name", "kind", "module", "branch"),
    [
        (f"{LAYER}/attn_win/Softmax_1", "Softmax", f"{PATH}.attn_win", "window attention"),
        (f"{LAYER}/attn_aca/MatMul_2", "MatMul", f"{PATH}.attn_aca", "category attention"),
        (f"{LAYER}/attn_aca/proj/Gemm", "Gemm", f"{PATH}.attn_aca.proj", "category attention"),
        (f"{LAYER}/attn_aca/router/sort/Add", "Add", f"{PATH}.attn_aca.router.sort", "routing"),
        (f"{LAYER}/attn_aca/ScatterElements_1", "ScatterElements", f"{PATH}.attn_aca", "routing"),
        (f"{LAYER}/attn_atd/wq/Gemm", "Gemm", f"{PATH}.attn_atd.wq", "dictionary"),
        (f"{LAYER}/norm3/InstanceNormalization", "InstanceNormalization", f"{PATH}.norm3", "dictionary"),
        (f"{LAYER}/convffn/fc2/Gemm", "Gemm", f"{PATH}.convffn.fc2", "FFN"),
        (f"{LAYER}/ArgMax", "ArgMax", PATH, "routing"),
        (f"{LAYER}/wqkv/Gemm", "Gemm", f"{PATH}.wqkv", "projections and norms"),
        ("/pure_pass/MaxPool", "MaxPool", "pure_pass", "mask"),
        ("/conv_first/Conv", "Conv", "conv_first", "head and tail"),
    ],
)
def test_names_tell_module_and_branch(name, kind, module, branch):
    (span,) = spans_of_atd([Operation(name, kind, 1.0)])
    assert (span.module, span.found) == (module, "name")
    assert span.branch == branch


def test_operations_without_a_name_are_mapped_by_their_place():
    operations = [
        Operation(f"{LAYER}/convffn/fc1/Gemm", "Gemm", 1.0),
        Operation("Gelu_token_4", "Gelu", 0.5),
        Operation(f"{LAYER}/convffn/dwconv/dwconv.0/Conv_output_0_nchwc", "Conv", 2.0),
        Operation("ReorderOutput_token_9", "ReorderOutput", 0.25),
        Operation("/layers.2/residual_group/layers.0/norm1/LayerNormalization", "LayerNormalization", 1.0),
        Operation("MVN_1", "MVN", 1.0, (f"{LAYER}/norm1/LayerNormalization",)),
    ]
    spans = spans_of_atd(operations)
    assert [s.found for s in spans] == ["name", "place", "name", "place", "name", "name"]
    assert spans[1].module == f"{PATH}.convffn"
    assert spans[3].module == ""
    assert spans[5].module == f"{PATH}.norm1"
    assert spans_of_atd([Operation("x", "y", 1.0)])[0].found == "unknown"
    totals = summed(spans)
    assert sum(totals["branches"].values()) == pytest.approx(5.75)
    assert sum(sum(row.values()) for row in totals["cells"].values()) == pytest.approx(5.75)
    assert totals["blocks"]["1"] == pytest.approx(4.5)


def test_a_module_that_is_called_again_is_one_module():
    again = [Operation(f"/layers.0/residual_group/layers.1/{name}/Gemm", "Gemm", 1.0) for name in ("norm2", "norm2_1")]
    # `conv_9` has no first call, so the number is its name.
    spans = spans_of_atd([*again, Operation("/conv_9/Conv", "Conv", 1.0)])
    assert [s.module for s in spans] == [*["layers.0.residual_group.layers.1.norm2"] * 2, "conv_9"]


def event(name, dur, cat="Node", op="MatMul"):
    return {"cat": cat, "name": name, "dur": dur, "args": {"op_name": op}}


def test_a_trace_of_onnx_runtime_gives_medians_of_the_runs_after_the_first():
    events = []
    for dur in (9000, 100, 300, 200):
        events += [
            event("/a/MatMul_kernel_time", dur),
            event("/a/Loop_kernel_time", 10),
            event("/a/Loop_kernel_time", 20),
        ]
        events.append(event("model_run", dur, "Session"))
    found = {op.name: op for op in ort_trace.operations_of(events)}
    assert found["/a/MatMul"].ms == pytest.approx(0.2)
    assert found["/a/Loop"].ms == pytest.approx(0.03)
    for bad in ([], [event("model_run", 1, "Session")], [{"cat": "Node", "name": "x_kernel_time"}]):
        with pytest.raises(InputError):
            ort_trace.operations_of(bad)


def test_openvino_counters_are_mapped_by_what_was_fused():
    runs = [{"MVN_1": ("MVN", ms), "/conv_first/Conv": ("Convolution", 1.0)} for ms in (3.0, 1.0, 2.0)]
    found = counters.operations_of(runs, {"MVN_1": ("MVN_1", f"{LAYER}/norm1/LayerNormalization")})
    assert found[0].ms == 2.0
    assert spans_of_atd(found)[0].module == f"{PATH}.norm1"


DOCUMENTED = [
    {"count": 200},
    {"name": f"{LAYER}/attn_win/MatMul + {LAYER}/attn_win/Softmax", "timeMs": 20, "averageMs": 0.1, "medianMs": 0.09},
    {"name": f"{{ForeignNode[{LAYER}/wqkv/Gemm...{LAYER}/attn_aca/proj/Gemm]}}", "timeMs": 40, "averageMs": 0.2},
    {"name": "Reformatting CopyNode for Input Tensor 0 to /conv_first/Conv", "timeMs": 2, "averageMs": 0.01},
]


def test_the_profile_of_trtexec_as_documented(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(DOCUMENTED))
    first, foreign, copy = trtexec.read_profile(tmp_path / "p.json")
    assert (first.ms, first.kind) == (0.09, "Softmax")
    assert foreign.kind == "fused subgraph"
    assert copy.kind == "copy"
    modules = [span.module for span in spans_of_atd([first, foreign, copy])]
    assert modules == [f"{PATH}.attn_win", PATH, "conv_first"]
    for bad in ({}, [], [{"count": 1}], [{"name": "x"}], [{"name": "x", "averageMs": -1}], 5, [1]):
        (tmp_path / "p.json").write_text(json.dumps(bad))
        with pytest.raises(InputError):
            trtexec.read_profile(tmp_path / "p.json")


def test_the_plan_of_core_ml_as_documented():
    def op(name, weight):
        return SimpleNamespace(operator_name="ios18.matmul", outputs=[SimpleNamespace(name=name)], weight=weight)

    block = SimpleNamespace(
        operations=[op("layers__1__attn_win___matmul_2", 0.75), op("___reshape", 0.25), op("c", None)]
    )
    plan = SimpleNamespace(
        model_structure=SimpleNamespace(program=SimpleNamespace(functions={"main": SimpleNamespace(block=block)})),
        get_estimated_cost_for_mlprogram_operation=lambda o: None if o.weight is None else o,
        get_compute_device_usage_for_mlprogram_operation=lambda o: None,
    )
    operations = planned(plan, None)
    assert operations == planned(plan, "main")
    assert [op.device for op in operations] == ["", "", ""]
    found = trial.operations_of(operations)
    assert [(o.ms, o.module) for o in found] == [(0.75, "layers.1.attn_win"), (0.25, "")]
    with pytest.raises(InputError, match="estimates no operation"):
        trial.operations_of(operations[2:])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_real_artifact_is_mapped_almost_whole(tmp_path_factory, tmp_path, runtime):
    if find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    artifact = exported_once(tmp_path_factory, small_network(), backend="onnx", size=SIZE)
    (target,) = choose(artifact, runtime, 1, False)
    np.save(tmp_path / "images.npy", np.stack([photo(*SIZE)] * 2))
    job = Job((target,), tmp_path / "images.npy", PLANS["quick"], tmp_path / "journal", {})
    operations = [Operation(**row) for row in measure_layers(job)]
    data = {**beginning("layers", {"name": "x"}, {}), **layers_result(operations, runtime, ATD)}
    total = data["total_ms"]
    how = [row[-1] for row in data["operations"]]
    assert how.count("name") > 0.75 * len(how)
    assert data["found"].get("unknown", 0) == 0
    assert set(data["branches"]) >= set(ATD.branches)
    assert set(data["blocks"]) == {"0", "head and tail"}
    assert sum(data["branches"].values()) == pytest.approx(total)
    (tmp_path / "layers.json").write_text(json.dumps(data))
    assert read_layers(tmp_path / "layers.json")["total_ms"] == total
    data["branches"]["<b>"] = 1.0
    (tmp_path / "layers.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="does not hold"):
        read_layers(tmp_path / "layers.json")


def test_of_a_branch_counts_what_ran_in_it_by_its_share():
    def node(name, kind, ms):
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": 1e3 * ms, "args": {"op_name": kind}}

    run = {"cat": "Session", "name": "model_run"}
    # Four runs, of which one took the other branch.
    events = (
        [run] * 4 + [node("/a/If", "If", 9.0)] * 4 + [node("/a/Gemm", "Gemm", 8.0)] * 3 + [node("/a/Add", "Add", 2.0)]
    )
    found = {op.name: op.ms for op in ort_trace.operations_of(events)}
    assert found == {"/a/Gemm": 6.0, "/a/Add": 0.5}
