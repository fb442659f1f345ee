"""QNN: a small network compiled for named chips, run and looked into in Qualcomm's emulator, and what is refused."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import exported_once
from onnx import TensorProto, helper
from rich.console import Console
from small_networks import small_network
from test_artifact import change
from typer.testing import CliRunner

import ppexport
from ppexport.backends.backend import find_backend
from ppexport.backends.onnx.export_onnx import trace
from ppexport.backends.onnx.narrow_sums import narrow_sums
from ppexport.backends.onnx.simplify import simplify_file
from ppexport.backends.qnn import chips_of, compile_context, run_qnn
from ppexport.backends.qnn.run_qnn import CHIPS, Session, explain, heard, missing
from ppexport.cli import app
from ppexport.cli.parity import show
from ppexport.device.artifact import read_artifact
from ppexport.device.picture import psnr
from ppexport.errors import ArtifactError, ExportError, InputError, UnavailableError
from ppexport.files import sha256_file
from ppexport.networks.network import Trace
from ppexport.parity import run as parity_run
from ppexport.parity.columns import ArtifactColumn
from ppexport.parity.inputs import ParityInput, parity_inputs
from ppexport.twin.counting_sort import CountingSort, count_up

SIZE = (16, 16)
NOISE = np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE)).astype(np.float32) / np.float32(255)
HALF_FLAT = np.concatenate([NOISE[:, :, :8], np.full((1, 3, 8, 16), 0.25, np.float32)], axis=2)
QNN = pytest.mark.skipif(bool(missing()), reason=missing() or "here")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_once(
        tmp_path_factory, small_network(), backend="qnn", precision="fp16", size=SIZE, capacities=[128, 256],
        soc="SM8650,SM8750",
    )  # fmt: skip


@pytest.fixture
def twin():
    return ppexport.make_twin(small_network(), size=SIZE)


@QNN
def test_every_capacity_and_chip_is_one_partition_and_the_emulator_computes_the_twin(exported, twin):
    artifact = read_artifact(exported)
    contexts = [f"context-{chip}-{capacity}.onnx" for chip in ("SM8650", "SM8750") for capacity in (128, 256)]
    assert list(artifact.manifest.files) == ["model.onnx", *contexts]
    assert artifact.manifest.build["soc"] == ["SM8650", "SM8750"]
    for name in contexts:
        assert [node.op_type for node in onnx.load(exported / name).graph.node] == ["EPContext"]
    used = set()
    with ppexport.open_artifact(exported) as runner:
        for lr in (NOISE, HALF_FLAT):
            trace = Trace()
            with torch.no_grad():
                expected, count = twin(torch.from_numpy(lr), trace=trace)
            sr, impure, capacity = runner(lr)
            assert psnr(expected.numpy(), sr, 1.0) > 45
            assert impure == int(count)
            used.add(capacity)
    assert used == {128, 256}


@QNN
def test_a_probe_shows_exact_masks_injects_categories_and_keeps_what_it_computed(exported, twin, tmp_path, monkeypatch):
    with ppexport.open_artifact(exported) as runner:
        column, item = ArtifactColumn(runner, twin, tmp_path), ParityInput("noise", NOISE)
        assert column.name == "qnn-fp16-emulator"
        own, trace = column.sample(item), Trace()
        with torch.no_grad():
            twin(torch.from_numpy(NOISE), trace=trace)
            assert np.array_equal(own.pure, twin.pure_pass(torch.from_numpy(NOISE)).numpy())
            assert np.array_equal(own.labels, twin.pure_pass.labels(torch.from_numpy(NOISE)).numpy().reshape(-1))
        assert np.mean(own.categories == trace.categories[0].numpy()) > 0.95
        other = (np.arange(256, dtype=np.int32).reshape(1, -1) * 7) % 64
        given = column.sample(item, other)
        with torch.no_grad():
            expected, _ = twin(torch.from_numpy(NOISE), categories=torch.from_numpy(other))
        assert psnr(expected.numpy(), given.sr, 1.0) > 60 > psnr(own.sr, given.sr, 1.0)
        (tokens,) = column.layers(item, other)
        assert tokens.shape == (256, 48)
        monkeypatch.setattr(Session, "run", lambda *_: pytest.fail("it was computed before"))
        assert np.array_equal(column.sample(item, other).sr, given.sr)
        assert np.array_equal(column.sample(item).sr, own.sr)


class Sorting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.sort = CountingSort(4096, 65)
        self.high, self.low = count_up(4096)

    def forward(self, keys):
        return self.sort(keys, (self.high + self.low).view(-1))


@QNN
def test_ranks_and_order_of_4096_tokens_are_exact_on_the_npu(tmp_path):
    keys = torch.from_numpy(np.random.default_rng(0).integers(0, 65, 4096).astype(np.int32))
    trace(Sorting().eval(), {"keys": keys}, ("rank", "order"), tmp_path / "traced.onnx")
    simplify_file(tmp_path / "traced.onnx", tmp_path / "simple.onnx")
    model = onnx.load(tmp_path / "simple.onnx")
    narrow_sums(model)
    found = Session(model.SerializeToString(), "sort", "SM8650").run(["rank", "order"], {"keys": keys.numpy()})
    order = keys.argsort(stable=True).numpy()
    assert np.array_equal(found[1], order)
    assert np.array_equal(found[0][order], np.arange(4096))


@QNN
def test_parity_passes_and_says_which_inputs_fp16_cannot_tell_apart(exported, tmp_path, monkeypatch):
    items = [item for item in parity_inputs(SIZE, 2) if item.name in ("coffee", "greys", "between_levels")]
    monkeypatch.setattr(parity_run, "parity_inputs", lambda *_: items)
    with ppexport.open_artifact(exported) as runner:
        report = parity_run.run_parity(small_network(), runner, tmp_path / "run", lambda *_: None)
    assert report.passed, report.to_dict()["pairs"]
    assert report.left_out == ["between_levels"]
    rows = report.pairs[-1].rows
    assert [row.name for row in rows] == ["coffee", "greys"]
    assert all(row.equal_labels == row.equal_mask == 1.0 for row in rows)
    printed = io.StringIO()
    show(report, Console(file=printed, width=200))
    assert "not compared: between_levels" in printed.getvalue()
    assert not (tmp_path / "run" / parity_run.UNFINISHED).exists()


@QNN
def test_what_the_npu_does_not_take_is_named():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"], name="/a/Relu"), helper.make_node("Erf", ["r"], ["y"], name="/b/Erf")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ExportError, match=r"model: the NPU of SM8650 does not take Erf /b/Erf$"):
        Session(model.SerializeToString(), "model", "SM8650")


@QNN
def test_a_chip_without_fp16_gets_a_sentence_in_place_of_an_error_of_memory(exported, monkeypatch):
    monkeypatch.setitem(CHIPS, "SM8350", 30)
    with pytest.raises(ExportError, match="memory is short, which it also says where SM8350 lacks fp16"):
        Session((exported / "model.onnx").read_bytes(), "model", "SM8350", 128)


@QNN
def test_a_manifest_that_was_edited_and_a_damaged_context_are_refused(exported, tmp_path):
    copied = shutil.copytree(exported, tmp_path / "a")
    for build, match in (
        ({}, "names no chip"),
        ({"soc": ["SM1"]}, "names no chip"),
        ({"soc": [["SM8650"]]}, "names no chip"),
        ({"soc": [{}]}, "names no chip"),
        ({"soc": ["SM8850"]}, "lacks context-SM8850-256.onnx"),
    ):
        change(copied, build=build)
        with pytest.raises(ArtifactError, match=match):
            ppexport.open_artifact(copied)
    change(copied, build={"soc": ["SM8650"]})
    context = copied / "context-SM8650-256.onnx"
    for other, match in (
        ("model.onnx", r"holds \d+ nodes, not one that is compiled"),
        ("context-SM8750-256.onnx", "ppexport.soc is 'SM8750', where 'SM8650' is needed"),
        ("context-SM8650-128.onnx", "ppexport.slots is '128', where '256' is needed"),
    ):
        shutil.copyfile(exported / other, context)
        files = {**read_artifact(exported).manifest.files, context.name: sha256_file(context)}
        change(copied, files=files)
        with pytest.raises(ArtifactError, match=match):
            ppexport.open_artifact(copied)
    broken = onnx.load(exported / "context-SM8650-256.onnx")
    (held,) = (a for a in broken.graph.node[0].attribute if a.name == "ep_cache_context")
    held.s = held.s[: len(held.s) // 2]
    with pytest.raises(ExportError, match="Qualcomm's tools refuse it for SM8650"):
        Session(broken.SerializeToString(), "context", "SM8650")


@QNN
def test_times_of_the_emulator_are_refused(exported, tmp_path):
    done = CliRunner().invoke(app, ["profile", str(exported), "-o", str(tmp_path / "p")])
    assert isinstance(done.exception, UnavailableError)
    assert "an emulator computes what the NPU would" in str(done.exception)


@pytest.mark.parametrize(("threads", "match"), [(2, "qnn takes no number of threads"), (0, "whole number from 1")])
def test_a_number_of_threads_is_refused(threads, match):
    with pytest.raises(InputError, match=match):
        find_backend("qnn").open(None, threads=threads)
    with pytest.raises(InputError, match=match):
        run_qnn.open_target(None, namedtuple("Given", "threads")(threads))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("Failed to finalize QNN graph. Error: QNN_COMMON_ERROR_MEM_ALLOC: Memory allocation, Code: 1002", "is short"),
        ("Failed to finalize QNN graph. Error code: 1002", "is short"),
        ("Not taken: { name: /Erf_1002, type: Erf }", "does not take Erf /Erf_1002$"),
        ("Not taken: { name: /a, type: Erf } QNN_COMMON_ERROR_MEM_ALLOC", "does not take Erf /a$"),
        ("node /Add_1002 at 1002 bytes", "refuse it for SM8650: no$"),
        ("QNN graph 1002 has error code 31002", "refuse it for SM8650: no$"),
    ],
)
def test_memory_is_short_where_qnn_says_so(said, match):
    assert re.search(match, explain(Exception("no"), said, "SM8650"))


def test_chips():
    assert chips_of("sm8550, SM8850") == ["SM8550", "SM8850"]
    for text, match in (
        ("SM8350", "SM8350 has no fp16"),
        ("", "soc is one or more of SM8550, SM8650, SM8750, SM8850"),
        ("SM8650,SM8650", "names a chip twice"),
    ):
        with pytest.raises(InputError, match=match):
            chips_of(text)


Request = namedtuple("Request", "options")
Options = namedtuple("Options", "soc")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({(sys, "version_info"): (3, 10, 1)}, "needs Python 3.11 or newer"),
        ({(sys, "platform"): "darwin"}, "run on x86-64 Linux"),
        ({(run_qnn, "find_spec"): lambda _: None}, r"pip install -e '\.\[qnn\]'"),
    ],
)
def test_a_machine_that_cannot_compile_is_told_why(changes, match, monkeypatch):
    monkeypatch.setattr(run_qnn, "find_spec", lambda _: True)
    for (holder, name), value in changes.items():
        monkeypatch.setattr(holder, name, value)
    with pytest.raises(UnavailableError, match=match):
        find_backend("qnn").check(Request(Options("SM8650")))


@QNN
@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_qnn"])
def test_a_package_that_does_not_load_is_named(name, monkeypatch):
    monkeypatch.setattr(run_qnn, "missing", lambda: "")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match=f"{name} cannot be loaded here .* 'qnn' of ppexport again"):
        run_qnn._provider.__wrapped__()


@QNN
def test_a_package_without_its_libraries_is_told(monkeypatch):
    monkeypatch.setattr(run_qnn.os.path, "isfile", lambda _: False)
    with pytest.raises(UnavailableError, match="installed without its libraries"):
        run_qnn._provider.__wrapped__()


@pytest.mark.parametrize(
    ("done", "match"),
    [
        ((-9, "", ""), "ended by signal 9 while it compiled for SM8650: memory may have run out"),
        ((-11, "", ""), "ended by signal 11 .* try a smaller size"),
        ((1, "", "Traceback\nOSError: no space\n"), "failed for SM8650: OSError: no space"),
        ((0, '{"kind": "UnavailableError", "said": "no library"}\n', ""), "no library"),
    ],
)
def test_a_compiler_that_fails_ends_with_a_sentence(done, match, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], *done))
    with pytest.raises((ExportError, UnavailableError), match=match):
        compile_context.compile_context(tmp_path / "m.onnx", tmp_path / "c.onnx", "SM8650", 0)


def test_the_compiler_takes_no_modules_from_the_current_folder(tmp_path, monkeypatch):
    for name in ("json", "numpy", "onnx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger ran')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"failed for SM8650: FileNotFoundError.*absent\.onnx"):
        compile_context.compile_context(Path("absent.onnx"), Path("c.onnx"), "SM8650", 0)


def test_a_graph_in_parts_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("EPContext", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])], "g", [], []
    )
    onnx.save(helper.make_model(graph), tmp_path / "c.onnx")
    with pytest.raises(ExportError, match="falls apart into 2 parts"):
        compile_context.one_partition(tmp_path / "c.onnx", "SM8650")


def test_what_was_printed_is_heard(capfd):
    with heard() as said:
        subprocess.run(
            [sys.executable, "-c", "print('one', flush=True); import sys; print('two', file=sys.stderr)"], check=True
        )
    print("after")
    assert said == ["one\ntwo\n"]
    assert capfd.readouterr().out == "after\n"
    assert "Invalid config" in explain(
        Exception("no"), "QNN SetupBackend failed Failed to create device. Error: Invalid config", "SM8650"
    )


@pytest.mark.slow
@QNN
def test_the_bundled_network_is_exact_in_masks_and_keeps_70_db_with_the_references_categories(tmp_path):
    network = ppexport.load_network("pp_atd_light_x2")
    folder = ppexport.export(
        network, backend="qnn", precision="fp16", size=(32, 32), out=tmp_path / "a", soc="SM8550,SM8650,SM8750"
    )
    twin = ppexport.make_twin(network, size=(32, 32))
    (item,) = (item for item in parity_inputs((32, 32), 2) if item.name == "chelsea")
    with ppexport.open_artifact(folder) as runner:
        column, trace, lr = ArtifactColumn(runner, twin, tmp_path / "kept"), Trace(), torch.from_numpy(item.lr)
        with torch.no_grad():
            expected, count = twin(lr, trace=trace)
            pure, labels = twin.pure_pass(lr).numpy(), twin.pure_pass.labels(lr).numpy()
        categories = torch.stack(trace.categories).numpy()
        own, given = column.sample(item), column.sample(item, categories)
    assert own.impure == given.impure == int(count)
    assert np.array_equal(own.pure, pure)
    assert np.array_equal(own.labels, labels.reshape(-1))
    assert psnr(expected.numpy(), own.sr, 1.0) > 45
    assert psnr(expected.numpy(), given.sr, 1.0) > 70
