"""`ppexport profile` from end to end, on this machine, with short plans."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import photo
from PIL import Image
from sshd_profiles import write_enlarger
from typer.testing import CliRunner

from ppexport.backends.coreml import run_mac as mac
from ppexport.cli import app
from ppexport.device import launch
from ppexport.device.artifact import Artifact, Manifest, read_artifact, write_manifest
from ppexport.device.job import JOURNAL, Job
from ppexport.device.measure import PLANS, Plan
from ppexport.device.neighbours import Neighbours
from ppexport.device.runner import Result, Runner
from ppexport.device.target import Target, choose, open_target
from ppexport.errors import InputError, UnavailableError
from ppexport.profile import content
from ppexport.profile.latency_run import crops_of, measure, plan_of, prepare
from ppexport.profile.result import Profile
from ppexport.report.material import gather
from ppexport.report.page import write_page

invoke = CliRunner().invoke
TINY = Plan("quick", 10, 0.0, warm_windows=2)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(PLANS, "quick", TINY)


@pytest.fixture
def small(calibrated):
    """An artifact of two layers."""
    return calibrated.artifact.path


def quiet(*_):
    return None


def test_a_run_is_measured_once_and_only_its_own_folder_is_used(small, tmp_path, tiny):
    out = tmp_path / "run"
    arguments = ["profile", str(small), "-o", str(out), "--quick", "--threads", "1"]
    done = invoke(app, [*arguments, "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    p = Profile(out / "profile.json")
    (subject,) = p.subjects
    assert subject["summary"]["count"] == 10
    assert subject["runtime_versions"]["onnxruntime"]
    assert subject["files"] == read_artifact(small).manifest.files
    assert subject["memory"]["peak"] > subject["memory"]["before"] > 0
    assert p.images >= 8
    assert len({image["pure_share"] for image in p.data["images"]}) > 3
    assert set(p.samples[0]["capacity"].tolist()) == {subject["capacities"][-1]}
    assert (p.samples[0]["host_ns"] < p.samples[0]["ns"]).all()
    assert json.loads((tmp_path / "out.json").read_text())["subjects"][0]["summary"] == subject["summary"]
    before = (out / "latency.jsonl").read_bytes()
    again = invoke(app, arguments)
    assert "nothing was measured again" in again.output
    assert (out / "latency.jsonl").read_bytes() == before
    other = invoke(app, [*arguments[:-1], "2"])
    assert isinstance(other.exception, InputError)
    assert "another measurement" in str(other.exception)


def test_neighbours_keep_cores_busy_and_end_with_the_measurement(small, tmp_path, tiny):
    out = tmp_path / "run"
    done = invoke(app, ["profile", str(small), "-o", str(out), "--quick", "--threads", "1", "--load", "2"])
    assert done.exit_code == 0, done.output
    assert "beside 2 busy neighbours" in done.output
    p = Profile(out / "profile.json")
    assert p.data["protocol"]["plan"]["load"] == 2
    other = invoke(app, ["profile", str(small), "-o", str(out), "--quick", "--threads", "1"])
    assert "another measurement" in str(other.exception)
    for wrong in (["--load", "-1"], ["--load", "65"], ["--load", "1", "--layers"], ["--load", "1", "--on", "browser"]):
        refused = invoke(app, ["profile", str(small), "-o", str(tmp_path / "x"), "--quick", *wrong])
        assert isinstance(refused.exception, InputError), wrong


def _ended(process: int) -> bool:
    """Whether *process* is gone, or waits for nothing but that its parent takes notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_neighbours_compute_and_end_with_their_program():
    with Neighbours(2) as neighbours:
        end = time.monotonic() + 60
        while neighbours.cpu() < 200_000_000:
            assert time.monotonic() < end
            time.sleep(0.02)
        running = [process.pid for process in neighbours._running]
    assert all(_ended(process) for process in running)
    # Also where the program is killed.
    code = "import time; from ppexport.device.neighbours import Neighbours\n"
    code += "with Neighbours(1) as n: print(n._running[0].pid, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        neighbour = int(program.stdout.readline())
        program.kill()
    end = time.monotonic() + 60
    while not _ended(neighbour):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_run_goes_on_with_the_same_command(small, tmp_path):
    targets = choose(small, None, 1, False)
    plan = Plan("quick", 30, 2.0, warm_windows=2)
    job = prepare(targets, plan, tmp_path / "run", None)
    end = time.monotonic() + 120
    killed = pytest.raises(UnavailableError, match="ended by signal 9: what it measured is kept")
    with killed, launch._measuring("measure", job, subprocess.DEVNULL) as child:
        while not job.journal.exists() or job.journal.read_bytes().count(b'["q"') < 3:
            assert time.monotonic() < end
            time.sleep(0.05)
        child.kill()
    kept = [line for line in job.journal.read_bytes().splitlines() if line.startswith(b'["q"')]
    p = measure(prepare(targets, plan, tmp_path / "run", None), quiet, quiet)
    assert p.subjects[0]["summary"]["count"] >= 30
    assert p.subjects[0]["summary"]["seconds"] >= 2
    assert "resumed" in {mark["kind"] for mark in p.data["marks"]}
    lines = job.journal.read_bytes().splitlines()
    assert [line for line in lines if line.startswith(b'["q"')][: len(kept)] == kept


def test_runtimes_take_turns_and_are_compared(small, tmp_path, tiny):
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    out = tmp_path / "run"
    done = invoke(
        app,
        ["profile", str(small), "-o", str(out), "--quick", "--runtime", "onnxruntime,openvino", "--threads", "1"],
    )
    assert done.exit_code == 0, done.output
    p = Profile(out / "profile.json")
    assert [s["runtime"] for s in p.subjects] == ["onnxruntime", "openvino"]
    assert p.data["protocol"]["order"] == "A B B A"
    # Both saw the same images, and the same routing.
    assert p.samples[0]["image"].tolist() == p.samples[1]["image"].tolist()
    assert p.samples[0]["impure"].tolist() == p.samples[1]["impure"].tolist()
    assert invoke(app, ["compare", str(out / "profile.json"), "--limit", "1000"]).exit_code == 0


def test_openvino_computes_the_same_picture(artifact):
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    lr = (photo(37, 53).astype(np.float32) / 255).transpose(2, 0, 1)[None].copy()
    first, second = (open_target(choose(artifact, name, 1, False)[0])(lr) for name in ("onnxruntime", "openvino"))
    assert np.abs(first.sr - second.sr).max() < 1e-3
    assert first.impure_tokens == second.impure_tokens
    with pytest.raises(UnavailableError, match="not NPU"):
        open_target(choose(artifact, "openvino:NPU", None, False)[0])


def test_what_cannot_be_measured_is_refused_before_anything_is(artifact, tmp_path):
    def error(*arguments):
        return invoke(app, ["profile", str(artifact), "-o", str(tmp_path / "x"), *map(str, arguments)]).exception

    assert isinstance(error("--on", "ssh://board.invalid"), UnavailableError)
    assert isinstance(error("--on", "-oProxyCommand=x"), InputError)
    assert isinstance(error("--runtime", "tensorrt"), InputError)
    assert isinstance(error("--runtime", "onnxruntime,onnxruntime"), InputError)
    assert isinstance(error("--runtime", "x;y"), InputError)
    assert isinstance(error("--quick", "--sustained"), InputError)
    assert isinstance(error("--frames", tmp_path / "none"), InputError)
    assert isinstance(error("--layer-times", tmp_path / "none"), InputError)
    assert isinstance(error("--images", tmp_path), InputError)
    assert not (tmp_path / "x").exists()
    missing = error("--runtime", "onnxruntime:CUDA", "--quick")
    assert isinstance(missing, UnavailableError)
    assert "no provider CUDA" in str(missing)
    # What was measured of it is nothing, so the folder is free for another runtime.
    assert not (tmp_path / "x" / JOURNAL).exists()
    with pytest.raises(InputError, match="one runtime"):
        plan_of(False, True, 0, choose(artifact, "onnxruntime,openvino", None, False))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_a_report_of_a_folder_whose_name_is_no_text(tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    for name in (b"in\xff.png", b"in\xfe.png"):
        Image.fromarray(photo(64, 96)).save(odd / os.fsdecode(name))
    targets = choose(write_enlarger(odd / os.fsdecode(b"x\xe9")), None, 1, False)
    measure(prepare(targets, TINY, odd / "run", odd), lambda done, wanted: None, pytest.fail)
    assert Profile(odd / "run" / "profile.json").subjects[0]["artifact"] == "x\\xe9"
    write_page(gather([odd / "run"]), odd / "report.html")
    assert "x\\xe9 in onnxruntime" in (odd / "report.html").read_text()


MISSING = {"CUDA": "CUDA", "NNAPI": "Nnapi", "QNN": "QNN", "Cuda": "CUDA"}
"""Providers that no package for CPUs has: as a user spells them, and as ONNX Runtime does."""


@pytest.mark.parametrize("spelt", MISSING)
def test_a_provider_that_is_missing_is_not_replaced(artifact, tmp_path, spelt):
    done = invoke(app, ["profile", str(artifact), "--quick", "--runtime", f"onnxruntime:{spelt}", "-o", str(tmp_path)])
    assert isinstance(done.exception, UnavailableError), done.output
    assert f"has no provider {MISSING[spelt]}" in str(done.exception)
    assert not (tmp_path / JOURNAL).exists()
    assert not (tmp_path / "profile.json").exists()


@pytest.mark.parametrize(
    ("runtime", "sentence"),
    [
        ("onnxruntime:CUDDA", "no provider called 'CUDDA': did you mean onnxruntime:CUDA?"),
        ("onnxruntime:xnpack", "did you mean onnxruntime:Xnnpack?"),
        ("onnxruntime:nonsense", "no provider called 'nonsense': it has CPU, CUDA, Tensorrt, "),
    ],
)
def test_a_provider_that_is_misspelt(artifact, runtime, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        choose(artifact, runtime, None, False)


def test_every_provider_of_this_onnx_runtime_is_known(artifact):
    import onnxruntime

    for name in onnxruntime.get_all_providers():
        known = name.replace("ExecutionProvider", "")
        assert choose(artifact, f"onnxruntime:{known.upper()}", None, False)[0].device == known


def test_a_provider_that_fails_in_a_run_is_not_replaced(artifact, monkeypatch):
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

    made = []

    class Recorded(onnxruntime.InferenceSession):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    class Failing:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def run(self, *arguments):
            raise EPFail("the device is gone")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    runner = open_target(choose(artifact, None, 1, False)[0])
    assert runner.artifact.path == artifact
    (session,) = made
    session._sess = Failing(session._sess)
    with pytest.raises(EPFail, match="the device is gone"):
        session.run(None, {"lr": np.zeros((1, 3, 37, 53), np.float32)})


def test_an_engine_has_no_other_device(tmp_path, artifact, monkeypatch):
    whole = read_artifact(artifact)
    engine = Artifact(artifact, replace(whole.manifest, backend="tensorrt", flavour="tensorrt"))
    monkeypatch.setattr("ppexport.device.target.read_artifact", lambda path: engine)
    assert choose(artifact, "tensorrt:GPU", None, False)[0].name == "tensorrt"
    with pytest.raises(InputError, match="tensorrt:DLA cannot be chosen"):
        choose(artifact, "tensorrt:DLA", None, False)


@pytest.mark.parametrize(("name", "own"), [("executorch", "CPU"), ("qnn", "NPU")])
def test_a_runtime_of_one_device_is_recorded_with_no_other(name, own, artifact, monkeypatch):
    whole = read_artifact(artifact)
    other = Artifact(artifact, replace(whole.manifest, backend=name))
    monkeypatch.setattr("ppexport.device.target.read_artifact", lambda path: other)
    assert choose(artifact, f"{name}:{own.lower()}", None, False)[0].name == name
    with pytest.raises(InputError, match=f"{name} computes on {own} alone: {name}:GPU cannot be chosen"):
        choose(artifact, f"{name}:GPU", None, False)


def test_a_flavour_is_for_its_runtime(tmp_path):
    out = write_enlarger(tmp_path / "ort")
    write_manifest(out, replace(read_artifact(out).manifest, flavour="ort"))
    assert {target.runtime for target in choose(out, "all", None, False)} == {"onnxruntime"}
    with pytest.raises(InputError, match="flavour ort, which openvino does not run: export it with --flavour portable"):
        choose(out, "openvino", None, False)


def test_pictures_come_from_a_folder_too(artifact, tmp_path):
    manifest = read_artifact(artifact).manifest
    for i in range(3):
        Image.fromarray(photo(50, 70, top=20 * i)).save(tmp_path / f"{i}.png")
    made = crops_of(manifest, tmp_path)
    assert len(made) >= 8
    assert {p.rgb.shape for p in made} == {(37, 53, 3)}
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    with pytest.raises(InputError, match="at least 8"):
        crops_of(manifest, tmp_path)


class Pretend(Runner):
    """A capacity set that takes a time of its own for every slot."""

    def __init__(self, artifact, clock, capacities=(256, 512, 1024)):
        manifest = replace(read_artifact(artifact).manifest, size=[32, 32], tokens=1024, capacities=list(capacities))
        super().__init__(Artifact(artifact, manifest))
        self.clock = clock

    def _run(self, prepared):
        self.clock.time += 10_000_000 + 10_000 * prepared.capacity
        impure = 0 if prepared.pure is None else int((~prepared.pure).sum())
        return Result(np.zeros((1, 3, 64, 64), np.float32), impure, prepared.capacity)


class Hands:
    """A clock that runs move."""

    time = 0

    def now(self):
        return self.time


@pytest.fixture
def pretend(artifact, monkeypatch):
    hands = Hands()
    monkeypatch.setattr(content, "Clock", lambda: hands)
    monkeypatch.setattr(content, "open_target", lambda target: Pretend(artifact, hands))
    return Target(str(artifact), "onnxruntime", "CPU")


def test_routing_finds_what_pure_pixels_save(pretend, tmp_path):
    flat, busy = np.full((32, 32, 3), (40, 90, 200), np.uint8), photo(32, 32, "hubble_deep_field.jpg")
    images = np.stack([flat, np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8), busy] * 2)
    images[5, :16] = flat[:16]
    np.save(tmp_path / "images.npy", images)
    found = content.measure_routing(Job((pretend,), tmp_path / "images.npy", TINY, tmp_path / JOURNAL, {}))
    assert [entry["capacity"] for entry in found["capacities"]] == [256, 512, 1024]
    assert [set(entry["ms"]) for entry in found["capacities"]] == [{12.56}, {15.12}, {20.24}]
    assert found["images"][0]["impure"] == 0
    assert found["images"][0]["ms"] == [12.56] * 8
    assert found["images"][1]["ms"] == [20.24] * 8
    # Numbers of which the line is known.
    images = [{"pure_share": s, "ms": [100 - 20 * s] * 3} for s in np.linspace(0, 1, 12)]
    line = content.line(images)
    assert line["at_zero_ms"]["middle"] == pytest.approx(100)
    assert line["saving"]["low"] == pytest.approx(0.2) == line["saving"]["high"]
    assert content.line([{"pure_share": 0.5, "ms": [1.0]}] * 9) is None
    assert content.spread(list(range(1, 33)), 8)[-1] == 32


def test_frames_answer_what_real_time_is(artifact, pretend, tmp_path):
    for i in range(4):
        Image.new("RGB", (48, 32), (40, 90, 200) if i else (41, 90, 200)).save(tmp_path / f"{i:03}.png")
    job = Job((pretend,), tmp_path, TINY, tmp_path / JOURNAL, {})
    found = content.answers(content.measure_frames(job))
    assert len(found["ns"]) == 64
    assert (found["tiles"], found["lr_size"], found["sr_size"]) == (2, [32, 48], [64, 96])
    # Two tiles of 256 slots a frame: 25.12 ms.
    assert found["fps"] == pytest.approx(1000 / 25.12)
    assert found["deadlines"]["24"] == {"hit_rate": 1.0, "p90_holds": True}
    assert found["deadlines"]["60"] == {"hit_rate": 0.0, "p90_holds": False}
    assert "48x32 -> 96x64 at x2" in found["sentence"]
    assert "real time at 30 fps" in found["sentence"]
    Image.new("RGB", (40, 32)).save(tmp_path / "009.png")
    with pytest.raises(InputError, match="another size"):
        content.measure_frames(job)


def core_ml_artifact(tmp_path, capacities):
    manifest = Manifest(
        backend="coreml", name="x", arch="pp_atd_light", scale=2, size=[16, 16], precision="fp16", flavour="portable",
        options={"colors": 8, "window": 8, "csmf": True, "compensation": "value"}, capacities=capacities, mask="graph",
        tokens=256, files={"model.mlpackage": "0" * 64}, weights={"file": "w", "sha256": "0"}, card_sha256="0",
        licence="x", created="now", engine={"interface": "tensor"},
    )  # fmt: skip
    return Artifact(Path(tmp_path), manifest)


def test_core_ml_runs_on_a_mac_only(tmp_path):
    with pytest.raises(UnavailableError, match="on a Mac only"):
        mac.CoreMLMacRunner(core_ml_artifact(tmp_path, [256]))
    with pytest.raises(InputError, match="compute units are CPU_ONLY, .*, not GPU"):
        mac.CoreMLMacRunner(core_ml_artifact(tmp_path, [256]), "GPU")
