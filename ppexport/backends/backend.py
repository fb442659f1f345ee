"""What a backend can do: one `Backend` for each, found in `ppexport.backends` and through entry points.

A record is read without torch, pydantic and the backend's own libraries, which its methods import when they are
called. A new backend is one folder with a `BACKEND`, and another package names its own in the entry points
`ppexport.backends`. Nothing outside that folder compares the name of a backend with a text.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ppexport.backends.choices import settle
from ppexport.device.artifact import Artifact, read_artifact
from ppexport.device.runner import Runner, check_threads
from ppexport.device.target import runtimes
from ppexport.errors import ArtifactError, InputError, UnavailableError
from ppexport.plugins import discover

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydantic import BaseModel

    from ppexport.device.runner import Arrays
    from ppexport.device.target import Runtime
    from ppexport.networks.architecture import Architecture
    from ppexport.networks.card import Card
    from ppexport.networks.network import Network
    from ppexport.quantize.recipe import Quantisation
    from ppexport.twin.twin import StaticTwin

LOGGER = logging.getLogger("ppexport")
Step = Callable[[str], None]
"""Receives the name of every stage, for a progress display."""
UnitRun = Callable[[Sequence["Arrays"]], tuple[list["Arrays"], dict[str, Any]]]
"""Runs an artifact on one compute unit: what a model takes, for every input -> outputs, and where operations ran."""
NEAR_TIE = 1e-6
"""Two categories closer than this may fall either way in fp32."""
HALF_TIE = 1e-3
"""The same in fp16, whose roundings reach the similarities through the tokens, where what a choice was made from cannot
be seen (`--against`, without torch); more where the saved run has measured more. Measured on all inputs: of the flips
that no earlier flip explains, the surest led by 2.1e-4 for the bundled x2 at 32x32, by 1.5e-3 for x4 at 64x64."""


def model_facts(twin: StaticTwin, card: Card, capacities: Sequence[int]) -> dict[str, str]:
    """The metadata that every model file has, by which a runner recognises it as the one in the manifest."""
    return {
        "ppexport.name": card.name,
        "ppexport.arch": card.arch,
        "ppexport.scale": str(twin.scale),
        "ppexport.size": f"{twin.size[0]}x{twin.size[1]}",
        "ppexport.capacities": ",".join(map(str, capacities)),
        "ppexport.card_sha256": card.hash(),
    }


@dataclass(frozen=True)
class Gate:
    """What a pair of parity must meet on every input."""

    psnr: float
    """Least PSNR between the outputs, in dB, peak 1."""
    max_abs: float = math.inf
    """Largest absolute error."""
    task_change: float = math.inf
    """Largest change of the mean PSNR-Y against ground truth, in dB: as it runs, and with the same routing."""
    near_tie: float = NEAR_TIE
    """Two categories closer than this may fall either way."""
    choice_tie: float = NEAR_TIE
    """The same where the reference chooses from the very numbers that the other one chose from: more only where the
    choice itself is computed in half precision."""

    @property
    def flips_count(self) -> bool:
        """Whether any flip is allowed; PSNR-Y is then judged with them, not with the reference's categories."""
        return math.isinf(self.near_tie)


FP32_GATE = Gate(psnr=90.0, task_change=0.001)
FP16_GATE = Gate(psnr=55.0, task_change=0.02, near_tie=HALF_TIE)
W8_GATE = Gate(psnr=30.0, task_change=0.10, near_tie=HALF_TIE)
"""Weights of 8 bits are judged by the task; below 30 dB they are not these weights."""
INT8_GATE = Gate(psnr=0.0, task_change=0.10, near_tie=math.inf)
"""Of int8 only the picture's quality is judged, flips and all: how far it is from fp32, and how many tokens chose
another category, is reported."""


@dataclass(frozen=True)
class Request:
    """What a backend is to build, checked as far as that is possible without the network."""

    card: Card
    architecture: Architecture
    size: tuple[int, int]
    """(h, w) of the LR image, before padding."""
    precision: str
    capacities: tuple[int, ...]
    """Slots of category attention, ascending; several are a capacity set. () for a network without routing."""
    mask: str
    """"graph", "input" or "none", as in the manifest."""
    options: Any
    """An instance of the backend's options model."""

    @property
    def is_set(self) -> bool:
        """Whether the number of slots is chosen with every image."""
        return len(self.capacities) > 1


@dataclass(frozen=True)
class BuildJob(Request):
    """A request with the network that it is for."""

    quantisation: Quantisation | None
    """What a calibration is needed for, None where nothing is."""
    network: Network
    folder: Path
    """Where the files go."""
    step: Step

    def twin(self, capacity: int | None = None, flavour: str = "portable") -> StaticTwin:
        """The twin with *capacity* slots, the largest capacity if left out."""
        from ppexport.twin.twin import make_twin

        largest = self.capacities[-1] if self.capacities else None
        return make_twin(self.network, self.size, largest if capacity is None else capacity, flavour)


@dataclass(frozen=True)
class Built:
    """What a backend has built."""

    files: Sequence[str]
    """Names in the job's folder; the first is the model that a runtime loads."""
    flavour: str = "portable"
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the manifest: `build`, `quantisation`, `activation_bytes`."""


class Inside(NamedTuple):
    """What an artifact computed on the way to its picture."""

    sr: NDArray[np.float32]
    """(1, 3, h * scale, w * scale)."""
    impure_tokens: int
    categories: NDArray[np.int64]
    """(layers, n); (0, 0) of a network without routing."""
    labels: NDArray[np.int64] | None
    """(n,) or (1, 1, H', W'): the Pure-Pass label of every pixel; None where the mask is not computed inside."""
    pure: NDArray[np.bool_] | None
    """(n,)."""


class ChosenFrom(NamedTuple):
    """What a layer chooses categories from."""

    tokens: NDArray[np.float32]
    """(n, c), the layer's input."""
    dictionary: NDArray[np.float32] | None
    """(t, c); None for the constant one that a block starts with."""


class Probe(ABC):
    """An artifact, opened for looking into: run with its routing recorded or, where it can be, injected."""

    injects = True
    """Whether categories can be injected; else an artifact only shows its own."""
    gives_picture = True
    """Whether the picture of `run` is the artifact's. If not, it is that of a copy which was cut open, and the shipped
    file is run for the picture as well."""
    elsewhere = False
    """Whether that copy runs in another runtime than the shipped file, whose own choices it can but suggest."""

    @abstractmethod
    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """Run the model's *inputs* (`device.runner.feeds`); *categories* (layers, n) replace the tokens' own choices,
        which are still returned."""

    @abstractmethod
    def layers(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """The output (n, c) of every routed layer, in the order of `StaticTwin.routed_layers`."""

    @abstractmethod
    def chosen_from(self, inputs: Arrays, categories: NDArray[np.int64]) -> list[ChosenFrom]:
        """What every layer chooses its categories from, with injected *categories*, or its own."""

    def close(self) -> None:  # noqa: B027
        """Release what was opened."""


PROFILED_RUNS = 12
"""Runs whose operations are timed; of each operation the median counts."""
PROFILE_WARM_UP = 2
"""Runs before them, whose times are not used."""


@dataclass(frozen=True)
class Operation:
    """One operation of a profile by layer."""

    name: str
    kind: str
    """What the runtime calls it."""
    ms: float
    """Median milliseconds of the runs; where a runtime only estimates, its share of a run, of 1."""
    names: tuple[str, ...] = ()
    """The names of what it was fused from, which say where it comes from, in place of its own name."""
    module: str | None = None
    """Where it comes from, in a format that says so itself."""


class Measured(NamedTuple):
    """What a benchmark program has measured, in a module that `Runtime.program` names."""

    ns: Sequence[int]
    """Every sample."""
    peak: int
    """Bytes; 0 where it does not tell."""
    load: int
    """Nanoseconds that opening the model took; 0 where it does not tell."""
    first: int
    """Nanoseconds of the first run; 0 where it does not tell."""


class Backend(ABC):
    """One kind of artifact."""

    name: str
    """As `--backend` takes it."""
    summary: str
    extra: str
    """The pip extra that installs what `build` needs."""
    modules: tuple[str, ...]
    """What `build` imports, so that a missing one is an error before torch is loaded."""
    precisions: Mapping[str, Gate]
    """{precision: the gate that its artifacts must meet in parity}."""
    calibrated: frozenset[str] = frozenset()
    """Precisions that need a calibration."""
    may_calibrate: frozenset[str] = frozenset()
    """Precisions for which a calibration is used if it is given."""
    recipes: frozenset[str] = frozenset()
    """Precisions for which a recipe says what becomes int8."""
    set_steps: int = 1
    """Capacities of a capacity set; 1 where a set is of no use."""
    kind: str = ""
    """The backend whose runtimes run what is built; "" is this one."""
    rounded: frozenset[str] = frozenset()
    """Precisions that its usual runtime computes with more bits than the file says: only `probe` shows them."""
    levels_only: bool = False
    """Whether a mask that is computed inside is exact for pictures of 8 bits only, since they are read in fp16, which
    does not tell apart what lies between their levels."""
    imitates: str = ""
    """What its usual runtime is where it only imitates a device, such as "emulator", for the names of columns."""
    builds_slowly: bool = False
    """Whether a file of a single layer takes half a minute, so that tests build few of them."""
    opens_slowly: bool = False
    """Whether its usual runtime is a program that takes seconds to start, so that tests open few artifacts."""
    usual: str = "its own runtime"
    """What `open` runs an artifact in, for people."""
    runtimes: tuple[Runtime, ...] = ()
    """Of a backend outside this package; those in it have theirs in `run*.py`, which boards get."""

    def options(self) -> type[BaseModel]:
        """The model of the options that are this backend's own, as `-O key=value` takes them."""
        from ppexport.backends.options import NoOptions

        return NoOptions

    def lacking(self) -> str:
        """What this machine lacks to build, beside `modules`, as a sentence with the way out; "" if nothing."""
        return ""

    def check(self, request: Request) -> None:  # noqa: B027
        """Refuse what cannot be built, before torch is loaded.

        Raises:
            InputError: these options do not fit together.
            UnavailableError: something is missing on this machine.
        """

    def prefers_host_mask(self, options: Any, is_set: bool) -> bool:
        """Whether the Pure-Pass mask should be an input unless something else is asked for."""
        return False

    @abstractmethod
    def build(self, job: BuildJob) -> Built:
        """Write the model's files into the job's folder, compare them with the twin, and say what they are.

        Raises:
            ExportError: a stage or the comparison failed.
        """

    @abstractmethod
    def open(self, artifact: Artifact, *, threads: int | None = None, trust: bool = False) -> Runner:
        """A runner for *artifact* on this machine, in the backend's usual runtime."""

    def probe(self, runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> Probe | None:
        """The artifact of *runner*, opened for looking into; None where it does not show what happens inside.

        Args:
            runner: an open runner of the artifact.
            twin: the twin that it was made from, for a backend that has to build a second, open copy.
            folder: where such a copy and slow results may be kept until the run is complete.
        """
        return None

    def unit_runs(self, runner: Runner, units: Sequence[str]) -> dict[str, UnitRun]:
        """{compute unit: what runs the artifact of *runner* on it}, for the named *units* of this machine.

        Raises:
            InputError: this backend has no compute units, or not these.
            UnavailableError: they are on another kind of machine.
        """
        raise InputError(
            f"--units is for artifacts whose runtime offers compute units, which {self.name} does not: "
            "leave --units out"
        )


@cache
def backends() -> dict[str, Backend]:
    """{name: backend} of all that are registered."""
    found: list[Backend] = discover("ppexport.backends", "BACKEND", "ppexport.backends")
    return {backend.name: backend for backend in found}


def find_backend(name: str) -> Backend:
    """The backend called *name*. Raises InputError with the known names."""
    known = backends()
    if name not in known:
        raise InputError(f"backend is one of {', '.join(known)}, not {name!r}")
    return known[name]


def open_artifact(
    path: str | Path, *, runtime: str | None = None, threads: int | None = None, trust: bool = False
) -> Runner:
    """A runner for the artifact folder *path*, called with float32 (1, 3, h, w) in [0, 1]. Needs no torch.

    It returns `(sr, impure_tokens, capacity)`, sr float32 and not clipped. It is a context manager: leaving the block,
    or `close()`, frees what it holds.

    Args:
        path: the folder that `export` or `ppexport build` made.
        runtime: None is the backend's usual one; a name of `ppexport profile --runtime`, such as "openvino"; "auto" is
            what `ppexport tune` chose for this artifact on this machine, and the usual one where it chose nothing or
            *threads* are given.
        threads: of the runtime, at most one for each processor; None is one for each physical core.
        trust: load a TensorRT engine that this user did not build. Loading an engine runs the code in it.

    Raises:
        ArtifactError: the folder is damaged, or holds an engine of another machine.
        UnavailableError: its runtime or GPU is missing.
        InputError: the engine is not trusted, threads are no such number, or the runtime does not run the artifact.
    """
    check_threads(threads)
    artifact = read_artifact(Path(path))
    backend = backends().get(artifact.manifest.backend)
    if backend is None:
        raise ArtifactError(f"{path} is for backend {artifact.manifest.backend!r}, which this ppexport cannot run")
    settled = settle(artifact, runtime, threads, trust)
    if settled.note:
        LOGGER.warning("note: %s", settled.note)
    if settled.target is None:
        return backend.open(artifact, threads=threads, trust=trust)
    try:
        return runtimes()[settled.target.runtime].open(artifact, settled.target)
    except UnavailableError as error:
        if settled.why != "tuned":
            raise
        raise UnavailableError(
            f"{error}; ppexport tune chose this runtime: run it again, or forget the choice with --forget"
        ) from None


def missing_modules(backend: Backend) -> list[str]:
    """Those of a backend's modules that are not installed here."""
    return [module for module in backend.modules if find_spec(module) is None]
