"""Networks, golden cases and exported artifacts that many tests share."""

from __future__ import annotations

import copy
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is loaded: idle OpenMP threads that spin slow everything else on a machine of two cores many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ppexport
from ppexport.files import sha256_text
from ppexport.networks.atd.atd_light import ATDLight
from ppexport.networks.load import state_digest

if TYPE_CHECKING:
    from calibrated import Calibrated

# A shell that starts the tests in the background has them ignore Ctrl-C, which tests of Ctrl-C send.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # One process for every core.
    torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
NAMES = {"atd_light_x2_trained": 2, "atd_light_x4_random": 4, "atd_light_v2_x2_random": 2}


@cache
def golden_arrays(name: str) -> dict[str, NDArray[np.generic]]:
    """All arrays of one golden file."""
    with np.load(GOLDEN / f"{name}_io.npz", allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


@cache
def golden_network(name: str, arch: str) -> ATDLight:
    """The network of one golden file, of version 2 where its weights are; shared, so never changed by a test."""
    arch += "_v2" * ("_v2_" in name)
    return ppexport.load_network(arch=arch, scale=NAMES[name], checkpoint=GOLDEN / f"{name}.safetensors")


@dataclass(frozen=True)
class Case:
    """One golden input."""

    name: str
    case: str

    def __getitem__(self, field: str) -> NDArray[np.generic]:
        return golden_arrays(self.name)[f"{self.case}.{field}"]

    @property
    def lr(self) -> torch.Tensor:
        """(1, 3, h, w)."""
        return torch.from_numpy(self["lr"])

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return tuple(self["lr"].shape[2:])


CASES = [Case(name, key.removesuffix(".lr")) for name in NAMES for key in golden_arrays(name) if key.endswith(".lr")]
golden_cases = pytest.mark.parametrize("case", CASES, ids=[f"{c.name}-{c.case}" for c in CASES])
ARCHS = {"atd_light": "atd", "pp_atd_light": "pp"}
both_archs = pytest.mark.parametrize("arch", list(ARCHS))


@pytest.fixture(autouse=True)
def _scheduled_as_before() -> Iterator[None]:
    """Fail a test after which this thread, and so all that it starts, would have another right to the processors.

    A library that runs as root can take a machine for itself, and then tests that come later fail.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    after = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, *before)
    assert after == before


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def x2() -> ATDLight:
    """PP-ATD-light x2 with trained weights, a copy that a test may change."""
    return copy.deepcopy(golden_network("atd_light_x2_trained", "pp_atd_light"))


def exported_once(factory: pytest.TempPathFactory, network: ATDLight, **wish: Any) -> Path:
    """`export` of *network*, made once in a run of the tests, by whichever worker comes first. Never changed by a test.

    Artifacts are kept by what they are made from: the weights, the shape of the network and what is asked for.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    made_from = state_digest(network), network.arch, repr(network.options), repr(network), repr(sorted(wish.items()))
    folder = root / "exports" / sha256_text("\0".join(made_from))[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "artifact").is_dir():
            ppexport.export(network, out=folder / "artifact", **wish)
    return folder / "artifact"


@pytest.fixture(scope="session")
def artifact(tmp_path_factory) -> Path:
    """The bundled x2 exported for 37x53 pixels, which is no multiple of 16. Never changed by a test."""
    network = ppexport.load_network("pp_atd_light_x2")
    return exported_once(tmp_path_factory, network, backend="onnx", size=(37, 53))


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory) -> Calibrated:
    """A network of two layers, exported and calibrated. Never changed by a test."""
    from calibrated import small_calibrated

    return small_calibrated(tmp_path_factory.mktemp("calibrated"))


def photo(height: int, width: int, name: str = "coffee.png", top: int = 100, left: int = 150) -> NDArray[np.uint8]:
    """A crop of a bundled photograph, uint8 (height, width, 3)."""
    from PIL import Image

    from ppexport.imaging.images import photo_folder

    with Image.open(photo_folder() / name) as image:
        crop = image.convert("RGB").crop((left, top, left + width, top + height))
        return np.asarray(crop)
