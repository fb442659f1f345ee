"""What every backend's runner is: the base class owns the public call and its checks, a subclass one small method.

Imports the standard library and NumPy only: this file runs on devices.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from ctypes.util import find_library
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np

from ppexport.device.artifact import Artifact, Manifest
from ppexport.device.capacities import smallest_capacity
from ppexport.device.centers import check_centers
from ppexport.device.cores import usable_cores, usable_processors
from ppexport.device.mask import value_range
from ppexport.errors import ArtifactError, InputError, present

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no numpy.typing, and Python 3.8, where `dict[...]` fails.
    from numpy.typing import NDArray

    Image = NDArray[np.float32]
    Arrays = dict[str, NDArray[Any]]


def check_threads(threads: Any, here: bool = True) -> int | None:
    """*threads* as an int, or None, which leaves the number to whoever opens the runtime.

    Args:
        threads: A number of threads as a user gave it.
        here: Whether this machine computes; the number of cores of another one is not known here.

    Raises:
        InputError: It is not a whole number from 1 to the processors that this process may use.
    """
    if threads is None:
        return None
    count = -1 if isinstance(threads, bool) or not isinstance(threads, Integral) else int(threads)
    if count < 1:
        raise InputError(f"threads are a whole number from 1, not {threads!r}")
    most = usable_processors()
    if here and count > most:
        raise InputError(
            f"{count} threads are more than the {most} that can help here, one for each processor that this process "
            f"may use: use {most} or fewer, or leave the number out, which gives every physical core one"
        )
    return count


def thread_count(threads: Any) -> int:
    """*threads* as `check_threads` takes them; for None, one for each physical core that this process may use."""
    return check_threads(threads) or usable_cores()


def refuse_threads(threads: Any, runtime: str) -> None:
    """Raise InputError for any number of *threads*, which *runtime* has no use for."""
    if check_threads(threads) is not None:
        raise InputError(f"{runtime} takes no number of threads: leave it out")


class Result(NamedTuple):
    """One picture, and what its routing needed."""

    sr: Image
    """float32 (1, 3, h * scale, w * scale), not clipped."""
    impure_tokens: int
    """Tokens that were routed, which take slots: not pure, or in hard windows; 0 for a network without routing."""
    capacity: int
    """Slots it had for them; with fewer slots than impure tokens the picture is not the network's."""


class Prepared(NamedTuple):
    """A checked input, and what the host decided about it."""

    lr: Image
    """float32 (1, 3, h, w)."""
    pure: NDArray[np.bool_] | None
    """The Pure-Pass mask (H', W') of the padded input, None where the host needs none."""
    capacity: int
    """Slots to run with."""


def feeds(manifest: Manifest, prepared: Prepared) -> Arrays:
    """The inputs of a model: `lr`, `slots` (1, C) of a capacity set, `mask` (1, 1, H', W') where it is an input."""
    inputs: Arrays = {"lr": prepared.lr}
    if len(manifest.capacities) > 1:
        inputs["slots"] = np.zeros((1, prepared.capacity), np.int32)
    if manifest.mask == "input":
        inputs["mask"] = present(prepared.pure, "the mask").astype(np.float32)[None, None]
    return inputs


BEYOND_HALF = "numbers inside it exceed 65504, the largest of fp16"


def way_out(precision: str, calibrates: bool, has_fp32: bool) -> str:
    """Why an artifact of *precision* returns values that are not finite, and what to do about it; see `Runner`."""
    if not has_fp32:
        return f"{BEYOND_HALF}, and what runs it has nothing wider: export it for a CPU"
    if precision in ("fp32", "int8"):
        return "the weights are damaged or too large for fp32"
    way = f"{BEYOND_HALF}: export it as fp32"
    if calibrates:
        way += ", or calibrate the model, which keeps in fp32 what exceeds fp16 (`ppexport calibrate`, `--calibration`)"
    return way


Opened = TypeVar("Opened", bound="Runner")


class Runner(ABC):
    """An opened artifact: `runner(lr)` super-resolves one image of exactly `runner.size`.

    A context manager: leaving the block, or `close()`, frees what it holds.

    `run(prepare(lr))` is the same in two steps, so that one image can be prepared while another runs.
    """

    calibrates = False
    """Whether an export in fp16 keeps in fp32 what a calibration found to exceed fp16."""
    has_fp32 = True
    """Whether anything is computed in fp32 here."""
    variant = ""
    """What tells it from the usual runner of its backend, such as a device, for the names of columns."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.size: tuple[int, int] = artifact.size
        self.scale: int = artifact.scale
        self._closed = False

    def check_facts(self, facts: Mapping[str, str]) -> None:
        """Raise ArtifactError unless *facts*, what the model file says of itself, are the manifest's."""
        m = self.artifact.manifest
        said = {"ppexport.capacities": ",".join(map(str, m.capacities)), "ppexport.card_sha256": m.card_sha256}
        for key, value in said.items():
            if facts.get(key) != value:
                raise ArtifactError(
                    f"{self.artifact.model_file}: {key} is {facts.get(key)!r}, the manifest says {value!r}"
                )

    def close(self) -> None:
        """Free device memory, host memory, streams and whatever else is held; may be called again."""
        if not self._closed:
            self._closed = True
            self._close()

    def _close(self) -> None:  # noqa: B027
        """Free what a subclass holds beside its session, which ends with the runner."""

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, lr: Image) -> Result:
        """Super-resolve *lr*, float32 (1, 3, h, w) in [0, 1].

        Raises InputError for another type or shape, or for values that are not finite. Warns of values far outside
        [0, 1], such as 0 to 255.
        """
        return self.run(self.prepare(lr))

    def prepare(self, lr: Image, centers: NDArray[np.int32] | None = None) -> Prepared:
        """Check *lr*, and choose the capacity where there are several. Raises InputError as the call does.

        *centers* (K, 3), integers from 0 to 255, are for adaptive colour centres: those of the picture that *lr* is a
        tile of, as `Manifest.centers` chooses them, or of a video's frame before. If left out, *lr* chooses its own.
        """
        expected = (1, 3, *self.size)
        if not isinstance(lr, np.ndarray) or lr.dtype != np.float32 or lr.shape != expected:
            got = f"{lr.dtype} {lr.shape}" if isinstance(lr, np.ndarray) else type(lr).__name__
            raise InputError(f"{self.artifact.path.name} takes one float32 image {expected} in [0, 1], not {got}")
        if not np.isfinite(value_range(lr)).all():
            raise InputError("the image holds NaN or infinite values")
        lr, manifest = np.ascontiguousarray(lr), self.artifact.manifest
        if centers is not None:
            if manifest.options.get("centres", "fixed") == "fixed":
                raise InputError(f"{self.artifact.path.name} has no adaptive colour centres: leave the centres out")
            try:
                check_centers(centers, manifest.options["colors"])
            except ValueError as error:
                raise InputError(str(error)) from None
        if not manifest.needs_host_mask:
            # A network without routing has no slots.
            return Prepared(lr, None, manifest.capacities[-1] if manifest.capacities else 0)
        # A copy, because the mask reads pixel by pixel.
        pure = manifest.pure(np.ascontiguousarray(lr[0].transpose(1, 2, 0)), centers)
        return Prepared(lr, pure, smallest_capacity(manifest.capacities, manifest.routed(pure)))

    def run(self, prepared: Prepared) -> Result:
        """Super-resolve an image that `prepare` made ready. Raises ArtifactError as `check_picture` does."""
        result = self.run_unchecked(prepared)
        self.check_picture(result.sr)
        return result

    def run_unchecked(self, prepared: Prepared) -> Result:
        """As `run`, for a caller that checks the picture itself: `parity` reports what is not finite."""
        if self._closed:
            raise InputError(f"the runner of {self.artifact.path} was closed: open the artifact again")
        return self._run(prepared)

    def check_picture(self, sr: Image, where: str = "") -> None:
        """Raise ArtifactError, naming the artifact, *where* and the way out, if *sr* holds NaN or infinite values.

        Also if it has another shape than it should. Converted to 8 bits NaN would become an ordinary colour, black as a
        rule. The check takes 4 microseconds for a picture of 128x128 and 50 for one of 512x512.
        """
        expected = (1, 3, *(side * self.scale for side in self.size))
        if sr.shape != expected:
            raise ArtifactError(f"{self.artifact.path} returned {sr.shape}, expected {expected}")
        if not np.isfinite(sr).all():
            why = way_out(self.artifact.manifest.precision, self.calibrates, self.has_fp32)
            raise ArtifactError(f"{self.artifact.path} returned NaN or infinite values{where}: {why}")

    @abstractmethod
    def _run(self, prepared: Prepared) -> Result:
        """Run a prepared image."""


class NamedSession(Protocol):
    """An opened model that takes and returns arrays by name, and has metadata of its own."""

    @property
    def facts(self) -> Mapping[str, str]:
        """The model's own metadata."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """All outputs for the inputs that `feeds` makes."""


class SessionRunner(Runner):
    """A runner over a `NamedSession`."""

    def __init__(self, artifact: Artifact, session: NamedSession) -> None:
        """Raises ArtifactError where *session* is not of what the manifest says."""
        super().__init__(artifact)
        self.session = session
        self.check_facts(session.facts)

    def _run(self, prepared: Prepared) -> Result:
        found = self.session.run(feeds(self.artifact.manifest, prepared))
        for name in ("sr", "impure_tokens"):
            if name not in found or not found[name].size:
                raise ArtifactError(f"{self.artifact.model_file} computes no {name}: no export made it")
        count = found["impure_tokens"].reshape(-1)[0]
        if not np.isfinite(count):
            raise ArtifactError(f"{self.artifact.model_file} counts {count} tokens: no export made it")
        return Result(np.asarray(found["sr"], np.float32), int(count), prepared.capacity)


# Denormal numbers as zeros while a runtime computes, and at no other time.
#
# Softmax leaves denormals where a weight is very small, and x86 cores take a hundred times as long over them. Whether
# they count as zeros is a mode of each thread. ONNX Runtime and OpenVINO set it in the threads that they own, and in
# the thread that opens a model (ONNX Runtime only for the first model of a process), but part of every run is computed
# in the thread that calls it, and neither ever restores the mode. Without `Flushed` a caller's NumPy would lose
# denormals for good, and a model that is run in another thread than the one that opened it would be slow.
#
# The mode is a register (MXCSR), which C libraries save and restore with the floating-point environment. Only 64-bit
# x86 under Linux, Android or macOS is handled: on other processors the runtimes leave the mode alone, and under Windows
# they still change the caller's.


FLUSH = 0x8040
"""Bits of MXCSR: results become zero (15), operands count as zero (6)."""
_PLACES = {"darwin": (4, 1), "linux": (8, 7), "android": (8, 7)}
"""System -> how many 32-bit numbers its `fenv_t` has, and which of them is MXCSR."""


def _environment() -> tuple[Any, Any, int] | None:
    """The C library, its type `fenv_t`, and which of its numbers is MXCSR; None where there is no such register."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.maxsize < 1 << 32 or sys.platform not in _PLACES:
        return None
    words, place = _PLACES[sys.platform]
    # Not CDLL, which lets other threads take Python's lock at every call.
    library = ctypes.PyDLL(None)
    if not hasattr(library, "fegetenv"):
        library = ctypes.PyDLL(find_library("m"))
    return (library, ctypes.c_uint32 * words, place) if hasattr(library, "fegetenv") else None


_ENVIRONMENT = _environment()


class Flushed:
    """`with Flushed():` makes the calling thread take denormals as zeros, and restores its mode afterwards."""

    def __enter__(self) -> None:
        if _ENVIRONMENT is None:
            return
        library, kind, place = _ENVIRONMENT
        self._before = kind()
        library.fegetenv(self._before)
        inside = kind(*self._before)
        inside[place] |= FLUSH
        library.fesetenv(inside)

    def __exit__(self, *_: object) -> None:
        if _ENVIRONMENT is not None:
            _ENVIRONMENT[0].fesetenv(self._before)
