"""What the checks of CUDA share: the project's CUDA, which also counts, and sessions around a stand-in engine."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu.stand_in_engine import Engine, Kernels, StandInTensorRT, stand_in_artifact
from ppexport.backends.tensorrt.run_cuda import TO_DEVICE, Cuda
from ppexport.backends.tensorrt.run_engine import TensorRTRunner
from ppexport.device.runner import Prepared

SIZE, SCALE = (256, 256), 2
"""Of the LR image: large enough for a leak of one of its buffers to show within the rounds."""
ROUNDS, WARM_UP = 200, 20
CHURNS = 1 << 22
"""Steps of the slow kernel, some ten milliseconds of a GPU."""
ODD_SIZES = (1, 3, 127, 4095, 4097, (1 << 20) + 1, (32 << 20) + 1)
"""Bytes of the copies."""


class CheckError(Exception):
    """What a check found to be wrong, in one sentence."""


def require(holds: object, sentence: str) -> None:
    """Raise CheckError with *sentence* unless something *holds*."""
    if not holds:
        raise CheckError(sentence)


class CountedCuda(Cuda):
    """The project's CUDA, which also counts what is held, and has the few calls that only the checks need."""

    FREES = {  # noqa: RUF012
        "cudaFree": "cudaMalloc", "cudaFreeHost": "cudaHostAlloc", "cudaStreamDestroy": "cudaStreamCreate",
        "cudaGraphExecDestroy": "cudaGraphInstantiateWithFlags", "cudaEventDestroy": "cudaEventCreate",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.held: set[tuple[str, int]] = set()
        self.freed_twice: list[str] = []

    def _new(self, name: str, *arguments: Any) -> int:
        handle = super()._new(name, *arguments)
        self.held.add((name, handle))
        return handle

    def _release(self, name: str, handle: int) -> None:
        super()._release(name, handle)
        made_by = self.FREES.get(name)
        if made_by is None or not handle:
            return
        if (made_by, handle) not in self.held:
            self.freed_twice.append(name)
        self.held.discard((made_by, handle))

    def check_held(self, what: Iterable[tuple[str, int]] = ()) -> None:
        """Raise CheckError unless *what* is held and nothing else, and nothing was freed twice."""
        extra = Counter(name for name, _ in self.held ^ set(what))
        require(not extra, f"still held after closing: {dict(extra)}")
        require(not self.freed_twice, f"freed twice: {self.freed_twice}")

    def number(self, name: str) -> int:
        """What a function writes into its only argument, an int."""
        found = ctypes.c_int()
        self._call(name, ctypes.byref(found))
        return found.value

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the GPU."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def last_error(self) -> int:
        """CUDA's last error in this thread, which is forgotten by asking."""
        return int(self._library.cudaGetLastError())

    def event(self) -> int:
        """A new event."""
        return self._new("cudaEventCreate")

    def record(self, event: int, stream: int) -> None:
        """Let *event* happen when *stream* is through what was put into it so far."""
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def wait_for(self, event: int, stream: int) -> None:
        """Let *stream* go on after *event*."""
        self._call("cudaStreamWaitEvent", ctypes.c_void_p(stream), ctypes.c_void_p(event), ctypes.c_uint(0))

    def copy_wrongly(self, target: int, source: NDArray[Any], stream: int) -> None:
        """A copy in a direction that does not exist."""
        self._copy(target, source.ctypes.data, source.nbytes, TO_DEVICE + 40, stream)


def used_memory() -> int:
    """Bytes of main memory that this process has."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise CheckError("/proc does not tell this process' memory")


class Bench:
    """What the checks share: CUDA, the kernels, an artifact in *folder*, and one image for each of its two profiles.

    The other arguments are for tests, which have no GPU: the size of an image (h, w), the rounds with those before
    anything counts, steps of the slow kernel, and sizes of copies in bytes.
    """

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int] = SIZE,
        rounds: tuple[int, int] = (ROUNDS, WARM_UP),
        churns: int = CHURNS,
        sizes: tuple[int, ...] = ODD_SIZES,
    ) -> None:
        self.cuda = CountedCuda()
        self.kernels = Kernels(self.cuda)
        self.rounds, self.churns, self.sizes = rounds, churns, sizes
        tokens = size[0] * size[1]
        self.artifact = stand_in_artifact(folder, size, SCALE, [tokens // 4, tokens])
        flat = np.full((1, 3, *size), 0.25, np.float32)
        noise = np.random.default_rng(1).random((1, 3, *size), np.float32)
        with closing(self.open()) as runner:
            # Choosing a capacity takes longer than a run: the images of the rounds are prepared once.
            self.flat, self.noise = runner.prepare(flat), runner.prepare(noise)

    def forget(self) -> None:
        """Count from here on: what a failed check left on the GPU is no fault of the next."""
        self.cuda.held.clear()
        self.cuda.freed_twice.clear()
        self.cuda.last_error()

    def open(self, **engine: Any) -> TensorRTRunner:
        """The project's session around a stand-in with the settings *engine*."""

        def make() -> Engine:
            return Engine(self.cuda, self.kernels, self.cuda.last_error, self.artifact.manifest, **engine)

        return TensorRTRunner(self.artifact, StandInTensorRT(make), self.cuda)

    def run(self, runner: TensorRTRunner, image: Prepared, change: float = 0.0) -> None:
        """Run *image*, made brighter by *change*, and compare picture and capacity with NumPy's."""
        image = image._replace(lr=image.lr + np.float32(change))
        result = runner.run(image)
        wrong = int((result.sr != image.lr.repeat(SCALE, axis=2).repeat(SCALE, axis=3)).sum())
        require(wrong == 0, f"{wrong} of {result.sr.size} values are not NumPy's")
        require(
            result.impure_tokens == result.capacity == image.capacity,
            f"the engine had {result.impure_tokens} slots, and the session says {result.capacity}, for an image that "
            f"takes {image.capacity}",
        )
