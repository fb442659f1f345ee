"""The few functions of the CUDA runtime that running an engine takes, by ctypes: no torch, no cuda-python.

Not tested on hardware: the machines of this project have no GPU. Tests play the two libraries of CUDA on the CPU;
`tools/cuda_checks.py` runs the same checks on a GPU. Everything that calls CUDA is in this file, so that the first run
on a board has one place to look at.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppexport.errors import ArtifactError, UnavailableError

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no such module.
    from numpy.typing import DTypeLike, NDArray

NAMES = (
    "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so", "/usr/local/cuda/lib64/libcudart.so",
)  # fmt: skip
"""From 11.4 on, the first with `cudaGraphInstantiateWithFlags`."""
TO_DEVICE, TO_HOST = 1, 2
"""cudaMemcpyHostToDevice and cudaMemcpyDeviceToHost."""
RELAXED = 2
"""cudaStreamCaptureModeRelaxed: other threads, which prepare the next image, may do as they like meanwhile."""
OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation."""
MEMORY = (
    "the GPU has not enough free memory for this engine: end other programs that use it, or export a smaller --size or "
    "fewer capacities"
)
NO_GPU = "this machine has no NVIDIA GPU that CUDA can use, and a TensorRT engine runs on nothing else"


class CudaMemoryError(UnavailableError):
    """The memory of the GPU, or the pinned memory beside it, ran out; the artifact's files are sound."""


def _libraries() -> Iterator[Any]:
    """The CUDA runtimes that can be loaded: the system's, then those in NVIDIA's packages for Python, newest first."""
    package = find_spec("nvidia")
    folders = None if package is None else package.submodule_search_locations
    wheels = [file for folder in folders or () for file in Path(folder).glob("*/lib/libcudart.so.*")]
    names = (*NAMES, find_library("cudart"), *map(str, sorted(wheels, key=lambda file: file.name, reverse=True)))
    for name in dict.fromkeys(filter(None, names)):
        with suppress(OSError):
            yield ctypes.CDLL(name)


class Cuda:
    """The CUDA runtime on the first GPU. Handles and device addresses are plain numbers."""

    def __init__(self) -> None:
        """Load the first runtime that finds a GPU; one that is newer than the driver finds none.

        Raises UnavailableError where none does.
        """
        reasons = []
        for library in _libraries():
            library.cudaGetErrorString.restype = ctypes.c_char_p
            count = ctypes.c_int()
            code = library.cudaGetDeviceCount(ctypes.byref(count))
            if code == 0 and count.value > 0:
                self._library = library
                return
            reasons.append(library.cudaGetErrorString(code).decode(errors="replace") if code else "it counts no GPU")
        raise UnavailableError(f"{NO_GPU} ({(reasons or ['the CUDA runtime, libcudart, is not installed'])[0]})")

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a function. Raises CudaMemoryError, or ArtifactError with CUDA's own words."""
        code = self._try(name, *arguments)
        if code == OUT_OF_MEMORY:
            raise CudaMemoryError(f"{MEMORY} ({name}: CUDA error {code}, out of memory)")
        if code != 0:
            text = self._library.cudaGetErrorString(code).decode(errors="replace")
            raise ArtifactError(f"{name} failed: {text} (CUDA error {code})")

    def _try(self, name: str, *arguments: Any) -> int:
        """The error code of a call, 0 for none."""
        code: int = getattr(self._library, name)(*arguments)
        if code != 0:
            # CUDA keeps it until somebody asks. Who else uses the library asks after kernels, and would blame those.
            self._library.cudaGetLastError()
        return code

    def _new(self, name: str, *arguments: Any) -> int:
        """Call a function whose first argument receives a handle."""
        handle = ctypes.c_void_p()
        self._call(name, ctypes.byref(handle), *arguments)
        return handle.value or 0

    def device_array(self, size: int) -> int:
        """The address of *size* new bytes on the GPU."""
        return self._new("cudaMalloc", ctypes.c_size_t(size))

    def host_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A new array in pinned host memory, which is copied to and from without a detour, until `free_host`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._new("cudaHostAlloc", ctypes.c_size_t(size), ctypes.c_uint(0))
        raw = np.ctypeslib.as_array((ctypes.c_byte * size).from_address(address))
        return raw.view(dtype).reshape(shape)

    def stream(self) -> int:
        """A new stream."""
        return self._new("cudaStreamCreate")

    def upload(self, target: int, source: NDArray[Any], stream: int) -> None:
        """Copy the pinned *source* to the device address *target*, in *stream*."""
        self._copy(target, source.ctypes.data, source.nbytes, TO_DEVICE, stream)

    def download(self, target: NDArray[Any], source: int, stream: int) -> None:
        """Copy from the device address *source* to the pinned *target*, in *stream*."""
        self._copy(target.ctypes.data, source, target.nbytes, TO_HOST, stream)

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        pointers = (ctypes.c_void_p(target), ctypes.c_void_p(source))
        self._call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(size), ctypes.c_int(kind), ctypes.c_void_p(stream))

    def wait(self, stream: int) -> None:
        """Return when *stream* has done everything."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        """Record what is put into *stream* from now on instead of running it."""
        self._call("cudaStreamBeginCapture", ctypes.c_void_p(stream), ctypes.c_int(RELAXED))

    def end_capture(self, stream: int) -> int:
        """The recorded work, as a graph that `launch` runs."""
        graph = ctypes.c_void_p()
        self._call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            return self._new("cudaGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
        finally:
            self._release("cudaGraphDestroy", graph.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """Put a recorded graph into *stream*."""
        self._call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def _release(self, name: str, handle: int) -> None:
        """Give something back. Whether that works does not matter: after an earlier error CUDA refuses every call."""
        self._try(name, ctypes.c_void_p(handle))

    def free_device(self, address: int) -> None:
        """Free what `device_array` allocated; 0 is nothing."""
        self._release("cudaFree", address)

    def free_host(self, array: NDArray[Any]) -> None:
        """Free what `host_array` allocated; *array* must not be used any more."""
        self._release("cudaFreeHost", array.ctypes.data)

    def destroy_stream(self, stream: int) -> None:
        """End a stream."""
        self._release("cudaStreamDestroy", stream)

    def destroy_graph(self, graph: int) -> None:
        """Free a recorded graph."""
        self._release("cudaGraphExecDestroy", graph)
