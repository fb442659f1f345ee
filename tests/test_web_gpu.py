"""The graph of a page asks a GPU for nothing that onnxruntime-web does on the CPU, and computes the same numbers."""

from __future__ import annotations

import os
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import exported_once
from onnx import TensorProto
from small_networks import random_small_network
from web_pages import chromium, needs_runtime, served

from ppexport.backends.onnx.pattern import copied
from ppexport.backends.web.stay_on_gpu import stay_on_gpu

pytest_plugins = ["web_fixtures"]

SIZE = (16, 16)
CASES = {
    "the first of equal ones": "int32[5, 1] y) { c = ArgMax <axis = 1> (x) y = Cast <to = 6> (c) }",
    "as floats, along the first axis": "float[1, 7] y) { c = ArgMax (x) y = Cast <to = 1> (c) }",
    "an axis from behind": "int32[5] y) { c = ArgMax <axis = -1, keepdims = 0> (x) y = Cast <to = 6> (c) }",
    "from 1 on": "int32[4, 5] y) { y = Slice (n, one, far, one) }",
    "all but the last": "int32[4, 5] y) { y = Slice (n, zero, last, one, one) }",
    "none but the second last": "int32[4, 1] y) { y = Slice (n, fourth, last, one, one) }",
    "all of it": "int32[4, 6] y) { y = Slice (n, back, far, zero) }",
    "or": "bool[4, 6] y) { b = Less (n, zeros) c = Equal (n, zeros) y = Or (b, c) }",
    "one or the same": "bool[4, 6] y) { b = Less (n, zeros) y = Or (b, b) }",
}
KEPT = {
    "floats": "float[2, 7] y) { y = Slice (x, zero, two, zero) }",
    "nothing": "int32[4, 0] y) { y = Slice (n, two, two, one) }",
    "every second one": "int32[4, 3] y) { y = Slice (n, one, far, one, two) }",
    "backwards": "int32[4, 6] y) { y = Slice (n, last, back, zero, last) }",
    "two axes": "int32[3, 5] y) { y = Slice (n, ones, fars, both) }",
    "int64": "int64[1, 7] y) { c = ArgMax (x) y = Cast <to = 7> (c) }",
    "of no choice": "int32[5, 7] y) { y = Cast <to = 6> (x) }",
    "what is known before": "int32[1, 5] y) { y = Slice (zeros, one, far, one) }",
}
NUMBERS = """<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] last = {-1}, int64[1] fourth = {4},
 int64[1] far = {9223372036854775807}, int64[1] back = {-9223372036854775807}, int32[1, 6] zeros = {0, 0, 0, 0, 0, 0},
 int64[2] ones = {1, 1}, int64[2] fars = {9, 9}, int64[2] both = {0, 1}>"""


def model_of(text):
    """A model of x (5, 7) and n (4, 6) with what *text* says of its result and its nodes."""
    result, nodes = text.split(")", 1)
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[5, 7] x, int32[4, 6] n) => ('
    return onnx.parser.parse_model(f"{head}{result}) {NUMBERS} {nodes}")


def results(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})


def left_to_the_cpu(model):
    """The nodes of *model* that depend on an input and are of a kind that no GPU computes."""
    known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*known.value_info, *known.input)}
    moving, chosen, found = {value.name for value in model.graph.input}, set(), []
    for node in model.graph.node:
        if moving.isdisjoint(node.input):
            continue
        moving.update(node.output)
        if node.op_type == "ArgMax":
            chosen.update(node.output)
        cuts = node.op_type == "Slice" and kinds.get(node.input[0]) == TensorProto.INT32
        if cuts or node.op_type == "Or" or (node.op_type == "Cast" and node.input[0] in chosen):
            found.append(node.name or node.op_type)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_the_same(case):
    before = model_of(CASES[case])
    after = copied(before)
    stay_on_gpu(after)
    onnx.checker.check_model(after, full_check=True)
    assert left_to_the_cpu(before)
    assert not left_to_the_cpu(after)
    rng = np.random.default_rng(0)
    # With many ties, of which the first is chosen.
    feeds = {"x": rng.integers(0, 3, (5, 7)).astype(np.float32), "n": rng.integers(-2, 3, (4, 6), dtype=np.int32)}
    (expected,), (got,) = results(before, feeds), results(after, feeds)
    assert (got.dtype, got.tolist()) == (expected.dtype, expected.tolist())


@pytest.mark.parametrize("case", KEPT)
def test_what_stays_as_it_is(case):
    before = model_of(KEPT[case])
    after = copied(before)
    stay_on_gpu(after)
    assert [*after.graph.node] == [*before.graph.node]


@pytest.mark.parametrize("arch", ["pp_atd_light", "camixer_atd_light"])
def test_a_network_computes_the_same_bits(arch, tmp_path_factory):
    folder = exported_once(tmp_path_factory, random_small_network(arch, 2), backend="onnx", size=SIZE)
    before = onnx.load(folder / "model.onnx")
    after = copied(before)
    stay_on_gpu(after)
    assert left_to_the_cpu(before)
    assert not left_to_the_cpu(after)
    # Equal tables are stored once.
    assert after.ByteSize() < before.ByteSize() + 2048
    lr = np.random.default_rng(0).random((1, 3, *SIZE), np.float32)
    lr[:, :, :, :8] = 0.5
    for expected, got in zip(results(before, {"lr": lr}), results(after, {"lr": lr}), strict=True):
        np.testing.assert_array_equal(got, expected)


OPENED = """async () => {
  const ort = await import("./ort.webgpu.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./", location).href;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "verbose";
  const model = new Uint8Array(await (await fetch("model.onnx")).arrayBuffer());
  const options = { executionProviders: ["webgpu"], logSeverityLevel: 0, logVerbosityLevel: 1 };
  await ort.InferenceSession.create(model, options);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["pp_atd_light", "camixer_atd_light", "swinir_light"])
@needs_runtime
def test_a_browser_places_every_node_on_the_gpu(arch, browser, tmp_path_factory):
    folder = exported_once(tmp_path_factory, random_small_network(arch, 2), backend="web", size=SIZE)
    flags, log = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"], []
    software = browser.browser_type.launch(executable_path=chromium(), chromium_sandbox=os.geteuid() != 0, args=flags)
    with served(folder) as address:
        tab = software.new_page()
        tab.on("console", lambda message: log.append(message.text))
        tab.goto(f"{address}sha256.mjs")
        tab.evaluate(OPENED)
    software.close()
    text = "\n".join(log)
    assert re.findall(r"odes? ?\(?s?\)? placed on \[(\w+)\]", text) == ["WebGpuExecutionProvider"]
    assert "AddCopyNode" not in text
