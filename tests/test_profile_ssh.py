"""`ppexport profile --on ssh://` against a real sshd on the loopback address, in ONNX Runtime."""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from shared import ODD
from sshd import Device, alive, children, kill, make_key, wait_until
from sshd_profiles import BRIEF, LONG, Profiled, profile, refused, said, site_packages, write_enlarger
from test_layering import imported

from ppexport.device.target import runtimes
from ppexport.errors import InputError, UnavailableError
from ppexport.profile.remote import Settings, problem_of
from ppexport.profile.result import Profile
from ppexport.remote import archive
from ppexport.remote.address import ConnectionLost, DeviceError, DiskFullError
from ppexport.remote.detached import StillRunning

pytest_plugins = ["sshd_fixtures", "profile_fixtures"]


def test_a_whole_run(board, enlarger, tmp_path):
    out, told = tmp_path / "run", tmp_path / "told.json"
    done = profile(enlarger, *board.arguments, "--quick", "--threads", 1, "-o", out, "--json", told)
    assert "p90" in done.stdout
    found = Profile(out / "profile.json")
    (subject,) = found.subjects
    assert subject["summary"]["count"] >= 64
    assert subject["summary"]["seconds"] >= 1
    assert found.data["protocol"]["plan"]["queries"] == 64
    assert subject["memory"]["peak"] > subject["memory"]["before"] > 0
    assert subject["runtime_versions"]["onnxruntime"]
    assert found.data["machine"]["address"] == board.address
    assert found.data["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found.data["sensors"]["busy"]
    assert json.loads(told.read_text())["subjects"] == found.data["subjects"]
    assert board.jobs() == []
    before = (out / "profile.json").read_bytes()
    profile(enlarger, *board.arguments, "--quick", "--threads", 1, "-o", out)
    assert (out / "profile.json").read_bytes() == before


@pytest.mark.slow
def test_names_with_spaces_tabs_and_letters_of_any_language(device_python, tmp_path, monkeypatch):
    (tmp_path / "device").mkdir()
    board = Device(tmp_path / "device", home=ODD)
    board.program("python3", f'#!/bin/sh\nexec "{device_python}" "$@"\n')
    odd = tmp_path / ODD
    odd.mkdir()
    monkeypatch.setenv("TMPDIR", str(odd))
    monkeypatch.setattr("tempfile.tempdir", None)
    board.start()
    try:
        found = Profiled(board, write_enlarger(odd / "enlarger ü"), odd / "run 日").run()
    finally:
        board.go_away()
    assert found.subjects[0]["summary"]["count"] >= 16
    assert board.jobs() == []


def test_a_line_that_breaks_and_a_run_that_is_collected_later(board, enlarger, tmp_path):
    run = Profiled(board, enlarger, tmp_path / "run", LONG)
    thread, result = run.start()
    wait_until(lambda: len(run.queries()) > 10)
    seen = run.queries()
    board.go_away()
    thread.join(60)
    (error,) = result
    assert isinstance(error, ConnectionLost)
    assert "the measurement continues on the device: run the same command again to collect it" in str(error)
    wait_until(lambda: len(run.queries()) > len(seen))
    board.start()
    found = run.run()
    assert found.subjects[0]["summary"]["count"] >= len(seen)
    assert "resumed" not in {mark["kind"] for mark in found.data["marks"]}
    kept = [line for line in (run.folder / "latency.jsonl").read_bytes().splitlines() if line.startswith(b'["q"')]
    assert kept[: len(seen)] == seen
    assert board.jobs() == []


@pytest.mark.slow
def test_a_line_that_breaks_for_a_moment(board, enlarger, tmp_path):
    run = Profiled(board, enlarger, tmp_path / "run", LONG)
    thread, result = run.start()
    wait_until(lambda: len(run.queries()) > 10)
    assert board.cut()
    thread.join(120)
    assert isinstance(result[0], Profile), result


def agent_of(run) -> int:
    """The process that leads the job."""
    return int((run.journal().parent / "pid").read_text())


def descendants(pid) -> list[int]:
    return [pid, *(p for child in children(pid) for p in descendants(child))]


@pytest.mark.parametrize("victim", [pytest.param("measuring", marks=pytest.mark.slow), "all"])
def test_a_killed_agent_keeps_what_it_measured(board, enlarger, tmp_path, victim):
    run = Profiled(board, enlarger, tmp_path / "run", LONG)
    thread, result = run.start()
    wait_until(lambda: len(run.queries()) > 20)
    leader = agent_of(run)
    family = descendants(leader)
    kill(*(family if victim == "all" else family[-1:]))
    thread.join(60)
    (error,) = result
    assert isinstance(error, DeviceError if victim == "all" else UnavailableError), result
    kept = [line for line in (run.folder / "latency.jsonl").read_bytes().splitlines() if line.startswith(b'["q"')]
    assert f"the {len(kept)} queries that were measured are kept" in str(error)
    assert len(kept) > 20
    if victim == "all":
        # The board was cleared meanwhile: what is here goes back.
        subprocess.run(["rm", "-rf", str(run.journal().parent)], check=True)
    else:
        # A power cut took what the board had not put on its disk: so too.
        lines = run.journal().read_bytes().splitlines(keepends=True)
        run.journal().write_bytes(b"".join(lines[:12]))
    found = run.run()
    assert "resumed" in {mark["kind"] for mark in found.data["marks"]}
    lines = [line for line in (run.folder / "latency.jsonl").read_bytes().splitlines() if line.startswith(b'["q"')]
    assert lines[: len(kept)] == kept
    assert found.subjects[0]["summary"]["count"] == len(lines)


def test_an_orphaned_measurement_ends(board, enlarger, tmp_path):
    run = Profiled(board, enlarger, tmp_path / "run", LONG)
    thread, result = run.start()
    wait_until(lambda: len(run.queries()) > 5)
    leader, *_, measuring = descendants(agent_of(run))
    main = children(leader)[0]
    kill(main, leader)
    wait_until(lambda: not alive(measuring))
    thread.join(60)
    assert isinstance(result[0], DeviceError)


@pytest.mark.slow
def test_a_run_that_takes_longer_than_one_waits(board, enlarger, tmp_path):
    run = Profiled(board, enlarger, tmp_path / "run", LONG)
    with pytest.raises(StillRunning, match="the measurement continues on the device"):
        run.run(timeout=0.2)
    assert len(board.jobs()) == 1
    assert run.run().subjects[0]["summary"]["seconds"] >= LONG.seconds
    assert any("runs on" in line for line in run.lines)


def test_clean_ends_and_removes(board, enlarger, tmp_path):
    run = Profiled(board, enlarger, tmp_path / "run", LONG)
    with pytest.raises(StillRunning):
        run.run(timeout=0.2)
    leader = agent_of(run)
    done = said(enlarger, *board.arguments, "--clean")
    assert "stopped profile-" in done
    assert "removed profile-" in done
    assert board.jobs() == []
    assert not alive(leader)
    assert "no measurement" in said(enlarger, *board.arguments, "--clean")


@pytest.mark.slow
def test_a_full_disk(board, enlarger, tmp_path):
    options = ["-t", "tmpfs", "-o", "size=6m", "tmpfs"]
    if subprocess.run(["mount", *options, str(board.home)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        run = Profiled(board, enlarger, tmp_path / "run", LONG)
        thread, result = run.start()
        wait_until(lambda: len(run.queries()) > 5)
        filler = board.home / "filler"
        subprocess.run(["sh", "-c", 'cat /dev/zero > "$0"', str(filler)], capture_output=True, check=False)
        thread.join(60)
        (error,) = result
        assert isinstance(error, DiskFullError), result
        assert "are kept" in str(error)
        filler.unlink()
        found = run.run()
        assert found.subjects[0]["summary"]["seconds"] >= LONG.seconds
        assert "resumed" in {mark["kind"] for mark in found.data["marks"]}
    finally:
        subprocess.run(["umount", "-l", str(board.home)], check=True)


JUMP = """
import sys, time
real, begin = time.time_ns, time.monotonic()
time.time_ns = lambda: real() + (3600 * 10**9 if time.monotonic() > begin + 1 else 0)
del sys.modules["onnxruntime"]
sys.path.remove({here!r})
import onnxruntime
"""


OTHER = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "0.0" if name == "numpy" else real(name)
"""
TOO_OLD = """
import sys
del sys.modules["onnxruntime"]
sys.path.remove({here!r})
import onnxruntime
def fail(*_, **__):
    raise RuntimeError("opset 23 is under development")
onnxruntime.InferenceSession = fail
"""


@pytest.mark.slow
def test_a_clock_that_jumps(board, enlarger, tmp_path):
    # A runtime that sets the time of day by an hour in the middle.
    (board.modules / "onnxruntime.py").write_text(JUMP.format(here=str(board.modules)))
    board.program("jumping", f'#!/bin/sh\nPYTHONPATH="{board.modules}" exec "{board.bin}/python3" "$@"\n')
    plan = replace(LONG, seconds=2.0)
    found = Profiled(board, enlarger, tmp_path / "run", plan, Settings(python="jumping")).run()
    marks = {mark["kind"]: mark["text"] for mark in found.data["marks"]}
    assert "jumped by 3600.0 s" in marks["time set"]
    summary = found.subjects[0]["summary"]
    assert 2 <= summary["seconds"] < 60
    assert summary["max_ms"] < 60_000


def test_a_device_that_lacks_something(board, enlarger, tmp_path, device_python):
    out = tmp_path / "run"
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(bare)], check=True)
    python = bare / "bin" / "python3"
    (site_packages(python) / "numpy").symlink_to(site_packages(device_python) / "numpy")
    for name, message in (
        ("no-such-python", "has no Python that starts as no-such-python"),
        (
            str(python),
            "and does not import onnxruntime (ModuleNotFoundError: No module named 'onnxruntime'); a measureme",
        ),
        (
            str(python),
            "needs Python 3.8 or newer, NumPy 1.17 or newer, onnxruntime: name another Python with --device-",
        ),
        (
            str(python),
            f"{python} on {board.address} is Python {platform.python_version()} with NumPy {np.__version__} ",
        ),
    ):
        sentence = refused(enlarger, *board.arguments, "--quick", "-o", out, "--device-python", name, code=3)
        assert message in sentence
    sentence = refused(enlarger, *board.arguments, "--quick", "-o", out, "--device-python=-c", code=2)
    assert "a device's Python is a name" in sentence
    assert board.jobs() == []


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("none", "board has no Python that starts as py: name one with --device-python"),
        (
            "python 3.6.9",
            "py on board is Python 3.6.9; a measurement needs Python 3.8 or newer, NumPy 1.17 or newer, ort",
        ),
        (
            "python 3.8.2\nlacks numpy E: x",
            "is Python 3.8.2 and does not import numpy (E: x); a measurement needs Python",
        ),
        (
            "python 3.8.2\nhas numpy 1.16.6",
            "is Python 3.8.2 with NumPy 1.16.6; a measurement needs Python 3.8 or newer, N",
        ),
        (
            "python 3.8.2\nhas numpy 1.17.4\nlacks ppexport.device.mask ModuleNotFoundError: No module named 'numpy.typing'",  # noqa: E501
            "with NumPy 1.17.4 and does not import ppexport.device.mask (ModuleNotFoundError: No module named 'numpy.typing')",  # noqa: E501
        ),
        (f"python 3.8.2\nhas numpy 1.17.4\nhas {archive.NAMES[-1]} ", "does not import ort (no reason given)"),
        (f"python 3.8.2\nhas numpy 1.17.4\nnoise\nhas {archive.NAMES[-1]} \nhas ort 1", None),
    ],
)
def test_what_the_probe_says_of_a_python(said, sentence):
    found = problem_of(archive.read_probe(said), "py", "board", ["ort"])
    assert found is None if sentence is None else sentence in found


def test_a_device_is_asked_for_the_module_of_a_runtime():
    assert {name: runtimes()[name].module for name in ("onnxruntime", "litert", "qnn")} == {
        "onnxruntime": "onnxruntime", "litert": "ai_edge_litert", "qnn": "onnxruntime_qnn",
    }  # fmt: skip


def test_the_probe_imports_what_a_measurement_imports(board, enlarger, tmp_path):
    # A NumPy that lacks something which the program for devices needs, although it can be imported itself.
    (board.modules / "sitecustomize.py").write_text(
        "import sys\nclass Blocker:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'hmac':\n            raise ModuleNotFoundError('no hmac here', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    board.program("poor", f'#!/bin/sh\nPYTHONPATH="{board.modules}" exec "{board.bin}/python3" "$@"\n')
    arguments = [*board.arguments, "--quick", "-o", tmp_path / "run", "--device-python", "poor"]
    sentence = refused(enlarger, *arguments, code=3)
    assert "does not import ppexport.backends.tensorrt.run_engine (ModuleNotFoundError: no hmac here)" in sentence
    assert board.jobs() == []


def test_a_provider_that_the_device_lacks(board, enlarger, tmp_path):
    out = tmp_path / "run"
    arguments = [*board.arguments, "--quick", "-o", out]
    assert "no provider called 'Qn'" in refused(enlarger, *arguments, "--runtime", "onnxruntime:Qn", code=2)
    assert not out.exists()
    sentence = refused(enlarger, *arguments, "--runtime", "onnxruntime:NNAPI", code=3)
    assert "has no provider Nnapi; the 0 queries" in sentence
    assert not (out / "profile.json").exists()
    assert not (out / "latency.jsonl").exists()


@pytest.mark.slow
def test_after_a_runtime_that_failed_another_python_may_be_named(board, enlarger, tmp_path):
    (board.modules / "onnxruntime.py").write_text(TOO_OLD.format(here=str(board.modules)))
    (board.modules / "sitecustomize.py").write_text(OTHER)
    board.program("old", f'#!/bin/sh\nPYTHONPATH="{board.modules}" exec "{board.bin}/python3" "$@"\n')
    run = Profiled(board, enlarger, tmp_path / "run", BRIEF, Settings(python="old"))
    with pytest.raises(InputError, match="opset 23 .* the 0 queries"):
        run.run()
    found = Profiled(board, enlarger, tmp_path / "run").run()
    assert found.data["versions"]["numpy"] != "0.0"
    assert board.jobs() == []


@pytest.mark.slow
def test_a_device_that_was_changed_meanwhile(board, enlarger, tmp_path):
    run = Profiled(board, enlarger, tmp_path / "run", LONG)
    with pytest.raises(StillRunning):
        run.run(timeout=0.2)
    wait_until(lambda: run.queries())
    kill(*descendants(agent_of(run)))
    journal = run.journal()
    journal.write_bytes(re.sub(rb'"identity":"[0-9a-f]{64}"', b'"identity":"' + b"0" * 64 + b'"', journal.read_bytes()))
    with pytest.raises(InputError, match="remove it with --clean, and name another folder"):
        run.run()


def test_a_wrong_host_key_is_refused(board, enlarger, tmp_path):
    board.trust(make_key(tmp_path / "other_key"))
    sentence = refused(enlarger, *board.arguments, "--quick", "-o", tmp_path / "run", code=3)
    assert "another host key" in sentence
    assert board.jobs() == []


def test_what_cannot_be_measured_there(enlarger, tmp_path):
    on = ["--on", "ssh://nobody@127.0.0.1:1", "-o", tmp_path / "run"]
    for arguments, message in (
        ([*on, "--layers"], "on this machine only"),
        ([*on, "--runtime", "all"], "name them"),
        ([*on, "--cores", "7-4"], "cores count up"),
        (["--clean"], "are for a device"),
        (["--on", "ssh://-oProxyCommand=x"], "ssh://[user@]host"),
    ):
        assert message in refused(enlarger, *arguments)
    assert "cannot be reached" in refused(enlarger, *on, "--quick", code=3)


@pytest.mark.slow
def test_a_folder_of_another_measurement(board, enlarger, tmp_path):
    Profiled(board, enlarger, tmp_path / "run").run()
    before = (tmp_path / "run" / "images.npy").read_bytes()
    with pytest.raises(InputError, match="another measurement"):
        Profiled(board, enlarger, tmp_path / "run", LONG).run()
    assert (tmp_path / "run" / "images.npy").read_bytes() == before


OLD_NUMPY = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy.typing":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
IN_NUMPY_1_17 = {
    "abs", "arange", "array", "array_equal", "asarray", "ascontiguousarray", "bincount", "bool_", "ceil", "clip",
    "count_nonzero", "ctypeslib", "dtype", "exp", "flatnonzero", "float32", "float64", "floor", "frombuffer",
    "full", "generic", "inf", "int16", "int32", "int64", "int8", "integer", "isfinite", "isnan", "load", "maximum",
    "mean", "minimum", "ndarray", "ones", "prod", "stack", "take", "uint16", "uint8", "unpackbits", "where",
    "zeros",
}  # fmt: skip
"""What the archive may use of NumPy; each was looked up in 1.17.4. A name that is missing here needs the same."""


def checked(*command, **environment) -> str:
    """What the archive's check says of NumPy and of all that a measurement imports of ppexport."""
    command = [*map(str, command), "check", "numpy", *archive.NAMES]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "", **environment}, check=False
    )
    return done.stdout + done.stderr


def test_the_archive_needs_no_more_of_numpy_than_1_17_has(tmp_path, device_python):
    (tmp_path / "agent.pyz").write_bytes(archive.make_archive())
    assert checked(device_python, "-c", OLD_NUMPY, tmp_path / "agent.pyz") == f"has {archive.NAMES[-1]} \n"
    for name in archive.MODULES:
        tree = ast.parse((archive.ROOT / f"{name}.py").read_text(encoding="utf-8"))
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np"
        }
        assert used <= IN_NUMPY_1_17, name


def python_3_8() -> str:
    """A real Python 3.8; skips the test where there is none."""
    found = shutil.which("python3.8")
    version = os.environ.get("PYENV_VERSION", "3.8.18")
    told = found and subprocess.run(
        [found, "-c", "import sys; print(sys.executable, sys.version_info[:2])"],
        env={**os.environ, "PYENV_VERSION": version}, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    if not told or not told.strip().endswith("(3, 8)"):
        pytest.skip("no Python 3.8 here")
    return told.rpartition(" (")[0]


def test_the_archive_starts_in_python_3_8(tmp_path):
    (tmp_path / "agent.pyz").write_bytes(archive.make_archive())
    # Importing takes nothing of NumPy, so that an empty one will do where 3.8 has none.
    (tmp_path / "numpy.py").write_text('__version__ = "1.17.0"\n')
    found = checked(python_3_8(), tmp_path / "agent.pyz", PYTHONPATH=str(tmp_path))
    assert found == f"has {archive.NAMES[-1]} \n"


def test_the_archive_is_whole():
    files = {archive.ROOT / f"{name}.py" for name in archive.MODULES}
    for path in files:
        for module in imported(path):
            parts = module.split(".")
            if parts[0] == "ppexport" and len(parts) > 1:
                assert archive.ROOT / ("/".join(parts[1:]) + ".py") in files, f"{path.name} imports {module}"
    assert archive.make_archive() == archive.make_archive()
