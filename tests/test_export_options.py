"""What is refused before the work: options of `export` before torch is loaded, and outputs that cannot be written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import GOLDEN
from shared import FREE_IMAGES
from test_cli import fails
from test_layering import run_without

from ppexport.cli.console import check_json
from ppexport.errors import InputError
from ppexport.files import check_file_target
from ppexport.networks.card import bundled_cards

MODEL = "pp_atd_light_x2"
CHECKPOINT = str(GOLDEN / "atd_light_x2_trained.safetensors")
OWN = ["--arch", "pp_atd_light", "--scale", "2", "--checkpoint", CHECKPOINT]
WRONG = {
    "name a model .*pp_atd_light_x2": [],
    "bundled: .*pp_atd_light_x2": ["nonesuch"],
    "has scale 2, not 4": [MODEL, "--scale", "4"],
    "absent.pth: there is no such": [MODEL, "--checkpoint", "absent.pth"],
    "no weights are bundled for atd_light_x2": ["atd_light_x2"],
    "backend is one of": [MODEL, "--backend", "coal"],
    "precision of --backend onnx is one of": [MODEL, "--precision", "fp4"],
    "flavour of --backend onnx is one of": [MODEL, "--flavour", "vanilla"],
    "format of --backend onnx is one of": [MODEL, "--format", "bin"],
    "precision of --backend coreml is one of": [MODEL, "--backend", "coreml", "--precision", "int4"],
    "target of --backend coreml is one of": [MODEL, "--backend", "coreml", "--target", "iOS3"],
    "interface of --backend coreml is one of": [MODEL, "--backend", "coreml", "--interface", "sound"],
    "several functions, which needs iOS18": [MODEL, "--backend", "coreml", "--target", "iOS16", "--capacity", "set"],
    "precision of --backend coreai is one of": [MODEL, "--backend", "coreai", "--precision", "int8"],
    "precision of --backend qnn is one of fp16, int8, not 'fp32'; say --precision fp16$": [MODEL, "--backend", "qnn"],
    "^--backend coreai takes no --calibration: leave it out$": [MODEL, "--backend", "coreai", "--calibration", "c.npz"],
    "^--backend coreai takes no --recipe: leave it out$": [MODEL, "--backend", "coreai", "--recipe", "r.yaml"],
    "mask of pp_atd_light is one of": [MODEL, "--mask", "paper"],
    "flavour is given both as -O flavour= and as a flag": [MODEL, "-O", "flavour=ort", "--flavour", "portable"],
    "pad_heads of --backend tensorrt is yes or no": [MODEL, "--backend", "tensorrt", "-O", "pad_heads=maybe"],
    "the scale of pp_atd_light is one of 2, 3, 4, not 5": [*OWN[:3], "5", *OWN[4:]],
    "HEIGHTxWIDTH": [MODEL, "--size", "64"],
    "smaller tiles": [MODEL, "--size", "9999x9999"],
    "10000000000 tokens": [MODEL, "--size", "100000x100000"],
    "ascending multiples of 128": [MODEL, "--capacity", "100"],
    "^cannot use colors: .*, not 40$": [MODEL, "--option", "colors=40"],
    "^cannot use window: Input should be 2, 4, 8 or 16, not 3$": [MODEL, "-N", "window=3"],
    "^cannot use csmf: .*, not 'maybe'$": [MODEL, "-N", "csmf=maybe"],
    "^pp_atd_light has no option 'ratio': its options are colors, window, csmf,": [
        MODEL,
        "-N",
        "ratio=1",
    ],
    "^atd_light has no options: leave ratio out$": ["atd_light_x2", "-N", "ratio=1"],
    "^--option takes NAME=VALUE, such as --option colors=6, not 'colors'$": [MODEL, "-N", "colors"],
    "^--option colors is given twice$": [MODEL, "-N", "colors=6", "--option", "colors=8"],
    "--arch is one of atd_light, pp_atd_light, .*not 'pp_atd_ligth'": ["--arch", "pp_atd_ligth", *OWN[2:]],
    "--scale is missing": OWN[:2],
    "--arch is missing": OWN[2:4],
    "no calibration is bundled for these weights": [*OWN, "--precision", "int8"],
    "recipe.yaml cannot be read": [MODEL, "--precision", "int8", "--recipe", "recipe.yaml"],
    "c.npz is not a calibration file": [MODEL, "--precision", "fp16", "--calibration", "c.npz"],
    "is not a folder": [MODEL, "-o", "missing/a"],
    "cannot be written": [MODEL, "-o", "a" * 300],
}
"""{what is said: arguments of `export`}."""
ASK = """
import json, sys
from ppexport.cli import app
from ppexport.errors import PpexportError
said = {}
for message, arguments in json.loads(sys.argv[1]).items():
    try:
        app(["export", *arguments], standalone_mode=False)
    except PpexportError as error:
        said[message] = str(error)
print(json.dumps(said))
"""


def test_options_of_export_are_refused_before_torch_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_without(("torch",), f"import sys; sys.argv = ['x', {json.dumps(WRONG)!r}]\n{ASK}")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for message in WRONG:
        assert re.search(message, said.get(message, "not refused")), message
    assert list(tmp_path.iterdir()) == []


def test_a_good_request_passes_the_checks_and_asks_for_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_without(("torch",), "import sys; sys.argv = ['ppexport', 'export', 'pp_atd_light_x2']\n"
                       "from ppexport.cli import run; run()")  # fmt: skip
    assert done.returncode == 3
    assert "torch is not installed" in done.stderr


def test_export_without_a_model_lists_the_models():
    text = fails("export", message="name a model").stderr
    assert all(name in text for name in bundled_cards())


def unwritable(tmp_path):
    """Paths that nothing can be written to, not even by root."""
    (tmp_path / "file").write_text("")
    paths = [tmp_path / "missing" / "x", tmp_path / "file" / "x", tmp_path / ("a" * 300), tmp_path]
    return [*paths, Path("/proc/ppexport.npz")] if Path("/proc").is_dir() else paths


def test_files_that_cannot_be_written_are_known_before(tmp_path):
    for path in unwritable(tmp_path):
        with pytest.raises(InputError, match="cannot be written|is not a plain file|is a folder"):
            check_file_target(path)
        with pytest.raises(InputError, match="cannot be written|is not a plain file|is a folder"):
            check_json(str(path))
    check_file_target(tmp_path / "good.npz")
    check_json(str(tmp_path / "good.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", MODEL, "--images", FREE_IMAGES, "-o"],
        ["quantize-search", MODEL, "--images", FREE_IMAGES, "-o"],
        ["export", MODEL, "-o"],
        ["evaluate", MODEL, "--hr", FREE_IMAGES, "--json"],
        ["report", FREE_IMAGES, "-o"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_works_for_an_output_that_cannot_be_written(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The name is 300 characters long, which no file system takes.
    fails(*command, "a" * 300, message="a{300} cannot be written: File name too long")
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_a_calibration_can_be_written_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a" * 250
    fails("calibrate", MODEL, "--images", FREE_IMAGES, "-o", name, message=r"a{250}\.partial cannot be written")
    assert list(tmp_path.iterdir()) == []
