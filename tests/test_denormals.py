"""Runtimes take denormals as zeros while they compute; the threads that call them keep theirs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ppexport.device.runner import Flushed

handled = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32", reason="no mode to change"
)


def kept() -> bool:
    """Whether the calling thread computes with denormals."""
    return bool(np.float32(1e-40) * np.float32(1) != 0)


@handled
def test_the_mode_ends_with_the_block_whatever_ends_it() -> None:
    assert kept()
    with Flushed():
        assert not kept()
        with ThreadPoolExecutor(1) as other:
            assert other.submit(lambda: None).result() is None
        with Flushed():
            assert not kept()
        assert not kept()
    assert kept()
    with pytest.raises(KeyError), Flushed():
        raise KeyError("x")
    assert kept()


@handled
def test_rounding_and_errors_are_left_alone() -> None:
    with Flushed():
        inside = np.float32(1) / np.float32(3)
        with pytest.raises(FloatingPointError), np.errstate(over="raise"):
            np.float32(1e38) * np.float32(10)
    assert inside == np.float32(1) / np.float32(3)


RUNTIMES = {
    "onnxruntime": """
from ppexport.backends.onnx.run_onnxruntime import make_session

def make():
    session = make_session(model, "a test", 2)
    return lambda x: session.run(["y"], {"x": x})[0]
""",
    "openvino": """
from ppexport.backends.openvino.run_openvino import Session

def make():
    session = Session(model, "a test", threads=2)
    return lambda x: session.run({"x": x}, ["y"])["y"]
""",
}
# A process of its own: ONNX Runtime changes the mode of one thread only, that of the process's first session.
PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from onnx import TensorProto, helper

node = helper.make_node("Mul", ["x", "half"], ["y"])
ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
half = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
graph = helper.make_graph([node], "g", ports[:1], ports[1:], [half])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
denormals = np.full(4, 1e-39, np.float32)
%s

def kept(when):
    assert np.float32(1e-40) * np.float32(1) != 0, when

def use(run):
    assert not run(denormals).any(), "the runtime computed with denormals"
    kept("after a run")
    for wrong in (np.zeros(3, np.float32), "text", None):
        try:
            run(wrong)
        except Exception:
            kept("after an exception")
        else:
            raise SystemExit(f"no exception for {wrong!r}")

def open_and_use():
    run = make()
    kept("after opening")
    use(run)
    return run

run = open_and_use()
with ThreadPoolExecutor(2) as pool:
    pool.submit(use, run).result()
    other = pool.submit(open_and_use).result()
    list(pool.map(kept, ["in the pool"] * 8))
use(other)
try:
    model = b"nonsense"
    make()
except Exception:
    kept("after a model that cannot be opened")
"""


@handled
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_flushes_and_the_threads_that_call_it_do_not(runtime: str) -> None:
    pytest.importorskip(runtime)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = PROGRAM % RUNTIMES[runtime]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
