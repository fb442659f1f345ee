"""What every architecture, backend and precision promises: it exports, opens, makes a picture, and passes parity."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from calibrated import SIZE, small_calibrated
from small_networks import random_small_network

import ppexport
import ppexport.errors
from ppexport.backends.backend import backends, missing_modules
from ppexport.networks.architecture import architectures
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs

EVERYWHERE = ("pp_atd_light", "camixersr", "swinir_light")
"""No graph has an operator that those of these lack. All but fp32 of others is slow, and so are backends but ONNX."""
FLOATS = ("fp32", "fp16")
"""What these are tested in; what is quantised is, of the first one alone."""


def is_slow(architecture: str, backend: str, precision: str) -> bool:
    """Whether this combination is left to `make test-slow`."""
    if backends()[backend].builds_slowly or backends()[backend].opens_slowly:
        return True
    if architecture not in EVERYWHERE:
        return (backend, precision) != ("onnx", "fp32")
    return precision not in FLOATS and architecture != "pp_atd_light"


# A backend of another package has its own tests.
COMBINATIONS = [
    pytest.param(
        architecture,
        backend,
        precision,
        id=f"{architecture}-{backend.name}-{precision}",
        marks=[pytest.mark.slow] if is_slow(architecture, backend.name, precision) else [],
    )
    for architecture in architectures()
    for backend in backends().values()
    if type(backend).__module__.startswith("ppexport.")
    for precision in backend.precisions
]


SMALLER = (16, 16)
UNJUDGED = {
    ("atd_light_v2", "w8"): "w8 moves categories that random weights nearly tie",
    ("pp_atd_light_v2", "w8"): "w8 moves categories that random weights nearly tie",
    ("atd_light_v2", "w8a8"): "w8 moves categories that random weights nearly tie",
    ("camixersr", "w8a8"): "with random weights some numbers are too small for int8 scales in fp16",
    ("pp_camixersr", "w8a8"): "with random weights some numbers are too small for int8 scales in fp16",
    ("swinir_light", "w8"): "w8 is judged by the picture, and random weights make none",
    ("pp_swinir_light", "w8"): "w8 is judged by the picture, and random weights make none",
}
"""{(architecture, precision): why a network with random weights says nothing of it}."""
TWO_WINDOWS = (16, 32)
"""Of a network that chooses among windows of 16x16."""


@pytest.fixture(scope="module")
def calibrations(calibrated, tmp_path_factory):
    """`calibrations(arch)`: a calibrated network of two layers of *arch*, made when it is first asked for."""
    made = {calibrated.network.arch: calibrated}

    def find(arch):
        if arch not in made:
            made[arch] = small_calibrated(tmp_path_factory.mktemp(arch), random_small_network(arch, 2))
        return made[arch]

    return find


@pytest.mark.parametrize(("architecture", "backend", "precision"), COMBINATIONS)
def test_a_promise(architecture, backend, precision, calibrations, tmp_path, monkeypatch):
    if missing_modules(backend):
        pytest.skip(f"{missing_modules(backend)} is not installed")
    if backend.lacking():
        pytest.skip(backend.lacking())
    if (architecture, precision) in UNJUDGED:
        pytest.skip(UNJUDGED[architecture, precision])
    size, calibration = TWO_WINDOWS if "camixer" in architecture else SMALLER, None
    if precision in backend.calibrated:
        known = calibrations(architecture)
        network, size, calibration = known.network, SIZE, known.path
    else:
        network = random_small_network(architecture)
    folder = ppexport.export(
        network, backend=backend.name, size=size, out=tmp_path / "a", precision=precision, calibration=calibration
    )
    (item,) = (item for item in parity_inputs(size, 2) if item.name == "coffee")
    try:
        opened = ppexport.open_artifact(folder)
    except ppexport.errors.UnavailableError as error:
        # Its program is no package of Python: a browser.
        pytest.skip(str(error))
    with opened as runner:
        # What it says of numbers beyond fp16, as its record does.
        assert runner.calibrates == ("fp16" in backend.calibrated | backend.may_calibrate)
        assert runner.has_fp32 == ("fp32" in backend.precisions)
        sr, impure, capacity = runner(item.lr)
        assert sr.shape == (1, 3, size[0] * 2, size[1] * 2)
        assert sr.dtype == np.float32
        slots = architectures()[architecture].layout.group
        assert 0 <= impure <= capacity == (size[0] * size[1] if slots else 0)
        monkeypatch.setattr(parity_run, "parity_inputs", lambda *_: [item])
        report = parity_run.run_parity(network, runner, tmp_path / "run", lambda *_: None)
    assert report.passed, report.to_dict()["pairs"]
    with pytest.raises(ppexport.errors.InputError, match="was closed"):
        runner(item.lr)


@pytest.mark.slow
def test_three_architectures_have_all_operators_of_the_others(tmp_path):
    found = {}
    for name in architectures():
        folder = ppexport.export(random_small_network(name, 2), backend="onnx", size=TWO_WINDOWS, out=tmp_path / name)
        found[name] = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    known = set().union(*(found[name] for name in EVERYWHERE))
    assert {name: operators - known for name, operators in found.items() if operators - known} == {}


def test_every_backend_says_what_it_is():
    for backend in backends().values():
        assert backend.summary
        assert backend.extra
        assert backend.calibrated | backend.may_calibrate | backend.recipes <= set(backend.precisions)
        assert "fp32" not in backend.precisions or backend.precisions["fp32"].psnr >= 90
        for field in backend.options().model_fields.values():
            assert field.description
            assert not field.is_required()


def test_every_architecture_says_what_it_is():
    for architecture in architectures().values():
        assert architecture.summary
        assert find_spec(type(architecture).__module__) is not None
        for scale in architecture.scales:
            assert architecture.cost(scale, (64, 64)).pure > 0
        assert (architecture.routing is not None) or architecture.masks == ("none",)
