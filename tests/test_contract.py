"""What every architecture, backend and precision promises: it exports, opens, makes a picture, and passes parity."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import numpy as np
import pytest
from calibrated import SIZE
from small_networks import shortened

import ppexport
import ppexport.errors
from ppexport.backends.backend import backends, missing_modules
from ppexport.networks.architecture import architectures
from ppexport.networks.card import PurePassOptions
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs

# A backend of another package has its own tests.
COMBINATIONS = [
    pytest.param(architecture, backend, precision, id=f"{architecture}-{backend.name}-{precision}")
    for architecture in architectures()
    for backend in backends().values()
    if type(backend).__module__.startswith("ppexport.")
    for precision in backend.precisions
]


SMALLER = (16, 16)


@pytest.fixture(scope="module")
def networks(calibrated):
    """{architecture, layers: a network of two layers with the weights that were calibrated, or of the first one}."""
    found = {}
    for name, architecture in architectures().items():
        made = shortened(architecture.build(2, PurePassOptions() if architecture.options() else None), 2)
        made.load_state_dict(calibrated.network.state_dict())
        found[name, 2] = made.eval()
        found[name, 1] = shortened(copy.deepcopy(made), 1)
    return found


@pytest.mark.parametrize(("architecture", "backend", "precision"), COMBINATIONS)
def test_a_promise(architecture, backend, precision, networks, calibrated, tmp_path, monkeypatch):
    if missing_modules(backend):
        pytest.skip(f"{missing_modules(backend)} is not installed")
    network, size, calibration = networks[architecture, 1], SMALLER, None
    if precision in backend.calibrated:
        network, size, calibration = networks[architecture, 2], SIZE, calibrated.path
        if network.options != calibrated.network.options:
            pytest.skip("the calibration is of other options")
    folder = ppexport.export(
        network, backend=backend.name, size=size, out=tmp_path / "a", precision=precision, calibration=calibration
    )
    (item,) = (item for item in parity_inputs(size, 2) if item.name == "coffee")
    with ppexport.open_artifact(folder) as runner:
        sr, impure, capacity = runner(item.lr)
        assert sr.shape == (1, 3, size[0] * 2, size[1] * 2)
        assert sr.dtype == np.float32
        assert 0 <= impure <= capacity == size[0] * size[1]
        monkeypatch.setattr(parity_run, "parity_inputs", lambda *_: [item])
        report = parity_run.run_parity(network, runner, tmp_path / "run", lambda *_: None)
    assert report.passed, report.to_dict()["pairs"]
    with pytest.raises(ppexport.errors.InputError, match="was closed"):
        runner(item.lr)


def test_every_backend_says_what_it_is():
    for backend in backends().values():
        assert backend.summary
        assert backend.extra
        assert backend.calibrated | backend.may_calibrate | backend.recipes <= set(backend.precisions)
        assert backend.precisions["fp32"].psnr >= 90
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
