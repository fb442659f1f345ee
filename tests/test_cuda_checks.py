"""tools/cuda_checks.py on CUDA that is played: all checks pass there, and each fails where CUDA gets it wrong."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from played_cuda import SIGNATURES, PlayedCuda
from shared import ROOT, TOOLS

# What is imported above lets programs of tools/ be found.
# isort: split
import cuda_checks
from cuda_checks import Record, run_checks
from gpu import stand_in_engine
from gpu.bench import Bench
from gpu.check_list import CHECKS

from ppexport.backends.tensorrt import run_cuda
from ppexport.backends.tensorrt.run_cuda import Cuda
from ppexport.errors import UnavailableError


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Makes a bench on CUDA that a PlayedCuda plays."""

    def make(played=None, **settings):
        played = played or PlayedCuda()
        monkeypatch.setattr(run_cuda, "_libraries", lambda: iter([played.library]))
        monkeypatch.setattr(stand_in_engine, "_load_driver", lambda: played.library)
        folder = tmp_path / "artifact"
        folder.mkdir()
        settings = {"rounds": (8, 4), "churns": 50, "sizes": (1, 3, 4097), **settings}
        return Bench(folder, (16, 32), **settings)

    return make


def outcome(bench, tmp_path, *names):
    record = Record(tmp_path / "out.json", {})
    run_checks(bench, record, {name: CHECKS[name] for name in names or CHECKS})
    assert json.loads((tmp_path / "out.json").read_text()) == record.data
    return {row["name"]: row["passed"] or row["text"] for row in record.data["checks"]}


def test_all_checks_pass_and_nothing_is_left(play, tmp_path):
    played = PlayedCuda()
    assert outcome(play(played), tmp_path) == dict.fromkeys(CHECKS, True)
    assert played.crash is None
    left = [played.device, played.pinned, played.streams, played.graphs, played.executables, played.recording]
    assert left == [{}] * 6


# Every check can fail. What follows is what CUDA gets wrong, and which check says so in which words.


class LosesDeviceMemory(PlayedCuda):
    def cudaFree(self, address):
        return 0


class ChangesACopy(PlayedCuda):
    def copy(self, target, source, size):
        super().copy(target, source, size)
        if size == 4097:
            ctypes.memset(target + 4096, 0, 1)
            ctypes.memset(target, 1, 1)


class IgnoresEvents(PlayedCuda):
    def cudaStreamWaitEvent(self, stream, event, flags):
        return 0


class RecordsNothing(PlayedCuda):
    def cudaStreamEndCapture(self, stream, found):
        self.recording[stream].clear()
        return super().cudaStreamEndCapture(stream, found)


class RefusesToRecord(PlayedCuda):
    def cudaStreamBeginCapture(self, stream, mode):
        self.broken.add(stream)
        return super().cudaStreamBeginCapture(stream, mode)


class RecordsWaiting(PlayedCuda):
    def cudaStreamSynchronize(self, stream):
        return 0 if stream in self.recording else super().cudaStreamSynchronize(stream)


class RunsTheFirstProfile(PlayedCuda):
    slots = None

    def interpret(self, body, values, blocks, threads):
        self.slots = self.slots or values.get("slots")
        super().interpret(body, {**values, "slots": self.slots}, blocks, threads)


class HasEndlessMemory(PlayedCuda):
    def cudaMalloc(self, found, size):
        return super().cudaMalloc(found, min(size, 1 << 20))


class RefusesNothing(PlayedCuda):
    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        return super().cudaMemcpyAsync(target, source, size, 1 if kind > 2 else kind, stream)


class KeepsErrors(PlayedCuda):
    def cudaGetLastError(self):
        return getattr(self.last, "code", 0)


class ForbidsAllocatingBeside(PlayedCuda):
    def cudaMalloc(self, found, size):
        return 906 if self.recording else super().cudaMalloc(found, size)


class ComputesWrongly(PlayedCuda):
    def interpret(self, body, values, blocks, threads):
        super().interpret(body, values, blocks, threads)
        if "sr" in values:
            self.device[values["sr"]][8] ^= 1


class ForgetsOtherThreads(PlayedCuda):
    def cudaGraphLaunch(self, graph, stream):
        return 0 if len(self.streams) > 1 else super().cudaGraphLaunch(graph, stream)


@pytest.mark.parametrize(
    ("wrong", "check", "words"),
    [
        (ComputesWrongly, "kernel", "1 of 6144 values are not NumPy's"),
        (ChangesACopy, "copies", "a copy of 4097 bytes came back changed"),
        (IgnoresEvents, "order of streams", "read 4096 of 4096 numbers before the first was through"),
        (RecordsNothing, "recorded run", "values are not NumPy's"),
        (RefusesToRecord, "recorded run", "the session could not record this engine"),
        (RecordsWaiting, "not recordable", "waiting for a stream was recorded"),
        (KeepsErrors, "not recordable", "TensorRT failed to run|left an error behind"),
        (RunsTheFirstProfile, "profiles", "the engine had 128 slots, and the session says 512"),
        (ForgetsOtherThreads, "threads", "values are not NumPy's"),
        (ForbidsAllocatingBeside, "recording beside", "cudaMalloc failed: words of CUDA \\(CUDA error 906\\)"),
        (HasEndlessMemory, "full memory", "an allocation of \\d+ bytes gave no error"),
        (RefusesNothing, "refused call", "a copy in no direction gave no error"),
        (LosesDeviceMemory, "rounds", "memory in use grew: \\+[\\d.]+ MiB on the GPU"),
    ],
)
def test_what_cuda_gets_wrong_is_found(play, tmp_path, wrong, check, words):
    found = outcome(play(wrong()), tmp_path, check)[check]
    assert found is not True
    assert re.search(words, found), found


@pytest.mark.parametrize("kept", ["free_device", "free_host", "destroy_stream", "destroy_graph"])
def test_what_the_session_keeps_is_found(play, tmp_path, monkeypatch, kept):
    bench = play()
    monkeypatch.setattr(Cuda, kept, lambda self, handle: None)
    assert "still held after closing" in outcome(bench, tmp_path, "kernel")["kernel"]


def test_a_check_that_does_not_end_ends_the_program(tmp_path):
    codes = []

    def hang(bench):
        while not codes:
            time.sleep(0.01)
        return ""

    class Anything:
        def forget(self):
            pass

    record = Record(tmp_path / "out.json", {})
    run_checks(Anything(), record, {"stuck": hang}, limit=0.05, leave=codes.append)
    assert codes == [1]
    row = json.loads((tmp_path / "out.json").read_text())["checks"][0]
    assert (row["name"], row["passed"]) == ("stuck", False)


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_cuda, "_libraries", lambda: iter([]))
    assert cuda_checks.main(["--out", str(tmp_path / "out.json")]) == 3
    assert capsys.readouterr().err.startswith("error: this machine has no NVIDIA GPU that CUDA can use")
    assert not (tmp_path / "out.json").exists()


def test_the_program(play, tmp_path, monkeypatch, capsys):
    bench = play()
    monkeypatch.setattr(cuda_checks, "Bench", lambda folder: bench)
    monkeypatch.setenv("OUT", str(tmp_path))
    assert cuda_checks.main(["--no-column"]) == 0
    data = json.loads((tmp_path / "cuda_checks.json").read_text())
    assert data["passed"]
    assert data["machine"]["runtime"] == "12.6"
    assert f"all checks passed: {tmp_path / 'cuda_checks.json'}" in capsys.readouterr().out


def test_it_needs_no_more_than_numpy():
    code = (
        "import sys\n"
        "for name in ('torch', 'pydantic', 'typer', 'rich', 'yaml', 'PIL'): sys.modules[name] = None\n"
        "import cuda_checks"
    )
    subprocess.run([sys.executable, "-c", code], cwd=TOOLS, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_the_slow_kernel_is_predicted():
    data = np.array([0, 1, 2**32 - 1, 77], np.uint32)
    expected = data.astype(object)
    for rounds in range(1, 9):
        expected = (expected * stand_in_engine.FACTOR + stand_in_engine.ADDEND) % 2**32
        assert (stand_in_engine.churned(data, rounds) == expected.astype(np.uint32)).all()


def test_the_runtime_has_all_functions_that_are_called():
    library = next(run_cuda._libraries(), None)
    if library is None:
        pytest.skip("this machine has no libcudart")
    # The played one has no others, so these are all that are called.
    names = [name for name in SIGNATURES if name.startswith("cuda")]
    assert [name for name in names if not hasattr(library, name)] == []


def test_every_function_of_the_sessions_is_played():
    source = Path(run_cuda.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'"(cuda[A-Z]\w+)"', source)) | {"cudaGetLastError"} <= set(SIGNATURES)


# The sessions' own CUDA, on the played library.


def test_a_runtime_that_is_newer_than_the_driver_is_passed_over(monkeypatch):
    class TooNew(PlayedCuda):
        def cudaGetDeviceCount(self, found):
            return 35

    new, old = TooNew(), PlayedCuda()
    monkeypatch.setattr(run_cuda, "_libraries", lambda: iter([new.library, old.library]))
    assert Cuda()._library is old.library
    monkeypatch.setattr(run_cuda, "_libraries", lambda: iter([new.library]))
    with pytest.raises(UnavailableError, match=r"no NVIDIA GPU .* \(words of CUDA\)"):
        Cuda()


def test_the_runtimes_in_packages_for_python_are_found_last_and_newest_first(tmp_path, monkeypatch):
    tried = []

    def load(name):
        tried.append(name)
        raise OSError

    files = [tmp_path / "nvidia" / name for name in ("cu13/lib/libcudart.so.13", "cuda_runtime/lib/libcudart.so.12")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(run_cuda.ctypes, "CDLL", load)
    assert list(run_cuda._libraries()) == []
    assert tried[: len(run_cuda.NAMES)] == list(run_cuda.NAMES)
    assert tried[-2:] == list(map(str, files))


@pytest.mark.parametrize("refused", ["cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_a_recording_that_fails_leaves_no_graph(play, tmp_path, monkeypatch, refused):
    played = PlayedCuda()
    bench = play(played)
    own = getattr(PlayedCuda, refused)
    monkeypatch.setattr(PlayedCuda, refused, lambda self, *given: (self.recording.clear(), 700)[1])
    with closing(bench.open()) as runner:
        bench.run(runner, bench.flat)
        bench.run(runner, bench.flat, 0.5)
    assert (played.graphs, played.executables) == ({}, {})
    monkeypatch.setattr(PlayedCuda, refused, own)
    assert outcome(bench, tmp_path, "recorded run")["recorded run"] is True


def test_closing_waits_for_what_an_error_left_in_the_stream(play):
    played = PlayedCuda()
    bench = play(played)
    runner = bench.open()
    port = runner.ports["lr"]
    bench.cuda.upload(port.device, port.host, runner.stream)
    queue = played.streams[runner.stream]
    runner.close()
    assert not queue
    assert played.crash is None


# Network and twin in PyTorch.


def test_network_and_twin_are_compared_and_timed(tmp_path, monkeypatch):
    import torch
    from gpu import column
    from small_networks import small_network

    every = column.parity_inputs
    monkeypatch.setattr(column, "parity_inputs", lambda size, scale: every(size, scale)[:1])
    monkeypatch.setattr(column, "DTYPES", (torch.float32, torch.bfloat16))
    network = small_network()
    found = column.compare_on("cpu", network, (16, 16), (32, 32), 1)
    assert found["passed"]
    full, half = found["rows"]
    assert full["twin_and_cpu"]["identical"]
    assert full["network_and_twin"]["psnr"] > 110 > half["network_and_twin"]["psnr"] > 25
    assert half["twin_and_cpu"]["psnr"] < 110
    assert [row.get("capacity") for row in found["times"]] == [None, 256, 512, 1024] * 2
    assert "256 of 1024 slots take" in found["text"]
    # A twin that computes something else.
    other, made = small_network(), column.make_twin
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    monkeypatch.setattr(column, "make_twin", lambda _, *more: made(other, *more))
    assert not column.compare_on("cpu", network, (16, 16), (32, 32), 1)["passed"]


def test_a_twin_computes_on_one_device_so_that_it_can_be_recorded():
    import torch
    from small_networks import small_network

    import ppexport

    # Tensors without numbers: whatever lies on the CPU, or is read by it, is an error.
    twin = ppexport.make_twin(small_network(), (30, 32), 256).to("meta")
    with torch.no_grad():
        sr, _ = twin(torch.rand(1, 3, 30, 32, device="meta"))
    assert sr.shape == (1, 3, 60, 64)


@pytest.mark.parametrize("missing", ["package", "gpu"])
def test_without_pytorch_for_cuda_the_comparison_is_left_out(tmp_path, monkeypatch, missing):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    if missing == "package":
        monkeypatch.delitem(sys.modules, "gpu.column", raising=False)
        monkeypatch.delattr("gpu.column", raising=False)
        monkeypatch.setitem(sys.modules, "ppexport.networks.load", None)
    record = Record(tmp_path / "out.json", {})
    assert cuda_checks.add_column(record)
    reason = json.loads((tmp_path / "out.json").read_text())["column"]["left_out"]
    assert (
        reason
        == {"package": "this Python has no ppexport.networks.load", "gpu": "PyTorch finds no GPU that it can use"}[
            missing
        ]
    )
