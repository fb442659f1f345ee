"""Runs ExecuTorch programs in ExecuTorch's own runtime, as its wheel for Python has it.

That runtime takes and returns torch's tensors, so this needs torch, which boards do not have: there a program is run
from C++, Java or Kotlin (docs/android-executorch.md). torch and the runtime are imported by name when a program is
opened.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Sequence, Tuple
from weakref import WeakSet

import numpy as np

from ppexport.device.artifact import Artifact
from ppexport.device.quiet import quiet
from ppexport.device.runner import Flushed, SessionRunner, check_threads
from ppexport.device.target import Runtime, Target
from ppexport.errors import ArtifactError, InputError, UnavailableError, first_line, imported, require

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ppexport.device.runner import Arrays

METHOD = "forward"
FACT = "ppexport_"
"""What the names of the methods begin with that tell about a program."""
IDENTIFIER = b"ET12"
"""Bytes 4 to 7 of a program."""
OUTPUTS = ("sr", "impure_tokens")
Port = Tuple[str, List[int]]
TYPES = {3: "int32", 6: "float32"}
"""Types of tensors by the number that the runtime has for them; only those of an artifact."""
IN_USE: Any = WeakSet()
"""The sessions that are open. All compute in the process's one pool of threads, which can be exchanged only while none
is open: XNNPACK keeps its address."""
AT_FIRST: Dict[str, int] = {}
"""How many threads the pool had before this module exchanged it, under "threads"."""


def use_threads(runtime: Any, threads: int | None) -> None:
    """Make the pool one of *threads*; None is as many as it had at first, or as open sessions have.

    Raises InputError where an open session computes with another number.
    """
    now = runtime._threadpool_get_thread_count()
    first = AT_FIRST.setdefault("threads", now)
    if threads is None:
        threads = now if IN_USE else first
    if threads == now:
        return
    if IN_USE:
        raise InputError(
            f"ExecuTorch has one pool of threads for a process, and an open program of this one uses it with "
            f"{now}: close that runner, or open both with the same threads"
        )
    runtime._unsafe_reset_threadpool(threads)


class Session:
    """An opened program."""

    def __init__(
        self, content: bytes, where: str, threads: int | None = None, outputs: Sequence[str] = OUTPUTS
    ) -> None:
        """Open a program.

        Args:
            content: its bytes.
            where: what errors call it.
            threads: as `check_threads` takes them; None is the runtime's choice, or what open programs have.
            outputs: names of what its method returns.

        Raises:
            ArtifactError: it is no program, or the runtime refuses it.
            UnavailableError: ExecuTorch or torch is not installed.
            InputError: threads are no such number, or another one than open programs of this process have.
        """
        threads = check_threads(threads)
        require("executorch", "executorch")
        require("torch", "executorch")
        self.where, self.outputs = where, tuple(outputs)
        if content[4:8] != IDENTIFIER:
            raise ArtifactError(f"{where} is not an ExecuTorch program")
        self._torch = imported("torch", "executorch")
        try:
            # Threads are made here, and inherit how denormals are taken.
            with quiet(), Flushed():
                runtime = imported("executorch.runtime", "executorch").Runtime.get()
                use_threads(runtime._legacy_module, threads)
                self._program: Any = runtime.load_program(content)
                names = sorted(self._program.method_names)
                facts = [name for name in names if name.startswith(FACT)]
                found = {name: self._program.load_method(name).execute([]) for name in facts}
                self._method: Any = self._program.load_method(METHOD) if METHOD in names else None
        except (RuntimeError, ValueError, MemoryError) as error:
            raise ArtifactError(f"ExecuTorch refuses {where}: {first_line(error)}") from None
        if self._method is None:
            raise ArtifactError(f"{where} has methods {', '.join(names)}, not {METHOD!r}: no export made it")
        self.facts = {
            f"ppexport.{name[len(FACT) :]}": str(value[0]) for name, value in found.items() if len(value) == 1
        }
        IN_USE.add(self)

    def ports(self) -> Tuple[List[Port], List[Port]]:
        """(type, shape) of every input and of every output, at their largest. Raises ArtifactError for no tensor."""
        meta = self._method.metadata
        try:
            with quiet():
                given = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
                made = [meta.output_tensor_meta(i) for i in range(meta.num_outputs())]
        except (IndexError, RuntimeError, ValueError) as error:
            raise ArtifactError(
                f"{self.where} takes or returns what is no tensor ({first_line(error)}): no export made it"
            ) from None

        def port(tensor: Any) -> Port:
            return TYPES.get(tensor.dtype(), f"type {tensor.dtype()}"), [int(side) for side in tensor.sizes()]

        return [port(tensor) for tensor in given], [port(tensor) for tensor in made]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """All outputs for *inputs* in the order of `device.runner.feeds`."""
        if self._method is None:
            raise InputError(f"the session of {self.where} was closed: open the artifact again")
        order = [name for name in ("lr", "mask", "slots") if name in inputs]
        if not all(inputs[name].size for name in order):
            # The runtime ends the process.
            raise InputError("an ExecuTorch program takes no empty arrays")
        given = [self._torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in order]
        try:
            with quiet(), Flushed():
                found = self._method.execute(given)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise ArtifactError(f"ExecuTorch cannot run {self.where}: {first_line(error)}") from None
        if len(found) != len(self.outputs):
            raise ArtifactError(f"{self.where} returns {len(found)} results, not {', '.join(self.outputs)}")
        if not all(isinstance(value, self._torch.Tensor) for value in found):
            raise ArtifactError(f"{self.where} returns what is no tensor: no export made it")
        # Copies, since the runtime may own the memory.
        return {name: np.array(value.numpy()) for name, value in zip(self.outputs, found)}

    def close(self) -> None:
        """Release the program."""
        self._method = self._program = None
        IN_USE.discard(self)


class ExecuTorchRunner(SessionRunner):
    """An ExecuTorch artifact on the CPU."""

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        """Raises as `Session`, and ArtifactError where the program is not what the manifest says."""
        file, m = artifact.model_file, artifact.manifest
        partitioner = m.build.get("partitioner", "xnnpack")
        if partitioner != "xnnpack":
            raise UnavailableError(
                f"{artifact.path} was lowered for {partitioner}, which ExecuTorch's runtime for Python lacks: run it "
                "on a device, or export with -O partitioner=xnnpack"
            )
        self._opened = Session(artifact.read(file), str(file), threads)
        try:
            super().__init__(artifact, self._opened)
            h, w = m.size
            given: List[Port] = [("float32", [1, 3, h, w])]
            given += [("float32", [1, 1, *m.layout.padded((h, w))])] if m.mask == "input" else []
            given += [("int32", [1, m.capacities[-1]])] if len(m.capacities) > 1 else []
            made: List[Port] = [("float32", [1, 3, h * m.scale, w * m.scale]), ("int32", [1])]
            for does, found, expected in zip(("takes", "returns"), self._opened.ports(), (given, made)):
                if found != expected:
                    raise ArtifactError(f"{file} {does} {found}, but the manifest says {expected}")
        except BaseException:
            self._opened.close()
            raise

    def _close(self) -> None:
        self._opened.close()


def open_target(artifact: Artifact, target: Target) -> ExecuTorchRunner:
    """*artifact* on the target's device."""
    return ExecuTorchRunner(artifact, target.threads)


RUNTIME = Runtime(
    "executorch",
    "executorch",
    ("executorch", "torch"),
    "CPU",
    open_target,
    lambda: ["CPU"] if find_spec("executorch") is not None and find_spec("torch") is not None else [],
)
