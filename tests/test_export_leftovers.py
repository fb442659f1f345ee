"""What an export leaves behind beside its artifact: nothing, in no folder, also where it fails half way."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from small_networks import SIZE, small_network

import ppexport
from ppexport.errors import ExportError

READ_ONLY = Path("/proc")
"""Nobody can make a file in it, not even root."""
KINDS = {
    "portable": {"backend": "onnx"},
    "set": {"backend": "onnx", "capacities": [128, 256]},
    "ort": {"backend": "onnx", "flavour": "ort", "format": "ort"},
    "tensorrt": {"backend": "tensorrt", "precision": "fp16"},
    "coreml": {"backend": "coreml", "precision": "w8"},
    "coreai": {"backend": "coreai"},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders for the artifact, the temporary files and the working directory, all empty."""
    made = {name: tmp_path / name for name in ("out", "temporary", "current")}
    for folder in made.values():
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made["temporary"]))
    monkeypatch.setenv("TMPDIR", str(made["temporary"]))
    monkeypatch.chdir(made["current"])
    return made


def left(folders):
    """The names of everything in *folders*, without what ONNX Runtime and torch keep for their next run."""
    names = {path.name for folder in folders.values() for path in folder.iterdir()}
    return sorted(name for name in names if name != ".ses" and not name.startswith("torchinductor_"))


def need(kind):
    backend = KINDS[kind]["backend"]
    if backend in ("coreml", "coreai"):
        pytest.importorskip("coremltools" if backend == "coreml" else "coreai_torch")


@kinds
def test_an_export_writes_into_its_own_folder_only(kind, folders, monkeypatch):
    need(kind)
    if READ_ONLY.is_dir():
        monkeypatch.chdir(READ_ONLY)
    ppexport.export(small_network(), size=SIZE, out=folders["out"] / "a", **KINDS[kind])
    assert left(folders) == ["a"]


@kinds
def test_an_export_that_fails_half_way_leaves_nothing(kind, folders, monkeypatch):
    need(kind)
    backend = KINDS[kind]["backend"]
    where = {"coreml": "coreml.convert", "coreai": "coreai.convert_asset"}.get(backend, "onnx.export_onnx")

    def fail(*arguments, **more):
        raise ExportError("this failed half way")

    monkeypatch.setattr(f"ppexport.backends.{where}.self_check", fail)
    with pytest.raises(ExportError, match="half way"):
        ppexport.export(small_network(), size=SIZE, out=folders["out"] / "a", **KINDS[kind])
    assert left(folders) == []


CRASH = """
import os, signal
def simplify(model, **options):
    open("weights.data", "w").close()
    open("core", "w").close()
    os.kill(os.getpid(), signal.{name})
"""


@pytest.fixture
def crashing(tmp_path, monkeypatch):
    """A stand-in for onnxsim that is found by the child alone and ends it by a signal."""

    def make(name):
        (tmp_path / "stand_in").mkdir()
        (tmp_path / "stand_in" / "onnxsim.py").write_text(CRASH.format(name=name))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand_in"))

    return make


@pytest.mark.parametrize(
    ("name", "hint"), [("SIGSEGV", "try another of its versions"), ("SIGKILL", "memory may have run out")]
)
def test_a_simplifier_that_crashes_ends_the_export_with_one_sentence(folders, crashing, name, hint, capfd):
    crashing(name)
    with pytest.raises(ExportError, match=f"onnxsim was ended by {name} while .*: {hint}") as failure:
        ppexport.export(small_network(), backend="onnx", size=SIZE, out=folders["out"] / "a")
    assert "\n" not in str(failure.value)
    assert capfd.readouterr().err == ""
    assert left(folders) == []


def test_a_crash_keeps_no_half_written_graph(folders, crashing):
    crashing("SIGSEGV")
    with pytest.raises(ExportError, match="SIGSEGV"):
        ppexport.export(
            small_network(), backend="onnx", size=SIZE, out=folders["out"] / "a", keep=folders["out"] / "kept"
        )
    assert [path.name for path in (folders["out"] / "kept").iterdir()] == ["1-traced.onnx"]


def test_modules_in_the_working_directory_are_not_run_by_the_child(folders):
    (folders["current"] / "onnxsim.py").write_text("raise SystemExit('the file in the working directory was run')")
    ppexport.export(small_network(), backend="onnx", size=SIZE, out=folders["out"] / "a")
    assert left(folders) == ["a", "onnxsim.py"]
