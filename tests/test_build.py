"""`ppexport build` on a device: a real sshd on the loopback address, where a stand-in plays trtexec."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from shared import ODD
from sshd import Device, alive, wait_until
from sshd_builds import MODEL_BYTES, Told, build, command, error_of, in_background, write_source

from ppexport.backends.tensorrt.build_engine import BuildFailed
from ppexport.device.artifact import read_artifact
from ppexport.remote.address import ConnectionLost, TransferError

pytest_plugins = ["sshd_fixtures"]


def test_a_build_by_trtexec(device, source, tmp_path):
    device.install_trtexec()
    out = tmp_path / "engine"
    done = build(source, *device.arguments, "-o", out, "--workspace", 512, "--json", "-")
    report = json.loads(done.stdout)
    assert report["engine_bytes"] == (out / "model.engine").stat().st_size
    assert (out / "model.engine").read_text() == f"engine of {MODEL_BYTES} bytes\n"
    artifact = read_artifact(out)
    engine = artifact.manifest.engine
    assert artifact.manifest.backend == "tensorrt"
    assert (engine["tensorrt"], engine["gpu"], engine["compute_capability"]) == ("10.3.0", "Orin", "8.7")
    assert (engine["workspace_mb"], engine["seconds"], engine["attention_fused"]) == (512, 12.5, True)
    assert "PASSED" in (out / "build.log").read_text()
    assert (out / "timing.cache").read_text() == "cache\n"
    assert json.loads((out / "device.json").read_text())["machine"] == os.uname().machine
    assert device.lines("arguments")[:3] == [
        "--onnx=model.onnx", "--saveEngine=model.engine", "--timingCacheFile=timing.cache",
    ]  # fmt: skip
    assert "--memPoolSize=workspace:512" in device.lines("arguments")
    assert device.lines("arguments")[-4:] == [
        "--profile=1", "--minShapes=slots:1x4096", "--optShapes=slots:1x4096", "--maxShapes=slots:1x4096",
    ]  # fmt: skip
    assert device.jobs() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config", "device", "engine", "x2_64"]


def test_the_connection_breaks_in_the_middle(device, source, tmp_path):
    device.install_trtexec()
    device.steer("hold")
    thread, result = in_background(lambda: Told(device, source).run(tmp_path / "engine"))
    wait_until(lambda: device.lines("runs"))
    first = device.connections()
    assert device.cut() == 1
    wait_until(lambda: device.connections() and device.connections() != first)
    device.steer("hold", False)
    thread.join(60)
    assert read_artifact(tmp_path / "engine").manifest.backend == "tensorrt", result
    assert device.lines("runs") == ["run"]
    assert device.jobs() == []


@pytest.mark.slow
def test_the_device_is_away_for_a_while(device, source, tmp_path):
    device.install_trtexec()
    device.steer("hold")
    told = Told(device, source, reconnect=(0.05,) * 200)
    thread, result = in_background(lambda: told.run(tmp_path / "engine"))
    wait_until(lambda: device.lines("runs"))
    device.go_away()
    wait_until(lambda: any("trying again" in line for line in told.lines))
    device.steer("hold", False)
    device.start()
    thread.join(60)
    assert read_artifact(tmp_path / "engine").manifest.backend == "tensorrt", result
    assert device.lines("runs") == ["run"]


@pytest.mark.slow
def test_the_device_does_not_come_back_in_time(device, source, tmp_path):
    device.install_trtexec()
    device.steer("hold")
    thread, result = in_background(lambda: Told(device, source).run(tmp_path / "engine"))
    wait_until(lambda: device.lines("runs"))
    device.go_away()
    thread.join(60)
    assert isinstance(result[0], ConnectionLost)
    assert "run the same command again" in str(result[0])
    assert not (tmp_path / "engine").exists()
    device.steer("hold", False)
    device.start()
    # The build ends while nobody looks; the same command collects it.
    build(source, *device.arguments, "-o", tmp_path / "engine")
    assert device.lines("runs") == ["run"]


def test_ctrl_c_leaves_the_build_running(device, source, tmp_path):
    device.install_trtexec()
    device.steer("hold")
    arguments = command(source, *device.arguments, "-o", tmp_path / "engine")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: device.lines("runs"))
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "the build continues on ssh://" in messages
    assert "Traceback" not in messages
    assert len(device.jobs()) == 1
    done = build(source, *device.arguments, "-o", tmp_path / "engine", "--timeout", 1, code=3)
    assert "goes on after 1 s" in error_of(done)
    device.steer("hold", False)
    done = build(source, *device.arguments, "-o", tmp_path / "engine")
    assert device.lines("runs") == ["run"]
    assert device.jobs() == []


def test_two_commands_that_follow_one_build(device, source, tmp_path):
    device.install_trtexec()
    device.steer("hold")
    told = Told(device, source), Told(device, source)
    first, made = in_background(lambda: told[0].run(tmp_path / "engine0"))
    wait_until(lambda: device.lines("runs"))
    second, late = in_background(lambda: told[1].run(tmp_path / "engine1"))
    wait_until(lambda: any("waiting for it" in line for line in told[1].lines))
    device.steer("hold", False)
    for thread in (first, second):
        thread.join(60)
    assert device.lines("runs") == ["run"]
    ends = [*made, *late]
    assert any(isinstance(end, Path) for end in ends), ends
    # The one that comes too late is told so, or both collected before either removed the build.
    for end in ends:
        assert isinstance(end, Path) or "the same command starts it anew" in str(end) or "missing" in str(end), ends


@pytest.mark.slow
def test_clean_stops_and_removes(device, source, tmp_path):
    device.install_trtexec()
    device.steer("hold")
    build(source, *device.arguments, "-o", tmp_path / "engine", "--timeout", 1, code=3)
    pid = int((device.jobs()[0] / "pid").read_text())
    (device.home / ".cache/ppexport/build-of-another").mkdir()
    out = build(source, *device.arguments, "--clean").stdout
    assert re.search(r"stopped build-\w+-\w+\nremoved build-", out)
    assert [job.name for job in device.jobs()] == ["build-of-another"]
    wait_until(lambda: not alive(pid))
    assert "no build" in build(source, *device.arguments, "--clean").stdout


def test_a_failed_build_shows_its_log_and_starts_again(device, source, tmp_path):
    device.install_trtexec()
    device.steer("fail")
    out = tmp_path / "engine"
    done = build(source, *device.arguments, "-o", out, code=1)
    assert "built no engine: Error[4]: no kernel for MatMul" in error_of(done)
    assert "Selected Device: Orin" in done.stderr
    log = tmp_path / "engine-build.log"
    assert "no kernel for MatMul" in log.read_text()
    assert "\x1b" not in log.read_text()
    assert str(log) in done.stderr
    assert not out.exists()
    device.steer("fail", False)
    done = build(source, *device.arguments, "-o", out)
    assert "the last build on ssh://" in done.stderr
    assert "no kernel for MatMul" in done.stderr
    assert len(device.lines("runs")) == 2


@pytest.mark.slow
def test_a_log_that_does_not_say_passed_is_a_failure(device, source, tmp_path):
    device.install_trtexec()
    device.steer("quiet")
    done = build(source, *device.arguments, "-o", tmp_path / "engine", code=1)
    assert "its log does not say so" in error_of(done)


@pytest.mark.slow
def test_an_empty_engine_is_a_failure_and_the_same_command_builds_anew(device, source, tmp_path):
    device.install_trtexec()
    device.steer("empty")
    out = tmp_path / "engine"
    done = build(source, *device.arguments, "-o", out, code=1)
    assert "its engine is an empty file" in error_of(done)
    assert "&&&& PASSED" in (tmp_path / "engine-build.log").read_text()
    assert (out.exists(), device.jobs()) == (False, [])
    device.steer("empty", False)
    build(source, *device.arguments, "-o", out)
    assert read_artifact(out).model_file.stat().st_size > 0
    assert len(device.lines("runs")) == 2


@pytest.mark.slow
def test_a_build_without_memory_names_the_reason_and_starts_again(device, source, tmp_path):
    device.install_trtexec()
    device.steer("kill")
    out = tmp_path / "engine"
    done = build(source, *device.arguments, "-o", out, code=1)
    assert re.search(r"was killed \(exit code 137\), most likely because the memory ran out: .*--work", error_of(done))
    assert not out.exists()
    device.steer("kill", False)
    build(source, *device.arguments, "-o", out)
    assert "of 200000 bytes" in read_artifact(out).model_file.read_text()
    assert len(device.lines("runs")) == 2


@pytest.mark.slow
def test_a_killed_build(device, source, tmp_path):
    device.install_trtexec()
    device.steer("hold")
    told = Told(device, source)
    with pytest.raises(ConnectionLost):
        told.run(tmp_path / "engine", timeout=0.1)
    os.killpg(int((device.jobs()[0] / "pid").read_text()), signal.SIGKILL)
    device.steer("hold", False)
    told.run(tmp_path / "engine")
    assert any("failed" in line for line in told.lines)
    assert device.lines("runs") == ["run", "run"]


@pytest.fixture
def short_odd_folder():
    """A folder of an odd name whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix=f"{ODD} ") as folder:
        yield Path(folder)


def test_names_with_spaces_tabs_and_letters_of_any_language(tmp_path, monkeypatch, short_odd_folder):
    odd = tmp_path / ODD
    (tmp_path / "device").mkdir()
    device = Device(tmp_path / "device", home=ODD)
    device.install_trtexec()
    for name in ("", "home", "keys"):
        (odd / name).mkdir()
    device.identity = device.identity.rename(odd / "keys" / "key of 100 %d")
    device.identity.with_name("key of 100 %d.pub").write_text((device.folder / "user_key.pub").read_text())
    monkeypatch.setenv("TMPDIR", str(short_odd_folder))
    monkeypatch.setenv("HOME", str(odd / "home"))
    monkeypatch.chdir(odd)
    source = write_source(odd / ODD)
    device.start()
    try:
        build(source.name, *device.arguments, "-o", "engine of ü")
        build(source.name, *device.arguments, "--clean")
    finally:
        device.go_away()
    assert read_artifact(odd / "engine of ü").manifest.engine["gpu"] == "Orin"
    assert list(short_odd_folder.iterdir()) == []
    assert len(device.lines("runs")) == 1


def finished(device, source, out):
    """Leave a finished build on the device, not collected."""
    device.install_trtexec()
    device.steer("hold")
    with pytest.raises(ConnectionLost):
        Told(device, source).run(out, timeout=0.1)
    device.steer("hold", False)
    wait_until(lambda: list(device.jobs()[0].glob("exit.0")))
    return device.jobs()[0]


def test_what_comes_back_is_not_trusted(device, source, tmp_path):
    out = tmp_path / "engine"
    job = finished(device, source, out)
    log = (job / "output").read_text()
    (job / "model.engine").rename(job / "kept")
    (job / "model.engine").symlink_to("/etc/passwd")
    with pytest.raises(TransferError, match="missing"):
        Told(device, source).run(out)
    (job / "model.engine").unlink()
    (job / "kept").rename(job / "model.engine")
    (job / "layers.json").write_text("[" * 100_000)
    with pytest.raises(TransferError, match="not a JSON object"):
        Told(device, source).run(out)
    (job / "layers.json").write_text("{}")
    assert not out.exists()
    (job / "output").write_text(log.replace("Orin", "\x1b]0;owned\x07Orin\x1b[31m"))
    Told(device, source).run(out)
    assert read_artifact(out).manifest.engine["gpu"] == "Orin"
    assert device.lines("runs") == ["run"]


def test_a_log_that_was_changed_is_a_failure_and_the_same_call_builds_anew(device, source, tmp_path):
    out = tmp_path / "engine"
    (finished(device, source, out) / "output").write_text("nothing")
    with pytest.raises(BuildFailed, match="does not say so"):
        Told(device, source).run(out)
    assert (out.exists(), device.jobs()) == (False, [])
    Told(device, source).run(out)
    assert device.lines("runs") == ["run", "run"]


def test_the_same_command_builds_here(source, tmp_path, monkeypatch):
    folder = tmp_path / "device"
    folder.mkdir()
    here = Device(folder)
    here.install_trtexec()
    monkeypatch.setenv("HOME", str(here.home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", f"{here.bin}:{os.environ['PATH']}")
    # No module of that name can be imported, whatever is installed.
    for module in ("tensorrt", "tensorrt_rtx"):
        (here.modules / f"{module}.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(here.modules))
    done = build(source)
    assert "built in 12.5 s" in done.stdout
    assert read_artifact(tmp_path / "x2_64-engine").manifest.engine["gpu"] == "Orin"
    assert here.jobs() == []
    shutil.rmtree(here.bin)
    assert "this machine has no TensorRT" in error_of(build(source, "-o", tmp_path / "again", code=3))
