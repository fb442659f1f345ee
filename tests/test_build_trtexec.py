"""trtexec's arguments, its log, and what a running build prints."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import examples

from ppexport.backends.tensorrt import trtexec
from ppexport.remote.output import TAIL, JobOutput

REQUEST = {"tf32": False, "slots": [], "workspace_mb": None, "optimization_level": None}
LOG = """&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b26] # trtexec --onnx=model.onnx
[01/10/2024-21:52:50] [I] === Device Information ===
[01/10/2024-21:52:50] [I] Available Devices:
[01/10/2024-21:52:50] [I]   Device 0: "Orin" UUID: GPU-1
[01/10/2024-21:52:50] [I] Selected Device: Orin
[01/10/2024-21:52:50] [I] Selected Device ID: 0
[01/10/2024-21:52:50] [I] Compute Capability: 8.7
[01/10/2024-21:52:50] [I] TensorRT version: 10.3.0
[01/10/2024-21:53:50] [I] Engine built in 61.25 sec.
&&&& PASSED TensorRT.trtexec [TensorRT v100300] [b26] # trtexec --onnx=model.onnx
"""


def test_every_choice_is_a_flag():
    assert trtexec.arguments(REQUEST) == [
        "--onnx=model.onnx", "--saveEngine=model.engine", "--timingCacheFile=timing.cache", "--stronglyTyped",
        "--skipInference", "--profilingVerbosity=detailed", "--exportLayerInfo=layers.json", "--noTF32",
    ]  # fmt: skip


def test_a_capacity_set_is_a_profile_for_every_length():
    chosen = {"slots": [128, 256], "workspace_mb": 512, "optimization_level": 4}
    arguments = trtexec.arguments({**REQUEST, **chosen, "tf32": True})
    assert "--noTF32" not in arguments
    assert arguments[-10:] == [
        "--memPoolSize=workspace:512", "--builderOptimizationLevel=4",
        "--profile=0", "--minShapes=slots:1x128", "--optShapes=slots:1x128", "--maxShapes=slots:1x128",
        "--profile=1", "--minShapes=slots:1x256", "--optShapes=slots:1x256", "--maxShapes=slots:1x256",
    ]  # fmt: skip


def test_the_log():
    said = trtexec.read_log(LOG)
    assert said == trtexec.Said(True, "10.3.0", "Orin", "8.7", 61.25, [])
    first_line_only = trtexec.read_log(LOG.splitlines()[0].replace("100300", "101401"))
    assert (first_line_only.tensorrt, first_line_only.passed, first_line_only.gpu) == ("10.14.1", False, None)
    assert trtexec.read_log("").tensorrt == "unknown"
    failed = trtexec.read_log(
        "[01/10/2024-21:52:50] [E] Error[4]: no kernel\n[E] Engine set up failed\n[I] [E] not one"
    )
    assert failed.errors == ["Error[4]: no kernel", "Engine set up failed"]


def fed(*pieces):
    output, stages = JobOutput(), []
    for piece in pieces:
        output.feed(piece)
        stages.append(output.doing)
    output.finish()
    return output, stages


def test_events_in_any_pieces():
    event = {"event": "progress", "phase": "\x1b[1mBuilding", "step": 3, "steps": 9}
    failed = {"event": "failed", "kind": "build", "message": "no \x1b]0;x\x07kernel", "errors": []}
    text = json.dumps(event) + "\nplain\n" + json.dumps({"event": "log", "severity": "error", "text": "bad"}) + "\n"
    data = (text + json.dumps(failed)).encode()
    for size in (1, 7, len(data)):
        output, stages = fed(*(data[i : i + size] for i in range(0, len(data), size)))
        assert output.doing == "plain"
        assert size > 7 or "Building 3/9" in stages
        assert list(output.tail) == ["plain", "error: bad"]
        assert output.failure == {**failed, "message": "no kernel"}


@pytest.mark.parametrize("line", ['{"event": "progress"}', '{"event": 1}', '{"event": "failed", "kind": 3}', "{}"])
def test_events_of_another_shape_are_dropped(line):
    output, _ = fed(line.encode() + b"\n")
    assert (output.failure, output.doing, list(output.tail)) == (None, "", [])


def test_endless_lines_and_many_lines_take_no_memory():
    output, _ = fed(*[b"x" * 100_000] * 20, b"\n", b"line\n" * 10_000)
    assert len(output.tail) == TAIL
    assert len(output._rest) <= 1 << 16


@examples()
@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_are_taken(pieces):
    fed(*pieces)
