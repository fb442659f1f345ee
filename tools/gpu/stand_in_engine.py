"""What the checks of CUDA put in TensorRT's place: an engine that launches a small kernel, by the driver alone.

The session of `ppexport/backends/tensorrt` runs it as it would run a real one. The kernels are PTX, which the driver
compiles for whatever GPU there is, from SM 5.0 on; nothing of CUDA's toolkit is needed.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.tensorrt.run_cuda import Cuda, CudaMemoryError
from ppexport.device.artifact import Artifact, Manifest, read_artifact, write_manifest
from ppexport.errors import ArtifactError, PpexportError, UnavailableError

PTX = """
.version 4.3
.target sm_50
.address_size 64

.visible .entry enlarge(
    .param .u64 lr, .param .u64 sr, .param .u64 tokens,
    .param .u32 count, .param .u32 width, .param .u32 scale, .param .u32 slots
)
{
    .reg .pred %p<2>;
    .reg .b32 %r<14>;
    .reg .b64 %d<6>;
    .reg .f32 %f<1>;
    mov.u32 %r0, %ctaid.x;
    mov.u32 %r1, %ntid.x;
    mov.u32 %r2, %tid.x;
    mad.lo.u32 %r3, %r0, %r1, %r2;
    ld.param.u32 %r4, [count];
    setp.ge.u32 %p0, %r3, %r4;
    @%p0 bra DONE;
    ld.param.u32 %r5, [width];
    ld.param.u32 %r6, [scale];
    div.u32 %r7, %r3, %r5;
    rem.u32 %r8, %r3, %r5;
    div.u32 %r9, %r7, %r6;
    div.u32 %r10, %r8, %r6;
    div.u32 %r11, %r5, %r6;
    mad.lo.u32 %r12, %r9, %r11, %r10;
    ld.param.u64 %d0, [lr];
    cvta.to.global.u64 %d0, %d0;
    mul.wide.u32 %d1, %r12, 4;
    add.u64 %d2, %d0, %d1;
    ld.global.f32 %f0, [%d2];
    ld.param.u64 %d3, [sr];
    cvta.to.global.u64 %d3, %d3;
    mul.wide.u32 %d4, %r3, 4;
    add.u64 %d5, %d3, %d4;
    st.global.f32 [%d5], %f0;
    setp.ne.u32 %p1, %r3, 0;
    @%p1 bra DONE;
    ld.param.u32 %r13, [slots];
    ld.param.u64 %d0, [tokens];
    cvta.to.global.u64 %d0, %d0;
    st.global.u32 [%d0], %r13;
DONE:
    ret;
}

.visible .entry churn(.param .u64 data, .param .u32 count, .param .u32 rounds)
{
    .reg .pred %p<2>;
    .reg .b32 %r<9>;
    .reg .b64 %d<3>;
    mov.u32 %r0, %ctaid.x;
    mov.u32 %r1, %ntid.x;
    mov.u32 %r2, %tid.x;
    mad.lo.u32 %r3, %r0, %r1, %r2;
    ld.param.u32 %r4, [count];
    setp.ge.u32 %p0, %r3, %r4;
    @%p0 bra DONE;
    ld.param.u64 %d0, [data];
    cvta.to.global.u64 %d0, %d0;
    mul.wide.u32 %d1, %r3, 4;
    add.u64 %d2, %d0, %d1;
    ld.global.u32 %r5, [%d2];
    ld.param.u32 %r6, [rounds];
    mov.u32 %r7, 1664525;
    mov.u32 %r8, 1013904223;
LOOP:
    mad.lo.u32 %r5, %r5, %r7, %r8;
    sub.u32 %r6, %r6, 1;
    setp.ne.u32 %p1, %r6, 0;
    @%p1 bra LOOP;
    st.global.u32 [%d2], %r5;
DONE:
    ret;
}
"""
"""`enlarge` repeats pixels and says how many slots it was given; `churn` steps a generator of numbers, which takes as
long as one likes and cannot be cut short."""
FACTOR, ADDEND = 1664525, 1013904223
THREADS = 256
LOG_BYTES = 4096
JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES = 5, 6
"""CU_JIT_ERROR_LOG_BUFFER and CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES."""
WEIGHTS, WORKSPACE = 4 << 20, 1 << 20
"""Bytes on the GPU that the stand-in takes for an engine and for each of its contexts, as a real one would."""


def churned(data: NDArray[np.uint32], rounds: int) -> NDArray[np.uint32]:
    """What `churn` makes of *data* in *rounds*, above 0: x * FACTOR + ADDEND each, composed by doubling."""
    factor, addend, step = 1, 0, (FACTOR, ADDEND)
    while rounds:
        if rounds & 1:
            factor, addend = factor * step[0] % 2**32, (addend * step[0] + step[1]) % 2**32
        step = step[0] * step[0] % 2**32, (step[1] * step[0] + step[1]) % 2**32
        rounds >>= 1
    stepped: NDArray[np.uint64] = data.astype(np.uint64) * np.uint64(factor) + np.uint64(addend)
    return stepped.astype(np.uint32)


def _load_driver() -> Any:
    """The library of CUDA's driver. Raises UnavailableError."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise UnavailableError("the library of NVIDIA's driver, libcuda.so.1, is not installed") from None


class Kernels:
    """The kernels of `PTX` on the GPU that *cuda* uses."""

    def __init__(self, cuda: Cuda) -> None:
        # The runtime makes the GPU's context current, in which the driver loads them.
        cuda.free_device(cuda.device_array(1))
        self._library = _load_driver()
        log = ctypes.create_string_buffer(LOG_BYTES)
        options = (ctypes.c_int * 2)(JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), LOG_BYTES)
        module, source = ctypes.c_void_p(), ctypes.c_char_p(PTX.encode())
        code = self._library.cuModuleLoadDataEx(ctypes.byref(module), source, ctypes.c_uint(2), options, values)
        if code != 0:
            raise ArtifactError(f"the driver cannot compile the kernels (error {code}): {log.value.decode().strip()}")
        self._kernels = {}
        for name in ("enlarge", "churn"):
            kernel = ctypes.c_void_p()
            self._call("cuModuleGetFunction", ctypes.byref(kernel), module, ctypes.c_char_p(name.encode()))
            self._kernels[name] = kernel

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise ArtifactError(f"{name} failed (error {code} of the CUDA driver)")

    def launch(self, name: str, count: int, stream: int, arguments: Sequence[Any]) -> None:
        """Put a kernel with a thread for each of *count* elements into *stream*; *arguments* are of ctypes."""
        blocks, shape = -(-count // THREADS), (1, 1, THREADS, 1, 1, 0)
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        numbers = [ctypes.c_uint(number) for number in (blocks, *shape)]
        handle = ctypes.c_void_p(stream)
        self._call("cuLaunchKernel", self._kernels[name], *numbers, handle, pointers, ctypes.c_void_p())

    def churn(self, data: int, count: int, rounds: int, stream: int) -> None:
        """Put `churn` of *count* numbers at the device address *data* into *stream*."""
        values = (ctypes.c_uint64(data), ctypes.c_uint(count), ctypes.c_uint(rounds))
        self.launch("churn", count, stream, values)


class Context:
    """An execution context: a profile, and buffers by name."""

    def __init__(self, engine: Engine, workspace: int) -> None:
        self.engine, self.profile = engine, 0
        self.addresses: dict[str, int] = {}
        self.workspace = engine.cuda.device_array(workspace)

    def __del__(self) -> None:
        # A context that found no memory has none to free.
        if hasattr(self, "workspace"):
            self.engine.cuda.free_device(self.workspace)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        """Whether there is such a profile."""
        self.profile = index
        return 0 <= index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the profile takes *shape*, which only `slots` can vary."""
        return shape == (1, self.engine.manifest.capacities[self.profile])

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Note the buffer of *name*."""
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Launch the kernel; whether that worked, as TensorRT finds out: it asks for the last error of the thread."""
        engine, m = self.engine, self.engine.manifest
        width = m.size[1] * m.scale
        count = 3 * m.size[0] * m.scale * width
        buffers = [ctypes.c_uint64(self.addresses[name]) for name in ("lr", "sr", "impure_tokens")]
        numbers = [ctypes.c_uint(number) for number in (count, width, m.scale, m.capacities[self.profile])]
        try:
            if engine.waits:
                engine.cuda.wait(stream)
            engine.kernels.launch("enlarge", count, stream, [*buffers, *numbers])
        except PpexportError:
            return False
        return engine.last_error() == 0


class Engine:
    """An engine for the artifact of *manifest*.

    Args:
        cuda, kernels: what runs it.
        last_error: CUDA's last error in this thread.
        manifest: of the artifact.
        waits: whether a run waits for the stream, which cannot be recorded.
        workspaces: {number of a context, from 0: bytes that it takes} where these are not `WORKSPACE`.
    """

    def __init__(
        self,
        cuda: Cuda,
        kernels: Kernels,
        last_error: Callable[[], int],
        manifest: Manifest,
        waits: bool = False,
        workspaces: Mapping[int, int] | None = None,
    ) -> None:
        self.cuda, self.kernels, self.last_error, self.manifest = cuda, kernels, last_error, manifest
        self.waits, self.workspaces, self.contexts = waits, workspaces or {}, 0
        self.names = ["lr", "sr", "impure_tokens", *["slots"] * (len(manifest.capacities) > 1)]
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(manifest.capacities)
        self.weights = cuda.device_array(WEIGHTS)

    def __del__(self) -> None:
        if hasattr(self, "weights"):
            self.cuda.free_device(self.weights)

    def get_tensor_name(self, index: int) -> str:
        """The name of port number *index*."""
        return self.names[index]

    def create_execution_context(self) -> Context | None:
        """A context, None where there is no memory for it."""
        self.contexts += 1
        try:
            return Context(self, self.workspaces.get(self.contexts - 1, WORKSPACE))
        except CudaMemoryError:
            return None


class StandInTensorRT:
    """What a session takes for the module `tensorrt`; *make* makes the engine when it is loaded."""

    __name__, __version__ = "tensorrt", "stand-in"

    class ILogger:
        """TensorRT's severities."""

        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, make: Callable[[], Engine]) -> None:
        self.make = make

    def Runtime(self, logger: Any) -> StandInTensorRT:
        """What loads engines."""
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> Engine:
        """The engine, whatever the *plan*."""
        return self.make()


def stand_in_artifact(folder: Path, size: tuple[int, int], scale: int, capacities: list[int]) -> Artifact:
    """An engine artifact of Pure-Pass for images of *size* (h, w), multiples of 16, in the empty *folder*."""
    plan = b"a stand-in, which no TensorRT loads"
    (folder / "model.engine").write_bytes(plan)
    files = {"model.engine": hashlib.sha256(plan).hexdigest()}
    weights = {"file": "none", "sha256": "0" * 64}
    options = {"colors": 8, "window": 8, "csmf": True}
    manifest = Manifest(
        backend="tensorrt", name="stand-in", arch="pp_atd_light", options=options, scale=scale, size=list(size),
        precision="fp32", flavour="tensorrt", capacities=capacities, mask="graph", tokens=size[0] * size[1],
        files=files, weights=weights, card_sha256="0" * 64, licence="none", created="",
    )  # fmt: skip
    write_manifest(folder, manifest)
    return read_artifact(folder)
