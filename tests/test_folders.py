"""Folders that processes share: one at a time writes, nobody's files are overwritten, leavings are cleared up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sshd_builds import write_source
from typer.testing import CliRunner

from ppexport.backends.open_front import KeptResults
from ppexport.cli import app, demo
from ppexport.device.artifact import read_artifact
from ppexport.device.journal import Journal
from ppexport.device.launch import run
from ppexport.device.measure import PLANS
from ppexport.device.target import choose
from ppexport.errors import InputError
from ppexport.exporting import GRAPHS
from ppexport.files import system_sentence
from ppexport.folders import (
    MAX_JSON,
    NEW,
    OLD,
    artifact_target,
    check_same,
    is_json_of,
    new_folder,
    run_folder,
    work_beside,
)
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs
from ppexport.profile import latency_run
from ppexport.profile.latency_run import prepare
from ppexport.remote.detached import Job, remove_jobs
from ppexport.remote.transport import LocalTransport, check_names
from ppexport.search import search

RUNS = {"parity": parity_run.RUN, "profile": latency_run.RUN, "search": search.RUN, "demo": demo.RUN}
IN_A_FOLDER = """
import sys
from pathlib import Path
from ppexport import folders
from ppexport.device.journal import Journal
{what}
    print("ready", flush=True)
    sys.stdin.read()
"""
EXPORT = "with folders.new_folder(Path(sys.argv[1])) as new:\n    (new / 'model.onnx').write_text('half')"
CALIBRATION = "with folders.work_beside(Path(sys.argv[1]), 'calibrate'):"
RUN = "with folders.held(Path(sys.argv[1]), 'writes into'):"
JOURNAL = "journal = Journal(sys.argv[1])\nif True:"


@contextmanager
def another(what, path):
    """Another process that is in the middle of *what* at *path*; killed at the end."""
    code = IN_A_FOLDER.format(what=what)
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_two_exports_into_one_folder(tmp_path):
    out = tmp_path / "x2"
    with another(EXPORT, out):
        with pytest.raises(InputError, match=r"another process is making .*x2 in"), new_folder(out):
            pytest.fail("two at once")
        assert (tmp_path / ".x2.export" / NEW / "model.onnx").read_text() == "half", "the other's work was touched"


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    out = tmp_path / "x2"
    with another(EXPORT, out):
        pass
    assert (tmp_path / ".x2.export").is_dir()
    with new_folder(out) as new:
        assert list(new.iterdir()) == []
        (new / "model.onnx").write_text("whole")
    assert (out / "model.onnx").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["x2"]


def test_an_artifact_that_was_on_its_way_out_comes_back(artifact, tmp_path):
    """Of an export that was killed between its two renamings."""
    out = tmp_path / "x2"
    shutil.copytree(artifact, tmp_path / ".x2.export" / OLD)
    with pytest.raises(ZeroDivisionError), new_folder(out):
        raise ZeroDivisionError
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["x2"]


def test_a_link_in_the_place_of_the_hidden_folder_is_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    (tmp_path / ".x2.export").symlink_to("precious")
    with pytest.raises(InputError, match="is a link"), new_folder(tmp_path / "x2"):
        pytest.fail("followed")
    assert (tmp_path / "precious" / "file").read_text() == "mine"


def test_two_calibrations_of_one_file(tmp_path):
    with (
        another(CALIBRATION, tmp_path / "c.npz"),
        pytest.raises(InputError, match="another process"),
        work_beside(tmp_path / "c.npz", "calibrate"),
    ):
        pytest.fail("two at once")
    with work_beside(tmp_path / "c.npz", "calibrate"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", RUNS)
def test_two_runs_into_one_folder(tmp_path, kind):
    with (
        another(RUN, tmp_path / "run"),
        pytest.raises(InputError, match=r"another process writes into .*run"),
        run_folder(tmp_path / "run", RUNS[kind]),
    ):
        pytest.fail("two at once")
    with run_folder(tmp_path / "run", RUNS[kind]):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "run"], "what another made is not removed"


@pytest.mark.parametrize("command", ["parity", "profile"])
def test_commands_refuse_a_folder_that_another_process_has(artifact, tmp_path, command):
    arguments = [command, str(artifact), "-o", str(tmp_path / "run")]
    with another(RUN, tmp_path / "run"), pytest.raises(InputError, match="another process writes into"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_is_refused_leaves_the_others_journal(artifact, tmp_path):
    """Also where no folder is held, as on a device."""
    job = prepare(choose(artifact, "onnxruntime", 1, False), PLANS["quick"], tmp_path, None)
    with another(JOURNAL, job.journal):
        with pytest.raises(InputError, match="another process measures into it"):
            run(job, lambda done, total: None)
        assert job.journal.exists()
        assert job.images.exists()


def test_a_journal_that_was_removed_meanwhile_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "latency.jsonl"

    def removed(stream, how):
        path.unlink()

    monkeypatch.setattr("ppexport.device.journal.fcntl.flock", removed)
    with pytest.raises(Exception, match="another process removed it"):
        Journal(str(path))


FOREIGN = {
    "parity": ["report.json", "worst.png", "inputs.npz", "network.npz"],
    "profile": ["images.npy", "latency.jsonl", "profile.json", "layers.json"],
    "search": ["search.json", "pareto.md", "recipe.yaml", "calibration.npz"],
    "demo": ["input.png", "result.png", "mask.png"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FOREIGN.items() for name in names])
def test_foreign_files_of_the_same_names_are_not_overwritten(tmp_path, kind, name):
    (tmp_path / name).write_text("{}")
    if name == "images.npy":
        (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"holds no|which no"), run_folder(tmp_path, RUNS[kind]):
        pytest.fail("taken for a run")
    assert (tmp_path / name).read_text() == "{}"


def test_pictures_of_somebody_else_are_not_overwritten(artifact, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((8, 37, 53, 3), np.uint8))
    before = (tmp_path / "images.npy").read_bytes()
    arguments = ["profile", str(artifact), "--quick", "-o", str(tmp_path)]
    with pytest.raises(InputError, match=r"images.npy holds other pictures"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (tmp_path / "images.npy").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["parity", "ARTIFACT", "-o", "DIR"],
        ["profile", "ARTIFACT", "--quick", "-o", "DIR"],
        ["compare", "ARTIFACT", "OTHER", "-o", "DIR"],
        ["demo", "-o", "DIR"],
        ["export", "pp_atd_light_x2", "--size", "16x16", "-o", "OUT", "--keep", "DIR"],
    ],
    ids=lambda a: a[0],
)
def test_commands_refuse_folders_with_foreign_files(artifact, tmp_path, arguments):
    folder = tmp_path / "documents"
    folder.mkdir()
    for name in ("report.json", "thesis.pdf"):
        (folder / name).write_text("mine")
    shutil.copytree(artifact, tmp_path / "other")
    places = {"ARTIFACT": artifact, "OTHER": tmp_path / "other", "DIR": folder, "OUT": tmp_path / "out"}
    with pytest.raises(InputError, match=r"documents (holds|is not empty)"):
        CliRunner().invoke(app, [str(places.get(a, a)) for a in arguments], catch_exceptions=False)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"report.json": "mine", "thesis.pdf": "mine"}


def test_own_folders_are_taken_again(artifact, tmp_path):
    parity, profile, found, shown, graphs = (tmp_path / name for name in ("p", "l", "s", "d", "g"))
    for folder in (parity, profile, found, shown, graphs):
        folder.mkdir()
    parity_run.save_entries(parity / "inputs.npz", {"a": parity_inputs((16, 16), 2)[0]})
    np.save(profile / "images.npy", np.zeros((8, 4, 4, 3), np.uint8))
    shutil.copytree(artifact, found / "fp32")
    (found / "search.json").write_text("{}")
    shutil.copytree(artifact, shown / demo.MODEL)
    (graphs / "1-traced.onnx").write_text("")
    # A file manager's.
    (graphs / ".DS_Store").write_text("")
    kinds = {parity: RUNS["parity"], profile: RUNS["profile"], found: RUNS["search"], shown: RUNS["demo"]}
    for folder, kind in {**kinds, graphs: GRAPHS}.items():
        with run_folder(folder, kind):
            pass
    (parity / "report.json").write_text(json.dumps({"format": "ppexport-parity"}))
    (parity / "worst.png").write_text("")
    with run_folder(parity, RUNS["parity"]):
        pass


@pytest.mark.parametrize("name", ["", "../escape", "a b", "$(reboot)", "x;y", "-rf", ".", "a/b"])
def test_names_that_a_shell_could_misread(tmp_path, name):
    device = LocalTransport()
    for attempt in (
        lambda: Job(device, name),
        lambda: remove_jobs(device, name),
        lambda: check_names("job", name),
        lambda: check_names(name, "file"),
        lambda: KeptResults(tmp_path / "kept", "k").arrays(name and "../" + name, dict),
    ):
        with pytest.raises(InputError, match="is not a plain name|cannot be the name of a"):
            attempt()


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="/proc/x cannot be"), run_folder(Path("/proc/x"), demo.RUN):
        pass
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError, match="x cannot be made: No such file"), run_folder(Path("x"), demo.RUN):
        pass
    with pytest.raises(FileNotFoundError) as raised:
        artifact_target("x")
    assert system_sentence(raised.value) == "the current folder no longer exists: change into another one"


def test_a_file_that_is_too_large_is_not_read_to_see_whose_it_is(tmp_path):
    report = tmp_path / "report.json"
    report.write_text('{"format": "f"}')
    assert is_json_of(report, "f")
    with report.open("ab") as stream:
        stream.write(b" " * (MAX_JSON + 1 - report.stat().st_size))
    assert not is_json_of(report, "f")


@pytest.mark.parametrize("out", [None, 5])
def test_an_artifact_folder_that_is_no_path(out):
    with pytest.raises(InputError, match="the artifact folder is a path, not"):
        artifact_target(out)


@pytest.mark.parametrize("out", [".", "/", ".."])
def test_a_calibration_that_would_be_a_folder(out):
    done = CliRunner().invoke(app, ["calibrate", "pp_atd_light_x2", "--images", ".", "-o", out])
    assert isinstance(done.exception, InputError)
    assert "is a folder" in str(done.exception)


def test_other_weights_of_a_model_are_not_replaced_without_force(tmp_path):
    out = tmp_path / "a"
    write_source(out)
    manifest = read_artifact(out).manifest
    same = (out, "onnx", manifest.name, manifest.arch, manifest.scale)
    check_same(*same, manifest.weights["sha256"], manifest.size, "way out")
    with pytest.raises(InputError, match=r"holds an artifact of other weights of pp_atd_light_x2: way out"):
        check_same(*same, "1" * 64, manifest.size, "way out")
