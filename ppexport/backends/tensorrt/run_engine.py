"""Runs a TensorRT engine: buffers, one execution context and one CUDA graph per profile.

What is around TensorRT and CUDA is tested with a stand-in for both.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from ppexport.backends.tensorrt.run_builder import RUNTIMES, Log, describe_gpu, import_tensorrt
from ppexport.backends.tensorrt.run_cuda import MEMORY, NO_GPU, Cuda, CudaMemoryError
from ppexport.backends.tensorrt.run_facts import Machine, check_machine, check_trust, machine_of
from ppexport.device.artifact import Artifact
from ppexport.device.runner import Prepared, Result, Runner, feeds
from ppexport.device.target import Runtime
from ppexport.errors import ArtifactError, InputError, PpexportError, UnavailableError

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no such module.
    from numpy.typing import NDArray


class Port(NamedTuple):
    """An input or output of the engine, at its largest."""

    host: NDArray[Any]
    """Pinned."""
    device: int
    is_input: bool


def _ports_of(artifact: Artifact) -> dict[str, tuple[tuple[int, ...], str, bool]]:
    """{name: (largest shape, type, whether it is an input)} of the engine that the manifest promises."""
    m, s = artifact.manifest, artifact.scale
    h, w = artifact.size
    ports = {
        "lr": ((1, 3, h, w), "float32", True),
        "sr": ((1, 3, h * s, w * s), "float32", False),
        "impure_tokens": ((1,), "int32", False),
    }
    if len(m.capacities) > 1:
        ports["slots"] = ((1, m.capacities[-1]), "int32", True)
    if m.mask == "input":
        ports["mask"] = ((1, 1, *m.layout.padded((h, w))), "float32", True)
    return ports


class TensorRTRunner(Runner):
    """An engine artifact on this machine's GPU; *trt* is the module that TensorRT is."""

    calibrates = True

    def __init__(self, artifact: Artifact, trt: Any, cuda: Cuda) -> None:
        super().__init__(artifact)
        self.cuda = cuda
        # A network without slots has the one profile of every engine.
        self.capacities = artifact.manifest.capacities or [0]
        self.stream = 0
        self.ports: dict[str, Port] = {}
        self._loaded: dict[int, tuple[Any, int | None]] = {}
        """{profile: its context, and the recorded run, None where it could not be recorded}."""
        self._log = Log(trt, lambda severity, text: None)
        self._runtime = trt.Runtime(self._log.logger)
        try:
            self._open(trt)
        except BaseException:
            self.close()
            raise

    def _open(self, trt: Any) -> None:
        artifact, cuda = self.artifact, self.cuda
        self.engine = self._runtime.deserialize_cuda_engine(artifact.read(artifact.model_file))
        if self.engine is None:
            raise self._refused(f"TensorRT {trt.__version__} cannot load {artifact.model_file}: build it again")
        expected = _ports_of(artifact)
        found = {self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)}
        # An input whose content nothing reads, such as `slots`, may be gone; its profiles are not.
        if not set(expected) - {"slots"} <= found <= set(expected):
            raise ArtifactError(f"{artifact.model_file} has {sorted(found)}, but the manifest says {sorted(expected)}")
        if self.engine.num_optimization_profiles != len(self.capacities):
            raise ArtifactError(
                f"{artifact.model_file} has {self.engine.num_optimization_profiles} profiles, but the manifest says "
                f"{len(self.capacities)} capacities"
            )
        self.stream = cuda.stream()
        for name, (shape, dtype, is_input) in expected.items():
            if name in found:
                host = cuda.host_array(shape, dtype)
                host.fill(0)
                # Noted before device memory is asked for, so that `close` frees it where there is none.
                self.ports[name] = Port(host, 0, is_input)
                self.ports[name] = Port(host, cuda.device_array(host.nbytes), is_input)

    def _refused(self, message: str) -> PpexportError:
        """The error of a step that TensorRT refused: *message*, unless it says that the GPU's memory ran out."""
        if self._log.out_of_memory:
            return CudaMemoryError(f"{self.artifact.path.name}: {MEMORY}")
        return ArtifactError(message)

    def _close(self) -> None:
        if self.stream:
            # What an error left in the stream still uses what is freed below.
            with suppress(PpexportError):
                self.cuda.wait(self.stream)
        for _, graph in self._loaded.values():
            if graph is not None:
                self.cuda.destroy_graph(graph)
        # TensorRT frees the memory of contexts and engine when nobody refers to them any more.
        self._loaded.clear()
        self.engine = None
        for port in self.ports.values():
            self.cuda.free_host(port.host)
            self.cuda.free_device(port.device)
        self.ports.clear()
        if self.stream:
            self.cuda.destroy_stream(self.stream)

    def _run(self, prepared: Prepared) -> Result:
        inputs = feeds(self.artifact.manifest, prepared)
        # The engine's profile stands for the slots, whose content nothing reads.
        inputs.pop("slots", None)
        for name, array in inputs.items():
            self.ports[name].host[...] = array
        context, graph = self._profile(self.capacities.index(prepared.capacity))
        if graph is None:
            self._enqueue(context)
        else:
            self.cuda.launch(graph, self.stream)
        self.cuda.wait(self.stream)
        # A copy: the buffer is written again by the next run.
        return Result(self.ports["sr"].host.copy(), int(self.ports["impure_tokens"].host[0]), prepared.capacity)

    def _profile(self, index: int) -> tuple[Any, int | None]:
        """Profile number *index*, loaded when it is first needed."""
        if index not in self._loaded:
            context = self.engine.create_execution_context()
            if context is None:
                raise CudaMemoryError(f"{self.artifact.path.name}: {MEMORY}")
            if not context.set_optimization_profile_async(index, self.stream):
                raise ArtifactError(f"TensorRT refuses profile {index} of {self.artifact.model_file}")
            for name, port in self.ports.items():
                if name == "slots":
                    context.set_input_shape(name, (1, self.capacities[index]))
                if not context.set_tensor_address(name, port.device):
                    raise ArtifactError(f"TensorRT takes no buffer for {name} of {self.artifact.model_file}")
            # Once outside the graph: the first run of a context allocates, which cannot be recorded.
            self._enqueue(context)
            self.cuda.wait(self.stream)
            self._loaded[index] = context, self._record(context)
        return self._loaded[index]

    def _record(self, context: Any) -> int | None:
        """The run of *context* with its copies as a CUDA graph; None where this engine cannot be recorded."""
        graph, whole = None, False
        self.cuda.begin_capture(self.stream)
        try:
            with suppress(ArtifactError):
                self._enqueue(context)
                whole = True
        finally:
            # A recording that failed must be ended too, and CUDA may still make a graph of what came before.
            with suppress(ArtifactError):
                graph = self.cuda.end_capture(self.stream)
            if graph is not None and not whole:
                self.cuda.destroy_graph(graph)
        return graph if whole else None

    def _enqueue(self, context: Any) -> None:
        """Put copies and run into the stream."""
        for port in self.ports.values():
            if port.is_input:
                self.cuda.upload(port.device, port.host, self.stream)
        if not context.execute_async_v3(self.stream):
            raise self._refused(f"TensorRT failed to run {self.artifact.model_file}")
        for port in self.ports.values():
            if not port.is_input:
                self.cuda.download(port.host, port.device, self.stream)


def open_engine(artifact: Artifact, trust: bool) -> TensorRTRunner:
    """The engine of *artifact* on this machine's GPU, loaded after everything that speaks against it was ruled out.

    Args:
        artifact: an engine artifact.
        trust: load it even if this user did not build it. Loading an engine runs the code in it.

    Raises:
        UnavailableError: there is no GPU, no TensorRT, or not enough memory.
        ArtifactError: the engine is of another machine, or is not what the manifest says.
        InputError: this user did not build the engine, and does not *trust* it.
    """
    name, manifest = artifact.path.name, artifact.manifest
    built, gpu = machine_of(manifest), describe_gpu()
    if gpu["gpu"] is None:
        raise UnavailableError(NO_GPU)
    trt = import_tensorrt(built.runtime)
    check_machine(name, manifest, Machine(trt.__name__, trt.__version__, **gpu))
    check_trust(name, manifest, trust)
    return TensorRTRunner(artifact, trt, Cuda())


def _installed_gpu() -> list[str]:
    """ "GPU" where a TensorRT is installed; whether there is a GPU shows when an engine is opened."""
    return ["GPU"] if any(find_spec(name) is not None for name in RUNTIMES) else []


def _find_gpu(text: str) -> str:
    """ "GPU". Raises InputError for anything else."""
    if text != "GPU":
        raise InputError(f"a TensorRT engine runs on the GPU that it was built for: tensorrt:{text} cannot be chosen")
    return text


RUNTIME = Runtime(
    "tensorrt",
    "tensorrt",
    ("tensorrt", "tensorrt_rtx_cu12"),
    "GPU",
    lambda artifact, target: open_engine(artifact, target.trust),
    _installed_gpu,
    _find_gpu,
    times="ppexport.backends.tensorrt.trtexec",
)
