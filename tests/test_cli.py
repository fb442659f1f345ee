"""The command line as a user runs it: output, JSON, exit codes, one sentence for every mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

import pytest
from conftest import GOLDEN, photo
from PIL import Image
from shared import ODD
from sshd_profiles import write_enlarger
from typer.testing import CliRunner

from ppexport import cli
from ppexport.__main__ import main
from ppexport.backends.backend import backends
from ppexport.cli import COMMANDS, app
from ppexport.device.target import runtimes
from ppexport.errors import EXIT_INTERRUPTED, ImageError, counted
from ppexport.files import atomic_path, system_sentence
from ppexport.folders import new_folder

EXPORT_OPTIONS = ["--size", "--backend", "--precision", "--checkpoint", "--arch", "--scale", "--keep", "--json"]


def run(*arguments, code=0, **environment):
    """Run ppexport and check its exit code: in this process, or in one of its own with another *environment*."""
    command = [sys.executable, "-m", "ppexport", *map(str, arguments)]
    if environment:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    else:
        with (
            mock.patch.object(sys, "argv", command[2:]),
            redirect_stdout(TextIOWrapper(BytesIO(), "utf-8")) as out,
            redirect_stderr(TextIOWrapper(BytesIO(), "utf-8")) as err,
            pytest.raises(SystemExit) as ended,
        ):
            cli.run()
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        done = subprocess.CompletedProcess(command, ended.value.code or 0, *texts)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def fails(*arguments, message, code=2, **environment):
    """Run ppexport, expecting one sentence that matches *message* and nothing on standard output."""
    done = run(*arguments, code=code, **environment)
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photo(45, 80)).save(path)
    return path


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_a_type_for_what_takes_a_value_alone(command):
    shown = run(*command.split(), "--help", COLUMNS="120").stdout
    if command:
        assert f"Example: ppexport {command}" in " ".join(shown.split())
        assert "--json" in shown
    assert "<bool>" not in shown
    assert "--trust" not in shown or "<path>" in shown


def test_help_fills_the_lines_of_every_paragraph():
    """A line ends where the next word would not fit, not where the source's line ends."""
    lines = [
        line.strip() for line in run("upscale", "--help", COLUMNS="80").stdout.partition("Arguments")[0].splitlines()
    ]
    following = [(line, after) for line, after in pairwise(lines) if line and after and after[0].isalnum()]
    assert len(following) > 5
    assert [line for line, after in following if len(line) + 1 + len(after.split()[0]) <= 78] == []


def test_help_names_what_is_registered_and_looks_it_up_for_the_help_alone():
    for command, names in {"export": backends(), "profile": runtimes()}.items():
        shown = run(command, "--help", COLUMNS="200").stdout
        assert set(names) <= set(re.findall(r"\w+", shown))
        assert not re.search(r"\{\w+s\}", shown)
    code = "import sys, ppexport.cli; print(any(n.startswith('ppexport.backends.') for n in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "tile", "1 tile"), (0, "tile", "0 tiles"), (5229, "tile", "5,229 tiles"), (2, "query", "2 queries")],
)
def test_numbers_of_things(number, noun, text):
    assert counted(number, noun) == text


def test_sizes_say_which_side_comes_first(picture):
    shown = run("info", "pp_atd_light_x2", "--image", picture).stdout
    assert "LR 45x80 -> 90x160 (HxW)" in shown
    assert "figure" in shown
    assert "value" in shown


def test_version_and_bare_call():
    assert re.fullmatch(r"ppexport \d+\.\d+\.\d+\n", run("--version").stdout)
    assert "upscale" in run(code=2).stdout + run(code=2).stderr


def test_ctrl_c_before_anything_was_begun(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ppexport.cli.app", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert ended.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted before anything was begun\n"
    # While the command line is imported.
    monkeypatch.delitem(sys.modules, "ppexport.cli")
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=interrupted), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_debugging_shows_messages_and_the_traceback_of_an_expected_error(artifact, picture, tmp_path):
    def debug(*arguments):
        command = [sys.executable, "-m", "ppexport", *map(str, arguments)]
        environment = {**os.environ, "PPEXPORT_DEBUG": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    done = debug("upscale", artifact, picture, tmp_path / "sr.png", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert re.search(r"opens .*model\.onnx: provider CPU, .*'intra_op_num_threads': 1", done.stderr)
    done = debug("compare", tmp_path / "none.json")
    assert done.returncode == 2
    # With the error of the system, which the sentence replaced.
    assert "FileNotFoundError" in done.stderr
    assert "InputError: " in done.stderr.splitlines()[-1]
    assert "none.json cannot be read: No such file or directory" in done.stderr


def test_models():
    listed = json.loads(run("models", "--json", "-").stdout)
    assert "pp_atd_light_x2" in {card["name"] for card in listed["models"]}
    assert "pp_atd_light" in {architecture["name"] for architecture in listed["architectures"]}
    own = next(architecture for architecture in listed["architectures"] if architecture["name"] == "camixersr")
    assert own["options"] == {"ratio": "NUMBER [default: 0.5]: share of windows that attend, above 0 and at most 1"}
    shown = run("models").stdout
    assert "pp_atd_light_x2" in shown
    _, _, own = shown.partition("pp_atd_light, pp_atd_light_v2, with --option NAME=VALUE:\n")
    assert own.startswith("  colors: NUMBER [default: 8]: colour centres of Pure-Pass, 2 to 16\n  window: 2 or 4 or")


@pytest.mark.parametrize(("scale", "published", "pure"), [(2, 380.01, 375.68), (3, 167.96, 166.05), (4, 100.09, 98.96)])
def test_info_gives_the_published_figures(scale, published, pure):
    out = run("info", "--arch", "atd_light", "--scale", scale).stdout
    assert f"{published} G" in out
    assert f"{pure} G" in out


def test_names_with_spaces_tabs_and_letters_of_any_language(artifact, tmp_path, monkeypatch):
    odd = tmp_path / ODD
    for name in ("", "tmp", "home", "hr ü"):
        (odd / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(odd / "tmp"))
    monkeypatch.setenv("HOME", str(odd / "home"))
    monkeypatch.chdir(odd)
    shutil.copytree(artifact, ODD)
    for name in ("hr ü/b 日.png", "in\tü.png"):
        Image.fromarray(photo(30, 40)).save(name)
    run("upscale", ODD, "in\tü.png", "out 日\t.webp", "--json", "told ü.json")
    assert Image.open("out 日\t.webp").size == (80, 60)
    assert json.loads((odd / "told ü.json").read_text())["output"] == "out 日\t.webp"
    run("evaluate", ODD, "--hr", "hr ü")
    run("lint", f"{ODD}/model.onnx")


def test_info_of_a_picture_and_a_folder(picture, tmp_path):
    data = json.loads(run("info", "pp_atd_light_x2", "--image", picture, "--json", "-").stdout)
    assert data["parameters"] == 753_204
    assert data["lr_size"] == [45, 80]
    assert data["tokens"] == 48 * 80
    assert 0 < data["saving"] < data["pure_share"] < 1
    folder = json.loads(run("info", "pp_atd_light_x2", "--images", picture.parent, "--json", "-").stdout)
    assert folder["images"][0]["fused"] == pytest.approx(data["pure_share"])
    assert folder["images"][0]["grid"] <= folder["images"][0]["fused"]
    fails("info", "pp_atd_light_x2", "--images", tmp_path / "none", message="not a folder")
    fails("info", "pp_atd_light_x2", "--image", picture, "--images", tmp_path, message="one of")
    fails("info", "--arch", "atd_light", "--scale", "2", "--images", picture.parent, message="no Pure-Pass")


def test_export_upscale_and_lint(tmp_path, picture):
    weights = GOLDEN / "atd_light_x2_trained.safetensors"
    out = tmp_path / "artifact"
    done = run(
        "export", "--checkpoint", weights, "--arch", "pp_atd_light", "--scale", 2, "--size", "32x48", "--option",
        "compensation=zero", "-o", out, "--json", "-",
    )  # fmt: skip
    data = json.loads(done.stdout)
    assert data["manifest"]["size"] == [32, 48]
    assert data["manifest"]["options"]["compensation"] == "zero"
    assert data["file_bytes"]["model.onnx"] < data["bytes"] < 6e6
    result = tmp_path / "result.png"
    report = json.loads(run("upscale", out, picture, result, "--json", "-").stdout)
    assert report["tiles"] > 1
    with Image.open(result) as image:
        assert image.size == (160, 90)
    linted = json.loads(run("lint", out, "--json", "-").stdout)
    assert linted["ok"]
    assert linted["facts"]["ir_version"] == 8
    fails("parity", out, message="made from atd_light_x2_trained.safetensors: give that file with --checkpoint")
    for suffix in (".jp2", ""):
        fails("upscale", out, picture, tmp_path / f"result{suffix}", message="extension")
    fails("upscale", out, tmp_path / "absent.png", result, message="does not exist")
    fails("upscale", out, picture, result, "--max-pixels", 100, message="--max-pixels")
    fails("upscale", out, out / "manifest.json", result, message="manifest.json")
    fails("upscale", tmp_path, picture, result, message="not an artifact")
    fails("evaluate", out, "--hr", tmp_path, "--scale", "4", message="scale 2, not 4")


def test_evaluate(tmp_path, picture):
    data = json.loads(run("evaluate", "pp_atd_light_x2", "--hr", picture.parent, "--scale", 2, "--json", "-").stdout)
    assert data["scale"] == 2
    assert data["mean"]["psnr_y"] > data["mean"]["bicubic_psnr_y"]
    target = tmp_path / "scores.json"
    out = run("evaluate", "pp_atd_light_x2", "--hr", picture.parent, "--json", target).stdout
    assert "bicubic" in out
    assert json.loads(target.read_text())["mean"] == data["mean"]


def test_lint_fails_on_what_boards_refuse(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("NonZero", ["x"], ["y"], name="/head/NonZero")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [1, None])
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    out = run("lint", tmp_path / "m.onnx", code=1).stdout
    assert "NonZero" in out
    assert "module head" in out
    (tmp_path / "n.onnx").write_bytes(b"\x00\x01nonsense")
    fails("lint", tmp_path / "n.onnx", message="n.onnx")
    fails("lint", tmp_path / "absent.onnx", message="absent.onnx")
    (tmp_path / "m.pte").write_bytes(b"m")
    fails("lint", tmp_path / "m.pte", message="m.pte is nothing that lint reads: .onnx and .tflite files, .mlpackage")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "nonesuch", "-o", "x"], "bundled: .*pp_atd_light_x2"),
        (["export", "pp_atd_light_x2", "--size", "64", "-o", "x"], "HEIGHTxWIDTH"),
        (["export", "pp_atd_light_x2", "--size", "0x64", "-o", "x"], "HEIGHTxWIDTH"),
        (["export", "pp_atd_light_x2", "--size", "9999x9999", "-o", "x"], "smaller tiles"),
        (["export", "pp_atd_light_x2", "--backend", "coal", "-o", "x"], "backend is one of"),
        (["export", "pp_atd_light_x2", "--option", "colors=40", "-o", "x"], "colors"),
        (["export", "pp_atd_light_x2", "-o", "/nonexistent/a"], "is not a folder"),
        (["export", "--arch", "pp_atd_light", "-o", "x"], "scale"),
        (["export", "pp_atd_light_x2", "--checkpoint", "absent.pth", "-o", "x"], "absent.pth"),
        (["parity", "absent"], "not an artifact"),
        (["parity", "absent", "--against", "a", "-o", "b"], "--against"),
        (["evaluate", "pp_atd_light_x2", "--hr", "absent"], "absent is not a folder"),
        (["models", "--json", "/nonexistent/models.json"], "cannot be written"),
    ],
)
def test_mistakes_get_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(*arguments, message=message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=["ascii", "utf-8", "C"],
)
def test_a_name_that_the_output_cannot_show(tmp_path, environment):
    # Text that ASCII lacks, and bytes that are no text at all.
    folder = tmp_path / "猫" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    artifact, name = write_enlarger(folder / "enlarger"), os.fsdecode(b"in\xff.png")
    Image.fromarray(photo(64, 96)).save(folder / name)
    done = run("upscale", artifact, folder / name, folder / "out.png", **environment)
    assert "caf\\udce9" in done.stdout
    assert "out.png: 192 pixels wide and 128 high, 9 tiles, " in done.stdout
    assert (folder / "out.png").is_file()
    done = run("evaluate", artifact, "--hr", folder, "--json", folder / "scores.json", **environment)
    assert "in\\udcff" in done.stdout
    assert json.loads((folder / "scores.json").read_text())["images"]
    fails("lint", folder / "no.onnx", message="no.onnx does not exist", **environment)


@pytest.mark.parametrize("named", [None, "temporary"])
def test_a_full_disk_is_named_with_the_file(tmp_path, named):
    target = tmp_path / "a.npz"
    with pytest.raises(OSError, match="No space") as raised, atomic_path(target) as temporary:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), None if named is None else str(temporary))
    begin = f"{re.escape(str(target))}: No space left on device"
    assert re.fullmatch(begin + r" \(the disk at /.* has \d+\.\d MB left\)", system_sentence(raised.value))
    with pytest.raises(OSError, match="No space") as raised, new_folder(tmp_path / "x2"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert system_sentence(raised.value).startswith(f"{tmp_path / 'x2'}: No space left on device (the disk at /")
    # What has a name of its own keeps it, and only a full disk is one.
    other = OSError(errno.EACCES, "Permission denied", "b")
    with pytest.raises(OSError, match="b") as raised, atomic_path(target):
        raise other
    assert system_sentence(raised.value) == "b: Permission denied"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_device():
    fails("models", "--json", "/dev/full", message=r"/dev/full: No space left on device \(the disk at /")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ppexport", "models"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "a temporary file or standard output: No space left on device (the disk at /" in done.stderr


def test_paths_are_printed_as_they_are_and_devices_stay(tmp_path, picture):
    odd = tmp_path / "a[red]b"
    odd.mkdir()
    (odd / "n[1].onnx").write_bytes(b"nonsense")
    fails("lint", odd / "n[1].onnx", message=re.escape("a[red]b/n[1].onnx"))
    run("info", "pp_atd_light_x2", "--json", "/dev/null")
    assert not os.path.isfile("/dev/null")
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    run("models", "--json", link)
    assert link.is_symlink()
    assert json.loads(real.read_text())
    fails("models", "--json", tmp_path, message="is a folder")
    fails(
        "evaluate",
        "pp_atd_light_x2",
        "--hr",
        tmp_path,
        "--json",
        tmp_path / "no" / "x.json",
        message="cannot be written",
    )


def test_upscale_says_what_was_named_in_place_of_an_artifact(artifact, picture, tmp_path):
    out = tmp_path / "sr.png"
    model = "is not an artifact but a model: make an artifact with `ppexport export pp_atd_light_x2 -o"
    fails("upscale", "pp_atd_light_x2", picture, out, message=re.escape(model))
    folder = tmp_path / "own"
    folder.mkdir()
    fails("upscale", folder, picture, out, message=r"own is not an artifact: manifest\.json is missing")
    (folder / "card.yaml").touch()
    fails("upscale", folder, picture, out, message="own is not an artifact but a model")
    fails("upscale", tmp_path / "nope", picture, out, message="nope is not an artifact: there is nothing of this name")
    named = f"model.onnx is not an artifact but a file: name the folder, {re.escape(str(artifact))}"
    fails("upscale", artifact / "model.onnx", picture, out, message=named)
    fails("upscale", picture, picture, out, message="but a file: name the folder that `ppexport export` made")
    assert not out.exists()


def test_upscale_reads_the_picture_before_it_opens_the_model(artifact, picture, tmp_path, monkeypatch):
    def opened(*_, **__):
        pytest.fail("the model was opened")

    monkeypatch.setattr("ppexport.backends.backend.open_artifact", opened)
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:-1000])
    for source, target, message in (
        ("none.png", "sr.png", "does not exist"),
        ("cut.png", "sr.png", "is truncated"),
        (picture.name, "sr.jp2", "extension is one of"),
        (picture.name, "none/sr.png", "does not exist"),
    ):
        done = CliRunner().invoke(app, ["upscale", str(artifact), str(tmp_path / source), str(tmp_path / target)])
        assert isinstance(done.exception, ImageError), done.output
        assert message in str(done.exception)


def test_upscale_says_how_many_runs_a_picture_takes(artifact, picture, tmp_path):
    done = CliRunner().invoke(app, ["upscale", str(artifact), str(picture), str(tmp_path / "sr.png")])
    assert done.exit_code == 0, done.output
    assert "80x45 pixels are 4 runs, one for each tile of 53x37" in " ".join(done.output.split())
