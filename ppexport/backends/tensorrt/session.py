"""A loaded TensorRT engine: buffers, one execution context and one CUDA graph per profile.

Untested on hardware, see `cuda`; what is around it is tested with a stand-in for TensorRT and CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ppexport.artifact import Artifact
from ppexport.backends.tensorrt.cuda import NO_GPU, Cuda
from ppexport.backends.tensorrt.engine_builder import BuildError, describe_gpu, import_tensorrt
from ppexport.backends.tensorrt.facts import Machine, check_machine, machine_of
from ppexport.backends.tensorrt.trust import check_trust
from ppexport.errors import ArtifactError, UnavailableError
from ppexport.mask import padded_size

if TYPE_CHECKING:
    from ppexport.backends.base import Arrays


@dataclass(frozen=True)
class Port:
    """An input or output of the engine, at its largest."""

    host: NDArray[Any]
    """Pinned."""
    device: int
    is_input: bool


@dataclass(frozen=True)
class Loaded:
    """One profile, ready to run."""

    context: Any
    graph: int | None
    """The recorded run, None where it could not be recorded."""


def ports_of(artifact: Artifact) -> dict[str, tuple[tuple[int, ...], str, bool]]:
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
        ports["mask"] = ((1, 1, padded_size(h), padded_size(w)), "float32", True)
    return ports


class Session:
    """The engine of an artefact on this machine's GPU."""

    def __init__(self, artifact: Artifact, trt: Any, cuda: Cuda) -> None:
        self.artifact, self.cuda = artifact, cuda
        self.capacities = artifact.manifest.capacities
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self.engine = self._runtime.deserialize_cuda_engine(artifact.read(artifact.model_file))
        if self.engine is None:
            raise ArtifactError(f"TensorRT {trt.__version__} cannot load {artifact.model_file}: build it again")
        expected = ports_of(artifact)
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
        self.ports = {}
        for name, (shape, dtype, is_input) in expected.items():
            if name in found:
                host = cuda.host_array(shape, dtype)
                host.fill(0)
                self.ports[name] = Port(host, cuda.device_array(host.nbytes), is_input)
        self._loaded: dict[int, Loaded] = {}

    def run(self, inputs: Arrays, capacity: int) -> Arrays:
        """Run *inputs* (`lr`, and `mask` where it is one) with *capacity* slots; returns `sr` and `impure_tokens`."""
        for name, array in inputs.items():
            self.ports[name].host[...] = array
        loaded = self._profile(self.capacities.index(capacity))
        if loaded.graph is None:
            self._enqueue(loaded.context)
        else:
            self.cuda.launch(loaded.graph, self.stream)
        self.cuda.wait(self.stream)
        # Copies: the buffers are written again by the next run.
        return {name: port.host.copy() for name, port in self.ports.items() if not port.is_input}

    def _profile(self, index: int) -> Loaded:
        """Profile number *index*, loaded when it is first needed."""
        if index not in self._loaded:
            context = self.engine.create_execution_context()
            if context is None:
                raise UnavailableError("the GPU has not enough memory for this engine: export a smaller size")
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
            self._loaded[index] = Loaded(context, self._record(context))
        return self._loaded[index]

    def _record(self, context: Any) -> int | None:
        """The run of *context* with its copies as a CUDA graph; None where this engine cannot be recorded."""
        self.cuda.begin_capture(self.stream)
        try:
            self._enqueue(context)
        except ArtifactError:
            recorded = False
        else:
            recorded = True
        try:
            graph = self.cuda.end_capture(self.stream)
        except ArtifactError:
            return None
        return graph if recorded else None

    def _enqueue(self, context: Any) -> None:
        """Put copies and run into the stream."""
        for port in self.ports.values():
            if port.is_input:
                self.cuda.upload(port.device, port.host, self.stream)
        if not context.execute_async_v3(self.stream):
            raise ArtifactError(f"TensorRT failed to run {self.artifact.model_file}")
        for port in self.ports.values():
            if not port.is_input:
                self.cuda.download(port.host, port.device, self.stream)


def open_session(artifact: Artifact, trust: bool) -> Session:
    """Load the engine of *artifact*, after everything that speaks against it was ruled out.

    Raises UnavailableError without TensorRT or a GPU, ArtifactError for an engine of another machine, InputError for
    one that this user did not build and does not *trust*.
    """
    name, manifest = artifact.path.name, artifact.manifest
    built = machine_of(manifest)
    gpu = describe_gpu()
    if gpu["gpu"] is None:
        raise UnavailableError(NO_GPU)
    try:
        trt = import_tensorrt(built.runtime)
    except BuildError as error:
        raise UnavailableError(str(error)) from None
    check_machine(name, manifest, Machine(trt.__name__, trt.__version__, **gpu))
    check_trust(name, manifest, trust)
    return Session(artifact, trt, Cuda())
