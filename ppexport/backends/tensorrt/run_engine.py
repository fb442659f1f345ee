"""Which engines this user built: loading an engine runs the code in it, so only those are loaded unasked.

A file of 32 random bytes in the user's configuration folder, readable by the user alone, is made with the first
engine. The manifest of every engine is signed with it (HMAC-SHA256 over the whole manifest, which holds the engine's
hash), and an engine whose signature is missing or made with another key needs `--trust`. Copying the key to a board
makes engines that were assembled here trusted there.

Standard library only: this file runs on devices.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppexport.backends.tensorrt.run_builder import BuildError, describe_gpu, import_tensorrt
from ppexport.backends.tensorrt.run_cuda import NO_GPU, Cuda
from ppexport.backends.tensorrt.run_facts import Machine, check_machine, machine_of
from ppexport.device.artifact import Artifact, Manifest
from ppexport.device.mask import padded_size
from ppexport.device.target import Runtime, Target
from ppexport.errors import ArtifactError, InputError, UnavailableError, present

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no such module.
    from numpy.typing import NDArray

    from ppexport.device.runner import Arrays
from ppexport.device.runner import Prepared, Result, Runner, feeds

KEY = "engine.key"
KEY_BYTES = 32
SIGNATURE = "signature"


def key_file() -> Path:
    """Where the user's key lies: $XDG_CONFIG_HOME/ppexport or ~/.config/ppexport."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".config") / "ppexport" / KEY


def read_key() -> bytes | None:
    """The user's key, None where there is none yet. Raises InputError for a key that others can read or could write."""
    path = key_file()
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    with os.fdopen(handle, "rb") as stream:
        facts = os.fstat(stream.fileno())
        # Windows has neither owners nor groups in this sense.
        private = os.name == "nt" or (facts.st_uid == os.getuid() and not facts.st_mode & 0o077)
        if not stat.S_ISREG(facts.st_mode) or not private:
            raise InputError(f"{path} is not a file for its owner alone: chmod 600 it, or delete it for a new key")
        key = stream.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise InputError(f"{path} is damaged: delete it, and build the engines again")
    return key


def make_key() -> bytes:
    """The user's key, made now if there is none. Raises InputError where it cannot be kept."""
    if (key := read_key()) is not None:
        return key
    path = key_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Whole or not at all: under another name first, then linked, which fails where another process was faster.
        temporary = path.with_name(f".{KEY}.{secrets.token_hex(8)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES))
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return present(read_key(), f"the key {path}, which was written just now,")


def _digest(manifest: Manifest, key: bytes) -> str:
    """The HMAC of *manifest* without its signature."""
    data = asdict(manifest)
    data["engine"].pop(SIGNATURE, None)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def sign(manifest: Manifest) -> Manifest:
    """*manifest*, signed by this user."""
    return replace(manifest, engine={**manifest.engine, SIGNATURE: _digest(manifest, make_key())})


def is_own(manifest: Manifest) -> bool:
    """Whether this user signed *manifest*."""
    key, signature = read_key(), manifest.engine.get(SIGNATURE)
    if key is None or not isinstance(signature, str):
        return False
    return hmac.compare_digest(signature.encode(), _digest(manifest, key).encode())


def check_trust(name: str, manifest: Manifest, trust: bool) -> None:
    """Raise InputError unless this user built the engine artefact *name*, or says *trust*."""
    if not trust and not is_own(manifest):
        raise InputError(
            f"{name} is an engine that this user did not build, and loading an engine runs the code in it: "
            "build it here, or say --trust if you know where it comes from"
        )


# A loaded TensorRT engine: buffers, one execution context and one CUDA graph per profile.
#
# Untested on hardware, see `cuda`; what is around it is tested with a stand-in for TensorRT and CUDA.


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


# Runs a TensorRT engine.


class TensorRTRunner(Runner):
    """An engine artefact on this machine's GPU."""

    def __init__(self, artifact: Artifact, trust: bool = False) -> None:
        super().__init__(artifact)
        self.session = open_session(artifact, trust)

    def _run(self, prepared: Prepared) -> Result:
        inputs = feeds(self.artifact.manifest, prepared)
        # The engine's profile stands for the slots, whose content nothing reads.
        inputs.pop("slots", None)
        out = self.session.run(inputs, prepared.capacity)
        return Result(out["sr"], int(out["impure_tokens"][0]), prepared.capacity)


def open_target(artifact: Artifact, target: Target) -> TensorRTRunner:
    """*artifact* on this machine's GPU."""
    return TensorRTRunner(artifact, target.trust)


def installed_gpu() -> list[str]:
    """ "GPU" where a TensorRT is installed; whether there is a GPU shows when an engine is opened."""
    return ["GPU"] if any(find_spec(name) is not None for name in ("tensorrt", "tensorrt_rtx")) else []


def find_gpu(text: str) -> str:
    """ "GPU". Raises InputError for anything else."""
    if text != "GPU":
        raise InputError(f"a TensorRT engine runs on the GPU that it was built for: tensorrt:{text} cannot be chosen")
    return text


RUNTIME = Runtime(
    "tensorrt", "tensorrt", ("tensorrt", "tensorrt_rtx_cu12"), "GPU", open_target, installed_gpu, find_gpu
)
