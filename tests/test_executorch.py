"""ExecuTorch: a small network lowered, run in ExecuTorch's runtime, and refused where it cannot be."""

from __future__ import annotations

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import exported_once
from PIL import Image
from torch import nn

pytest.importorskip("executorch")

from small_networks import SIZE, random_small_network, small_network

import ppexport
from ppexport.backends.executorch.float_sort import FloatSort
from ppexport.backends.executorch.lower import InXnnpackForm, TimeLeft
from ppexport.backends.executorch.lowering_cache import FOLDER, KEPT, kept_or_made
from ppexport.backends.executorch.operators import XnnpackForm
from ppexport.backends.executorch.own_modules import SplitDepthwise, SplitHeads, is_large_depthwise, with_own_modules
from ppexport.backends.executorch.partition import levels
from ppexport.backends.executorch.run_executorch import IN_USE, Session
from ppexport.backends.open_front import Front
from ppexport.backends.self_check import example_inputs
from ppexport.device.cores import usable_processors
from ppexport.device.picture import psnr
from ppexport.errors import ArtifactError, ExportError, InputError, UnavailableError
from ppexport.files import cache_folder, sha256_file
from ppexport.networks.architecture import architectures
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs
from ppexport.twin.counting_sort import CountingSort

pytest_plugins = ["apple_fixtures"]
NOISE = np.random.default_rng(0).random((1, 3, *SIZE), np.float32)
HALF_FLAT = np.concatenate([NOISE[:, :, :8], np.full((1, 3, 8, 16), 0.25, np.float32)], axis=2)
A, B = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4, 6)
W, C = torch.rand(4), torch.rand(3)
MASK = torch.tensor([[True], [False], [True], [False], [True]])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_once(tmp_path_factory, small_network(), backend="executorch", size=SIZE, capacities=[128, 256])


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def rewritten(folder, **fields):
    """Writes *fields*, and the model's present hash, into the manifest, as one would who forges it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(fields)
    manifest["files"]["model.pte"] = sha256_file(folder / "model.pte")
    (folder / "manifest.json").write_text(json.dumps(manifest))


CALLS = {
    "layer_norm": lambda: F.layer_norm(A, (4,), W, W, 1e-5),
    "instance_norm": lambda: F.instance_norm(A[0], weight=None, bias=None),
    "instance_norm with weights": lambda: F.instance_norm(A[:1, :, :, 0], weight=C, bias=C),
    "sum": lambda: A[0, 0].sum(dim=1, keepdim=True),
    "matmul": lambda: A[0, 0] @ B[0, 0],
    "matmul of a batch": lambda: A[0] @ B[0],
    "matmul of batches": lambda: torch.matmul(A, B),
    "addmm": lambda: torch.addmm(torch.ones(5, 6), A[0, 0], B[0, 0]),
    "where": lambda: torch.where(MASK, A[0, 0], -A[0, 0]),
    "where or a number": lambda: torch.where(MASK, A[0, 0], torch.zeros(())),
    "unbind": lambda: torch.stack(A.unbind(0)),
    "squeeze": lambda: A[:, :1].squeeze(1),
    "unsqueeze": lambda: A.unsqueeze(-1),
    "index_select": lambda: A[0, 0].index_select(1, torch.tensor([3, 0, 0])),
    "reshape": lambda: A.transpose(0, 1).reshape(-1, 4),
}
CUT = ("layer_norm", "instance_norm", "sum.dim", "mm.default", "matmul", "addmm", "where", "unbind", "squeeze")
"""Operators that XNNPACK does not take; bmm ends in mm.default too."""


@pytest.mark.parametrize("name", CALLS)
def test_a_form_computes_the_same(name):
    expected, form = CALLS[name](), XnnpackForm(nn.Module())
    with form:
        found = CALLS[name]()
    assert torch.allclose(found, expected, atol=1e-6)

    class Called(nn.Module):
        def forward(self, x):
            with XnnpackForm(nn.Module()):
                return CALLS[name]() + x

    graph = torch.export.export(Called(), (torch.zeros(()),)).graph
    kinds = {str(node.target) for node in graph.nodes if node.op == "call_function"} - {"aten.bmm.default"}
    assert not [kind for kind in kinds if any(cut in kind for cut in CUT)]


def test_what_no_form_is_for_stays_as_it_is():
    form, plain = XnnpackForm(nn.Module()), (A[0, 0].sum(dim=0), A[0, 0] @ B[0], torch.where(MASK, 1, 2))
    with form:
        found = A[0, 0].sum(dim=0), A[0, 0] @ B[0], torch.where(MASK, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert not form.needed


@pytest.mark.parametrize("count", [256, 768, 4096, 65536])
def test_the_sort_in_fp32_is_the_sort(count):
    keys = torch.from_numpy(np.random.default_rng(count).integers(0, 65, count).astype(np.int32))
    sort, tokens = CountingSort(count, 65), torch.arange(count, dtype=torch.int32)
    for expected, found in zip(sort(keys, tokens), FloatSort(sort, count)(keys, tokens), strict=True):
        assert torch.equal(expected, found)


def test_more_tokens_than_fp32_counts():
    with pytest.raises(ExportError, match="16777216 tokens are more than fp32 counts exactly"):
        FloatSort(CountingSort(256, 65), 1 << 24)


@pytest.mark.parametrize("arch", [name for name in architectures() if name not in ("atd", "pp_atd")])
def test_a_twin_in_this_form_is_the_twin(arch):
    twin = ppexport.make_twin(random_small_network(arch), size=(16, 32))
    inputs = example_inputs(twin)
    formed = InXnnpackForm(Front(with_own_modules(twin)), inputs)
    with torch.no_grad():
        expected, found = twin(**inputs), formed(**inputs)
    assert psnr(expected[0].numpy(), found[0].numpy(), 1.0) > 110
    assert torch.equal(expected[1], found[1])
    assert not any(isinstance(module, (FloatSort, SplitDepthwise, SplitHeads)) for module in twin.modules())


@pytest.mark.parametrize(("kernel", "padding"), [((7, 7), 3), ((5, 9), (1, 4)), ((11, 11), (0, 5))])
def test_a_large_depthwise_convolution_is_a_sum(kernel, padding):
    conv, x = nn.Conv2d(4, 4, kernel, padding=padding, groups=4), torch.rand(1, 4, 12, 13)
    assert is_large_depthwise(conv)
    split = SplitDepthwise(conv)
    assert all(part.shape[2] * part.shape[3] <= 25 for part in split.parts)
    assert torch.allclose(split(x), conv(x), atol=1e-6)


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(4, 4, 5, groups=4), nn.Conv2d(4, 4, 7), nn.Conv2d(4, 8, 7, groups=4), nn.Conv2d(4, 4, 7, 2, groups=4)],
)
def test_other_convolutions_stay(conv):
    assert not is_large_depthwise(conv)


def graph_of(text):
    """A graph of "name: input input" lines, its nodes by name."""
    graph, nodes = torch.fx.Graph(), {}
    for line in text.split(", "):
        name, _, inputs = line.partition(":")
        given = tuple(nodes[i] for i in inputs.split())
        nodes[name] = graph.call_function(torch.add, given) if given else graph.placeholder(name)
    return graph, nodes


def test_a_level_is_how_often_the_way_to_the_end_leaves_for_xnnpack():
    graph, nodes = graph_of("x, a:x, b:a, gather:b, c:a, d:gather c, sort:d, e:sort d, f:c")
    taken = [[nodes[name]] for name in "abcdef"]
    found = {"a": 3, "b": 3, "c": 2, "d": 2, "e": 1, "f": 1}
    assert levels(graph, taken) == {nodes[name]: level for name, level in found.items()}


def test_a_group_has_the_level_of_its_first_operator_and_takes_others_along():
    graph, nodes = graph_of("x, e:x, c:e, b:e, gather:b, a:gather c")
    taken = [[nodes["a"]], [nodes["b"], nodes["c"]], [nodes["e"]]]
    assert levels(graph, taken) == {nodes["a"]: 1, nodes["b"]: 2, nodes["c"]: 2, nodes["e"]: 2}


def test_a_group_that_cannot_be_one_subgraph():
    graph, nodes = graph_of("x, a:x, gather:a, b:gather")
    with pytest.raises(ValueError, match="depend on another kernel in between"):
        levels(graph, [[nodes["a"], nodes["b"]]])


def test_time_left():
    said = []
    tell = TimeLeft(said.append)
    for done in (0, 1, 2, 3):
        tell(done, 3)
    assert said[:2] == ["cutting the graph into 3 subgraphs", "lowering for XNNPACK: 1 of 3 subgraphs"]
    assert re.fullmatch(r"lowering for XNNPACK: 2 of 3 subgraphs, about \d+ s left", said[2])


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder(FOLDER)


def never():
    raise AssertionError("it is kept")


def test_a_program_is_kept_and_a_damaged_one_is_made_again(cache):
    assert kept_or_made("k", lambda: b"program") == b"program"
    assert kept_or_made("k", never) == b"program"
    (entry,) = cache.glob("*")
    for damaged in (entry.read_bytes()[:-1], entry.read_bytes() + b"x", b"", b"short"):
        entry.write_bytes(damaged)
        assert kept_or_made("k", lambda: b"program") == b"program"
        assert kept_or_made("k", never) == b"program"


def test_the_newest_programs_are_kept(cache):
    for i in range(KEPT + 3):
        kept_or_made(f"k{i}", lambda: b"program")
    assert len(list(cache.glob("*"))) == KEPT


def test_a_cache_that_cannot_be_written_keeps_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kept_or_made("k", lambda: b"program") == b"program"
    # Nor do a folder where the program would lie, and a user without a home.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    (tmp_path / "taken" / "ppexport" / FOLDER / "k.lowered").mkdir(parents=True)
    assert kept_or_made("k", lambda: b"program") == b"program"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert kept_or_made("k", lambda: b"program") == b"program"


def test_a_capacity_set_is_one_method_and_the_twin(exported):
    twin, used = ppexport.make_twin(small_network(), size=SIZE), set()
    with ppexport.open_artifact(exported) as runner:
        for lr in (NOISE, HALF_FLAT):
            sr, impure, capacity = runner(lr)
            with torch.no_grad():
                expected, count = twin(torch.from_numpy(lr))
            assert psnr(expected.numpy(), sr, 1.0) > 110
            assert impure == int(count)
            used.add(capacity)
    assert used == {128, 256}
    manifest = json.loads((exported / "manifest.json").read_text())
    assert (manifest["build"]["partitioner"], manifest["build"]["compared"]) == ("xnnpack", True)


def test_parity_sees_what_the_program_chose(exported, tmp_path, monkeypatch):
    (item,) = (item for item in parity_inputs(SIZE, 2) if item.name == "coffee")
    monkeypatch.setattr(parity_run, "parity_inputs", lambda *_: [item])
    with ppexport.open_artifact(exported) as runner:
        report = parity_run.run_parity(small_network(), runner, tmp_path / "run", lambda *_: None).to_dict()
    assert [pair["passed"] for pair in report["pairs"]] == [True, True]
    assert report["pairs"][1]["rows"][0]["flips"] == [0]


def test_profile_times_it(exported, tmp_path):
    from ppexport.device.target import choose, open_target

    (target,) = choose(exported, None, None, False)
    assert target.name == "executorch"
    with open_target(target) as runner:
        assert runner(NOISE).sr.shape == (1, 3, 32, 32)


def test_threads_are_those_of_the_process(exported):
    content = (exported / "model.pte").read_bytes()
    first = Session(content, "first", threads=1)
    with pytest.raises(InputError, match="one pool of threads for a process, .* uses it with 1"):
        Session(content, "second", threads=2)
    first.close()
    pictures = []
    for threads in (2, 1):
        session = Session(content, "again", threads=threads)
        pictures.append(session.run({"lr": NOISE, "slots": np.zeros((1, 256), np.int32)})["sr"])
        session.close()
    assert np.array_equal(*pictures)
    with pytest.raises(InputError, match="was closed"):
        first.run({"lr": NOISE})


def test_after_a_number_of_threads_the_next_program_has_the_runtimes(exported):
    from executorch.runtime import Runtime

    content, pool = (exported / "model.pte").read_bytes(), Runtime.get()._legacy_module
    session = Session(content, "it")
    usual = pool._threadpool_get_thread_count()
    session.close()
    other = 1 if usual > 1 else 2
    if other > usable_processors():
        pytest.skip("one processor, which leaves no other number of threads")
    session = Session(content, "it", threads=other)
    # What looks into an open program computes with it.
    second = Session(content, "it as well")
    assert pool._threadpool_get_thread_count() == other
    session.close()
    second.close()
    session = Session(content, "it")
    assert pool._threadpool_get_thread_count() == usual
    session.close()


@pytest.mark.parametrize(
    ("lr", "slots", "error"),
    [
        (NOISE[:, :, :8], 256, ArtifactError),
        (NOISE.astype(np.float64), 256, ArtifactError),
        (NOISE, 130, ArtifactError),
        (NOISE, 512, ArtifactError),
        (NOISE, 0, InputError),
        (NOISE, None, ArtifactError),
    ],
)
def test_inputs_that_a_program_does_not_take(exported, lr, slots, error):
    session = Session((exported / "model.pte").read_bytes(), "it")
    given = {"lr": lr} | ({} if slots is None else {"slots": np.zeros((1, slots), np.int32)})
    with pytest.raises(error):
        session.run(given)
    # The runtime continues.
    assert session.run({"lr": NOISE, "slots": np.zeros((1, 256), np.int32)})["sr"].shape == (1, 3, 32, 32)
    session.close()


def refuses(folder, message, error=ArtifactError):
    with pytest.raises(error, match=message):
        ppexport.open_artifact(folder)


def test_a_damaged_program_is_refused(copied, fails, tmp_path):
    model = copied / "model.pte"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + b"x")
    Image.new("RGB", SIZE).save(tmp_path / "in.png")
    fails("upscale", copied, tmp_path / "in.png", tmp_path / "out.png", message="does not match|was changed")
    for content in (b"", b"\0\0\0\0ET12" + b"\1" * 999, whole[: len(whole) // 2], whole[:4] + b"TFL3" + whole[8:]):
        model.write_bytes(content)
        rewritten(copied)
        refuses(copied, "is not an ExecuTorch program|ExecuTorch refuses")


def test_a_program_that_is_not_ours_is_refused(copied):
    from executorch.exir import to_edge

    program = torch.export.export(nn.Conv2d(3, 3, 3).eval(), (torch.zeros(1, 3, *SIZE),))
    (copied / "model.pte").write_bytes(to_edge(program).to_executorch().buffer)
    rewritten(copied)
    refuses(copied, r"ppexport\.capacities is None, the manifest says '128,256'")


def test_another_size_in_the_manifest_is_refused(copied):
    rewritten(copied, size=[32, 32], tokens=1024)
    refuses(copied, r"takes \[\('float32', \[1, 3, 16, 16\]\), \('int32', \[1, 256\]\)\], but the manifest says")


def enlarged(x):
    return x.repeat(1, 1, 2, 2)


def counted(x):
    return x.sum().to(torch.int32).view(1)


FORGED = {
    "a number for an input": (lambda x, k: (enlarged(x) * k, counted(x)), (3,), "what is no tensor .*: no export"),
    "a number for a result": (lambda x: (enlarged(x), 5), (), "what is no tensor .*: no export"),
    "a count that is a float": (lambda x: (enlarged(x), x.sum().view(1)), (), r"returns .*\('float32', \[1\]\)\], but"),
    "a picture of doubles": (lambda x: (enlarged(x).double(), counted(x)), (), r"returns \[\('type 7', .* but"),
    "another picture": (lambda x: (x + 1, counted(x)), (), r"returns \[\('float32', \[1, 3, 16, 16\]\), .* but"),
    "one result": (lambda x: (enlarged(x),), (), r"returns \[\('float32', \[1, 3, 32, 32\]\)\], but"),
}


@pytest.mark.parametrize(("compute", "more", "message"), FORGED.values(), ids=FORGED)
def test_a_program_that_takes_or_returns_something_else_is_refused(compute, more, message, copied):
    from executorch.exir import to_edge

    class Forged(nn.Module):
        def forward(self, x, *more):
            return compute(x, *more)

    manifest = json.loads((copied / "manifest.json").read_text())
    facts = {"ppexport_capacities": "256", "ppexport_card_sha256": manifest["card_sha256"]}
    program = torch.export.export(Forged().eval(), (torch.rand(1, 3, *SIZE), *more))
    (copied / "model.pte").write_bytes(to_edge(program, constant_methods=facts).to_executorch().buffer)
    rewritten(copied, capacities=[256])
    refuses(copied, message)
    assert not IN_USE


def test_a_count_that_is_no_number_ends_in_a_sentence(exported, monkeypatch):
    monkeypatch.setattr(Session, "run", lambda *_: {"sr": NOISE, "impure_tokens": np.full(1, np.nan)})
    with ppexport.open_artifact(exported) as runner, pytest.raises(ArtifactError, match="counts nan tokens"):
        runner(NOISE)


def test_a_package_without_its_runtime_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    refuses(exported, r"executorch\.runtime cannot be loaded here .* 'executorch' of ppexport again", UnavailableError)


def test_a_program_for_gpus_cannot_be_opened(copied):
    rewritten(copied, build={"partitioner": "vulkan"})
    refuses(copied, r"was lowered for vulkan, .* export with -O partitioner=xnnpack", UnavailableError)


def test_without_the_extra_it_is_named(exported, fails, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    export = ("export", "pp_atd_light_x2", "--backend", "executorch", "--size", "16x16", "-o", tmp_path / "x")
    missing = r"executorch is not installed: pip install -e '\.\[executorch\]'"
    fails(*export, code=3, message=missing)
    refuses(exported, missing, UnavailableError)
    assert not (tmp_path / "x").exists()


def test_an_unknown_partitioner(fails, tmp_path):
    export = ("export", "pp_atd_light_x2", "--backend", "executorch", "--size", "16x16", "-o", tmp_path / "x")
    message = "partitioner of --backend executorch is one of xnnpack, vulkan, not 'coreml'"
    fails(*export, "-O", "partitioner=coreml", message=message)


def test_a_set_of_windows_in_two_grids_has_an_end(tmp_path):
    options = {"size": (32, 32), "capacities": [128, 1024], "out": tmp_path / "a"}
    with pytest.raises(InputError, match="at this size has at most 576 slots in ExecuTorch"):
        ppexport.export(random_small_network("pp_swinir_light"), backend="executorch", **options)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.parametrize("capacities", [None, [128, 256]])
def test_lowering_for_vulkan(tmp_path, capacities):
    out = ppexport.export(
        small_network(),
        backend="executorch",
        size=SIZE,
        out=tmp_path / "a",
        partitioner="vulkan",
        capacities=capacities,
    )
    assert not json.loads((out / "manifest.json").read_text())["build"]["compared"]
    assert b"VulkanBackend" in (out / "model.pte").read_bytes()


@pytest.mark.slow
def test_a_set_whose_mask_is_an_input_and_an_odd_size(tmp_path):
    size = (13, 20)
    options = {"size": size, "mask": "input", "capacities": [128, 256, 512]}
    out = ppexport.export(small_network(), backend="executorch", out=tmp_path / "a", **options)
    lr = np.random.default_rng(1).random((1, 3, *size), np.float32)
    with ppexport.open_artifact(out) as runner:
        sr, impure, capacity = runner(lr)
    expected, count = ppexport.make_twin(small_network(), size=size)(torch.from_numpy(lr))
    assert (sr.shape, capacity) == ((1, 3, 26, 40), 512)
    assert psnr(expected.detach().numpy(), sr, 1.0) > 110
    assert impure == int(count)
