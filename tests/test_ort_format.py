"""Artifacts in ONNX Runtime's own format, for ONNX Runtime Mobile."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from calibrated import SIZE, lr_of
from conftest import exported_once, photo
from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor

import ppexport
from ppexport.backends.onnx.build_onnx import convert_to_ort
from ppexport.backends.onnx.run_onnxruntime import load
from ppexport.cli.export import size_text
from ppexport.device.artifact import read_artifact
from ppexport.device.runner import feeds
from ppexport.errors import ArtifactError, ExportError, InputError
from ppexport.parity.run import run_parity

NAMES = ["model.ort", "model.onnx", "model.required_operators_and_types.config"]
EXPORTS = {
    "fp32": {},
    "set": {"flavour": "ort", "capacities": [256, 512]},
    "int8": {"precision": "int8"},
}


@pytest.fixture(scope="module")
def exported(calibrated, tmp_path_factory):
    """{name: artifact folder}."""

    def export(name):
        wish = EXPORTS[name] | ({"calibration": calibrated.path} if name == "int8" else {})
        return exported_once(tmp_path_factory, calibrated.network, backend="onnx", size=SIZE, format="ort", **wish)

    return {name: export(name) for name in EXPORTS}


def test_the_size_is_that_of_each_file():
    files = {"model.ort": 6_300_000, "model.onnx": 6_050_000, "list.config": 2_100}
    said = "12.35 MB in all (model.ort 6.30 MB, model.onnx 6.05 MB, list.config 2.1 kB)"
    assert size_text(12_352_100, files) == said
    page = {"model.onnx": 4_240_000, **{f"{i}.mjs": 20_000 for i in range(12)}, "ort.wasm": 41_000_000}
    assert size_text(45_480_000, page) == (
        "45.48 MB in all (model.onnx 4.24 MB, ort.wasm 41.00 MB, 12 smaller files 0.24 MB)"
    )
    assert size_text(6_050_900, {"model.onnx": 6_050_000}) == "6.05 MB"


@pytest.mark.parametrize("name", EXPORTS)
def test_it_computes_what_the_graph_computes(exported, name):
    runner = ppexport.open_artifact(exported[name])
    assert list(runner.artifact.manifest.files) == NAMES
    assert runner.artifact.model_file.read_bytes()[4:8] == b"ORTM"
    graph = load(runner.artifact.graph_file.read_bytes(), "graph")
    for picture in ("coffee.png", "chelsea.png"):
        lr = lr_of(photo(*SIZE, name=picture))
        found = runner(lr)
        inputs = feeds(runner.artifact.manifest, runner.prepare(lr))
        sr, impure = graph.run(["sr", "impure_tokens"], inputs)
        assert np.abs(sr - found.sr).max() < (1e-5 if name != "int8" else 2e-2)
        assert int(impure[0]) == found.impure_tokens


def test_parity_judges_the_file_that_ships(calibrated, exported, tmp_path):
    runner = ppexport.open_artifact(exported["fp32"])
    ran = []
    plain = runner.session.run
    runner.session = type("Watched", (), {"run": lambda self, *given: ran.append(1) or plain(*given)})()
    report = run_parity(calibrated.network, runner, tmp_path / "run", lambda what, done, total: None)
    assert report.passed
    assert len(ran) == len(report.pairs[1].rows)


@pytest.mark.parametrize("name", EXPORTS)
def test_the_list_names_every_operator_and_no_path(exported, name):
    artifact = read_artifact(exported[name])
    text = (artifact.path / NAMES[2]).read_text()
    assert str(artifact.path.parent) not in text
    required = {}
    OrtFormatModelProcessor(str(artifact.model_file), required, None).process()
    listed = {}
    for line in text.splitlines()[1:]:
        domain, opset, rest = line.split(";", 2)
        listed.setdefault(domain, {})[int(opset)] = set(
            re.findall(r"(?:^|,)([A-Z]\w+)", re.sub(r"\{.*?\}\}", "", rest))
        )
    assert listed == {d: {o: ops for o, ops in opsets.items() if ops} for d, opsets in required.items()}
    assert "MatMul" in text
    assert '"float"' in text


def test_nothing_large_is_folded(exported):
    artifact = read_artifact(exported["fp32"])
    assert artifact.model_file.stat().st_size < artifact.graph_file.stat().st_size + 400_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "format is an option of --backend onnx, not of tensorrt"),
        ({"backend": "coreml"}, "format is an option of --backend onnx, not of coreml"),
        ({"backend": "onnx", "precision": "fp16"}, "--format ort is for --precision fp32 or int8"),
        ({"backend": "onnx", "format": "tflite"}, "format of --backend onnx is one of onnx, ort, not 'tflite'"),
    ],
)
def test_what_cannot_be_is_refused(calibrated, tmp_path, options, message):
    options = {"format": "ort", "size": SIZE, "out": tmp_path / "a"} | options
    with pytest.raises(InputError, match=message):
        ppexport.export(calibrated.network, **options)
    assert not any(tmp_path.iterdir())


def test_a_graph_that_onnx_runtime_cannot_convert(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match="cannot write its own format"):
        convert_to_ort(tmp_path / "model.onnx")


def test_the_graph_belongs_to_the_artifact(exported, tmp_path):
    artifact = read_artifact(exported["fp32"])
    assert onnx.load(artifact.graph_file).opset_import[0].version == 17
    manifest = artifact.manifest
    alone = {NAMES[0]: manifest.files[NAMES[0]]}
    lacking = type(artifact)(artifact.path, type(manifest)(**{**vars(manifest), "files": alone}))
    with pytest.raises(ArtifactError, match=r"lacks model\.onnx, which model\.ort was made from"):
        _ = lacking.graph_file
