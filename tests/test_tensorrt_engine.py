"""Engine artifacts: manifest, trust, foreign machines, and the runner on stand-ins for TensorRT and CUDA."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import exported_once
from fake_tensorrt import FakeCuda, FakeEngine, fake_module
from small_networks import random_small_network
from tensorrt_models import random_network, shorten

import ppexport
from ppexport import cli
from ppexport.backends.tensorrt import BACKEND
from ppexport.backends.tensorrt import run_engine as sessions
from ppexport.backends.tensorrt.build_engine import EngineRequest, engine_artifact, read_source
from ppexport.backends.tensorrt.run_cuda import Cuda, CudaMemoryError
from ppexport.backends.tensorrt.run_engine import TensorRTRunner
from ppexport.backends.tensorrt.run_facts import (
    Machine,
    check_trust,
    differences,
    is_own,
    key_file,
    machine_of,
    make_key,
    read_key,
    sign,
)
from ppexport.device.artifact import parse_manifest, read_artifact, write_manifest
from ppexport.errors import ArtifactError, InputError, UnavailableError
from ppexport.remote.address import TransferError

SIZE = (16, 32)
CAPACITIES = [128, 512]
ORIN = {"gpu": "Orin", "compute_capability": "8.7", "driver": "12.6"}
PLAN = b"a plan"


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An ONNX artifact for TensorRT, a capacity set."""
    network = shorten(random_network("pp_atd_light", 2), 1)
    exported = exported_once(tmp_path_factory, network, backend="tensorrt", size=SIZE, capacities=CAPACITIES)
    return Path(shutil.copytree(exported, tmp_path_factory.mktemp("engine") / "x2"))


OUTCOME = {
    "runtime": "tensorrt", "tensorrt": "10.3.0", **ORIN, "seconds": 12.5,
    "engine_sha256": hashlib.sha256(PLAN).hexdigest(), "device": {"machine": "aarch64"},
}  # fmt: skip


@pytest.fixture
def build(source, tmp_path):
    """Makes an engine artifact of what the builder leaves on an Orin."""

    def make(out="engine", log="{}", layers='{"Layers": [{"Name": "a"}]}', source=source, **changes):
        folder = tmp_path / "build"
        folder.mkdir(exist_ok=True)
        (folder / "model.engine").write_bytes(PLAN)
        for name, text in (("build.log", log), ("timing.cache", "{}"), ("layers.json", layers)):
            (folder / name).write_text(text)
        request = EngineRequest(read_source(source))
        return engine_artifact(request, {**OUTCOME, **changes}, folder, tmp_path / out)

    return make


@pytest.fixture
def engine(build):
    return build()


def loading(cuda, **changes):
    """A TensorRT module that loads an engine of the capacity set."""
    facts = {"names": ["lr", "slots", "sr", "impure_tokens"], "profiles": 2, "size": SIZE, "scale": 2, **changes}
    return fake_module(FakeEngine(cuda, **facts))


@pytest.fixture
def orin(monkeypatch):
    """A machine like the one that built the engine; its TensorRT module and CUDA."""
    cuda = FakeCuda()
    module = loading(cuda)
    monkeypatch.setattr(sessions, "describe_gpu", lambda: dict(ORIN))
    monkeypatch.setattr(sessions, "import_tensorrt", lambda name: module)
    monkeypatch.setattr(sessions, "Cuda", lambda: cuda)
    return module, cuda


def edit(folder, **changes):
    manifest = read_artifact(folder).manifest
    write_manifest(folder, replace(manifest, engine={**manifest.engine, **changes}))


# The artifact.


def test_the_manifest_tells_what_the_engine_depends_on(engine, source):
    manifest = read_artifact(engine).manifest
    assert manifest.backend == "tensorrt"
    assert next(iter(manifest.files)) == "model.engine"
    assert set(manifest.files) == {"model.engine", "build.log", "timing.cache", "device.json", "layers.json"}
    assert machine_of(manifest) == Machine("tensorrt", "10.3.0", "Orin", "8.7", "12.6")
    sha = hashlib.sha256((source / "model.onnx").read_bytes()).hexdigest()
    assert manifest.engine["source"] == {"name": "x2", "onnx_sha256": sha}
    assert manifest.engine["profiles"] == CAPACITIES
    assert manifest.engine["layers"] == 1
    assert json.loads((engine / "layers.json").read_text()) == [{"Name": "a"}]


def test_a_request_of_a_capacity_set(source):
    request = EngineRequest(read_source(source), workspace_mb=512).data
    assert request["slots"] == CAPACITIES
    assert (request["tf32"], request["workspace_mb"]) == (False, 512)
    assert request["activation_bytes"] > 0


def test_an_engine_takes_the_place_of_an_older_one_whole(build, engine):
    assert build(log="again") == engine
    assert (engine / "build.log").read_text() == "again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine_sha256": "0" * 64}, "is not the one that the device's result describes"),
        ({"layers": "["}, "layers.json from the device is not a JSON object"),
        ({"runtime": None}, "does not say which TensorRT"),
        ({"gpu": 7}, "no usable gpu"),
        ({"seconds": float("inf")}, "no usable seconds"),
        ({"device": None}, "no usable device"),
    ],
)
def test_what_does_not_belong_together(build, tmp_path, changes, message):
    with pytest.raises((TransferError, ArtifactError), match=message):
        build(**changes)
    assert not (tmp_path / "engine").exists()


def test_an_engine_is_no_source(engine, build):
    with pytest.raises(ArtifactError, match="an engine is built from"):
        build(out="again", source=engine)


def test_manifests_of_version_2_are_still_read(source):
    data = json.loads((source / "manifest.json").read_text())
    del data["engine"]
    assert parse_manifest(json.dumps({**data, "version": 2}), "m").engine == {}
    with pytest.raises(ArtifactError, match="engine"):
        parse_manifest(json.dumps(data), "m")


# Trust.


def test_own_engines_are_trusted_and_others_are_not(engine):
    manifest = read_artifact(engine).manifest
    check_trust("x", manifest, trust=False)
    key_file().unlink()
    for _ in range(2):
        with pytest.raises(InputError, match="say --trust"):
            check_trust("x", manifest, trust=False)
        make_key()
    check_trust("x", manifest, trust=True)


def test_a_signature_covers_the_whole_manifest(engine):
    manifest = read_artifact(engine).manifest
    assert is_own(manifest)
    assert not is_own(replace(manifest, files={**manifest.files, "model.engine": "0" * 64}))
    assert not is_own(replace(manifest, engine={**manifest.engine, "gpu": "Thor"}))
    assert not is_own(replace(manifest, engine={**manifest.engine, "signature": 5}))
    assert sign(manifest).engine["signature"] == manifest.engine["signature"]


def test_the_key_is_private_and_made_once():
    assert read_key() is None
    key = make_key()
    assert key_file().stat().st_mode & 0o777 == 0o600
    assert make_key() == key == read_key()
    assert [path.name for path in key_file().parent.iterdir()] == ["engine.key"]


@pytest.mark.parametrize("spoil", [lambda k: k.chmod(0o644), lambda k: k.write_bytes(b"short")])
def test_a_key_that_others_may_read_or_that_is_damaged_is_not_used(spoil):
    make_key()
    spoil(key_file())
    with pytest.raises(InputError, match=str(key_file())):
        read_key()


def test_a_link_in_place_of_the_key_is_not_followed(tmp_path):
    make_key()
    key_file().rename(tmp_path / "moved")
    key_file().symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match="cannot be read"):
        make_key()


# Machines.


HERE = Machine("tensorrt", "10.3.0", "Orin", "8.7", "12.6")


@pytest.mark.parametrize(
    ("here", "count"),
    [
        (HERE, 0),
        (replace(HERE, driver="13.0"), 0),
        (replace(HERE, driver="12.4"), 1),
        (replace(HERE, gpu="Thor", compute_capability="11.0"), 2),
        (replace(HERE, tensorrt="10.7.0"), 1),
        (replace(HERE, runtime="tensorrt_rtx"), 1),
    ],
)
def test_what_makes_a_machine_foreign(here, count):
    assert len(differences(HERE, here)) == count


def test_a_portable_engine_of_tensorrt_rtx_says_nothing_of_gpus():
    built = Machine("tensorrt_rtx", "1.7.1.116", None, None, None)
    assert differences(built, Machine("tensorrt_rtx", "1.7.1.116", "RTX 4090", "8.9", "13.0")) == []


def test_a_foreign_engine_is_never_loaded(engine, orin):
    module, _ = orin
    edit(engine, gpu="Thor", tensorrt="10.7.0")
    with pytest.raises(ArtifactError) as raised:
        ppexport.open_artifact(engine, trust=True)
    assert "GPU Thor, here is Orin" in str(raised.value)
    assert "ppexport build x2 -o engine" in str(raised.value)
    assert module.loaded == []


def test_an_engine_of_somebody_else_is_never_loaded(engine, orin):
    module, _ = orin
    shutil.rmtree(key_file().parent)
    with pytest.raises(InputError, match="say --trust"):
        ppexport.open_artifact(engine)
    assert module.loaded == []
    assert isinstance(ppexport.open_artifact(engine, trust=True), TensorRTRunner)


@pytest.mark.parametrize("command", [["parity"], ["upscale", "{image}", "{out}"]])
def test_without_a_gpu_commands_exit_with_3(engine, command, tmp_path, monkeypatch, capsys):
    from PIL import Image

    if sessions.describe_gpu()["gpu"] is not None:
        pytest.skip("this machine has a GPU")
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    rest = [part.format(image=tmp_path / "in.png", out=tmp_path / "out.png") for part in command[1:]]
    monkeypatch.setattr("sys.argv", ["ppexport", command[0], str(engine), *rest])
    with pytest.raises(SystemExit) as raised:
        cli.run()
    assert raised.value.code == 3
    said = " ".join(capsys.readouterr().err.split())
    assert said == "error: this machine has no NVIDIA GPU that CUDA can use, and a TensorRT engine runs on nothing else"


# The runner, on stand-ins.


def image(seed=0):
    return np.random.default_rng(seed).random((1, 3, *SIZE), np.float32)


def test_the_stand_in_has_the_functions_of_the_real_thing():
    real = {name: list(inspect.signature(f).parameters) for name, f in vars(Cuda).items() if not name.startswith("_")}
    fake = {name: list(inspect.signature(f).parameters) for name, f in vars(FakeCuda).items() if name[0] != "_"}
    assert fake == real


def test_a_run_takes_the_profile_that_holds_the_image(engine, orin):
    module, cuda = orin
    runner = ppexport.open_artifact(engine)
    assert module.loaded == [PLAN]
    flat, noise = np.full((1, 3, *SIZE), 0.5, np.float32), image()
    for lr, capacity in ((flat, 128), (noise, 512), (flat, 128)):
        result = runner(lr)
        assert np.array_equal(result.sr, lr.repeat(2, axis=2).repeat(2, axis=3))
        assert (result.impure_tokens, result.capacity) == (5, capacity)
    runs = runner.engine.runs
    # Each profile once before it is recorded, then once for every image.
    assert runs == [(0, (1, 128))] * 2 + [(1, (1, 512))] * 2 + [(0, (1, 128))]
    assert len(cuda.graphs) == 2


def test_a_run_copies_in_and_out_once(engine, orin):
    _, cuda = orin
    runner = ppexport.open_artifact(engine)
    runner(image())
    cuda.done.clear()
    runner(image(1))
    assert cuda.done == ["upload", "upload", "run", "download", "download"]


def test_results_are_not_overwritten_by_the_next_run(engine, orin):
    runner = ppexport.open_artifact(engine)
    first = runner(image(1)).sr
    kept = first.copy()
    runner(image(2))
    assert np.array_equal(first, kept)


def test_an_engine_that_cannot_be_recorded_still_runs(engine, orin):
    _, cuda = orin
    with ppexport.open_artifact(engine) as runner:
        runner.engine.records = False
        for seed in range(2):
            lr = image(seed)
            assert np.array_equal(runner(lr).sr[0, :, ::2, ::2], lr[0])
    assert cuda.held == set(), "CUDA makes a graph of the copies before the run, too"


def runner_with(engine_folder, **changes):
    cuda = FakeCuda()
    return TensorRTRunner(read_artifact(engine_folder), loading(cuda, **changes), cuda)


def test_an_engine_without_the_unread_input_slots_runs(engine):
    assert runner_with(engine, names=["lr", "sr", "impure_tokens"])(image()).impure_tokens == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["lr", "out"]}, "has \\['lr', 'out'\\], but the manifest says"),
        ({"profiles": 1}, "1 profiles, but the manifest says 2 capacities"),
    ],
)
def test_an_engine_that_is_not_what_the_manifest_says(engine, changes, message):
    with pytest.raises(ArtifactError, match=message):
        runner_with(engine, **changes)


def test_an_engine_that_tensorrt_cannot_load(engine):
    with pytest.raises(ArtifactError, match="cannot load"):
        TensorRTRunner(read_artifact(engine), fake_module(None), FakeCuda())


def test_close_frees_everything_once(engine, orin):
    _, cuda = orin
    runner = ppexport.open_artifact(engine)
    runner(image())
    runner(np.full((1, 3, *SIZE), 0.5, np.float32))
    assert len(cuda.held) == 1 + 4 + 4 + 2, "a stream, host and device memory of every port, a graph for each profile"
    for _ in range(2):
        runner.close()
        assert cuda.held == set()


def test_the_gpu_runs_out_of_memory(engine):
    cuda = FakeCuda(room=3)
    with pytest.raises(CudaMemoryError, match=r"not enough free memory .* smaller --size"):
        TensorRTRunner(read_artifact(engine), loading(cuda), cuda)
    assert cuda.held == set()
    # TensorRT says it in its log alone.
    full = fake_module(None, said="[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)")
    with pytest.raises(CudaMemoryError, match="not enough free memory"):
        TensorRTRunner(read_artifact(engine), full, FakeCuda())


class Library:
    """libcudart with no memory left."""

    def cudaMalloc(self, *_):
        return 2

    def cudaStreamCreate(self, *_):
        return 700

    def cudaGetErrorString(self, code):
        return b"an illegal memory access"

    def cudaGetLastError(self):
        return 0


def test_cuda_tells_a_full_memory_from_other_errors():
    cuda = Cuda.__new__(Cuda)
    cuda._library = Library()
    with pytest.raises(CudaMemoryError, match=r"end other programs .* \(cudaMalloc: CUDA error 2, out of memory\)"):
        cuda.device_array(1 << 40)
    with pytest.raises(ArtifactError, match="an illegal memory access"):
        cuda.stream()


def test_an_engine_that_is_replaced_after_the_check_is_not_loaded(engine):
    artifact = read_artifact(engine)
    (engine / "model.engine").write_bytes(b"another")
    module = fake_module(None)
    with pytest.raises(ArtifactError, match="was changed"):
        TensorRTRunner(artifact, module, FakeCuda())
    assert module.loaded == []


def test_parity_compares_the_picture_of_an_engine(engine, orin, tmp_path):
    from ppexport.parity.run import run_parity

    network = shorten(random_network("pp_atd_light", 2), 1)
    report = run_parity(network, ppexport.open_artifact(engine), tmp_path / "run", lambda *_: None)
    # The stand-in enlarges to the nearest pixel, so the gate fails; what matters is that it is reached.
    twin, shipped = report.pairs
    assert twin.passed
    assert shipped.other == "tensorrt-fp32"
    assert not shipped.passed
    assert all(row.flips is None for row in shipped.rows)
    assert (tmp_path / "run" / "tensorrt-fp32.npz").is_file()


def test_of_an_fp16_engine_photographs_are_judged():
    from ppexport.parity.columns import Column, Sample
    from ppexport.parity.compare import compare_pictures
    from ppexport.parity.inputs import ParityInput

    lr, hr = image(), np.zeros((32, 64, 3), np.uint8)
    inputs = [ParityInput("photo", lr, hr), ParityInput("noise", lr, None), ParityInput("flat", lr, None)]
    picture = np.random.default_rng(3).random((1, 3, 32, 64), np.float32)
    categories = np.zeros((1, 9), np.uint8)
    reference = Column("twin", {item.name: Sample(picture, 9, categories, capacity=128) for item in inputs})
    # Far off: 40 dB. The count of impure tokens of the last is wrong.
    found = {item.name: Sample(picture + np.float32(0.01), 9 - (item.name == "flat")) for item in inputs}
    engine = Column("e", found)
    rows = {}
    for precision in ("fp32", "fp16"):
        pair = compare_pictures(reference, engine, inputs, BACKEND.precisions[precision])
        rows[precision] = [row.passed for row in pair.rows]
    assert rows == {"fp32": [False, False, False], "fp16": [False, True, False]}
    # Where nothing is routed no flip can excuse a picture.
    unrouted = {name: replace(sample, categories=None) for name, sample in reference.samples.items()}
    pair = compare_pictures(Column("twin", unrouted), engine, inputs, BACKEND.precisions["fp16"])
    assert not any(row.passed for row in pair.rows)
    # An input whose flips passed where they could be examined may be twice as far off as there, and no more.
    for precision, decibel, passes in (
        ("fp16", 45.9, True), ("fp16", 46.1, False), ("fp32", 45.9, True), ("fp32", 46.1, False),
    ):  # fmt: skip
        gate, flipped = BACKEND.precisions[precision], {"photo": decibel, "noise": 90.0}
        pair = compare_pictures(reference, engine, inputs[:1], gate, flipped)
        assert pair.rows[0].passed == passes
        assert pair.rows[0].reason.startswith("40.0 dB")


def test_cuda_without_a_gpu_is_unavailable():
    if os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvhost-gpu"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnavailableError, match="no NVIDIA GPU"):
        Cuda()


def test_a_network_without_slots_has_the_one_profile_of_every_engine(
    build, tmp_path_factory, tmp_path, orin, monkeypatch
):
    network = random_small_network("swinir_light", 2)
    source = Path(
        shutil.copytree(exported_once(tmp_path_factory, network, backend="tensorrt", size=SIZE), tmp_path / "d")
    )
    folder = build(source=source)
    assert read_artifact(folder).manifest.capacities == []
    _, cuda = orin
    module = loading(cuda, names=["lr", "sr", "impure_tokens"], profiles=1)
    monkeypatch.setattr(sessions, "import_tensorrt", lambda name: module)
    lr = np.random.default_rng(0).random((1, 3, *SIZE), np.float32)
    with ppexport.open_artifact(folder) as run:
        assert np.array_equal(run(lr).sr, lr.repeat(2, axis=2).repeat(2, axis=3))
