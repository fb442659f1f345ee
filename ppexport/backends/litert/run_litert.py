"""Runs LiteRT artifacts in Google's runtime: `ai-edge-litert`, which has wheels for boards and needs no torch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Mapping

import numpy as np

from ppexport.backends.litert.run_gpu import GpuSession, has_gpu
from ppexport.backends.litert.run_litert_facts import EXTRA, facts_of
from ppexport.device.artifact import Artifact, Manifest
from ppexport.device.capacities import capacity_function, function_name
from ppexport.device.quiet import quiet
from ppexport.device.runner import Flushed, SessionRunner, refuse_threads, thread_count
from ppexport.device.target import Runtime, Target
from ppexport.errors import ArtifactError, InputError, first_line, imported, require

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ppexport.device.runner import Arrays

DEVICES = ("CPU", "GPU")


class Session:
    """An opened LiteRT file, of which every signature is a graph of its own over the same weights."""

    def __init__(self, content: bytes, where: str, threads: int | None = None) -> None:
        """Open a file.

        Args:
            content: its bytes.
            where: what errors call it.
            threads: as `thread_count` takes them; left to itself the runtime would use one.

        Raises:
            ArtifactError: the runtime refuses it.
            UnavailableError: ai-edge-litert is not installed.
            InputError: threads are no such number.
        """
        threads = thread_count(threads)
        require("ai_edge_litert", EXTRA)
        runtime = imported("ai_edge_litert.interpreter", EXTRA)
        self.where, self.facts = where, facts_of(content, where)
        try:
            # Threads are made here, and inherit how denormals are taken.
            with quiet(), Flushed():
                self._interpreter: Any = runtime.Interpreter(model_content=content, num_threads=threads)
                self._interpreter.allocate_tensors()
                self.signatures: list[str] = list(self._interpreter.get_signature_list())
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ArtifactError(f"LiteRT refuses {where}: {first_line(error)}") from None
        self._opened: dict[str, Any] = {}

    def signature(self, name: str) -> Any:
        """The signature called *name*, ready to run. Raises ArtifactError where the file has none."""
        if name not in self._opened:
            if name not in self.signatures:
                raise ArtifactError(f"{self.where} has signatures {', '.join(self.signatures)}, not {name!r}")
            try:
                self._opened[name] = self._interpreter.get_signature_runner(name)
            except (ValueError, RuntimeError, MemoryError) as error:
                raise ArtifactError(f"LiteRT cannot prepare {name!r} of {self.where}: {first_line(error)}") from None
        return self._opened[name]

    def ports(self, name: str) -> dict[str, tuple[str, list[int]]]:
        """{input or output of the signature *name*: (type, shape)}."""
        signature = self.signature(name)
        found = {**signature.get_input_details(), **signature.get_output_details()}
        return {
            key: (np.dtype(port["dtype"]).name, [int(side) for side in port["shape"]]) for key, port in found.items()
        }

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """All outputs for *inputs* as the ONNX graph takes them; the length of `slots` (1, C) chooses the signature."""
        fed = dict(inputs)
        slots = fed.pop("slots", None)
        name = "main" if slots is None else capacity_function(slots.shape[1])
        signature = self.signature(name)
        try:
            with Flushed():
                found: Arrays = signature(**{key: np.ascontiguousarray(value) for key, value in fed.items()})
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"LiteRT cannot run {name!r} of {self.where}: {first_line(error)}") from None
        return found

    def close(self) -> None:
        """Release the runtime's memory."""
        self._opened.clear()
        self._interpreter = None


def expected_ports(manifest: Manifest) -> dict[str, tuple[str, list[int]]]:
    """{input or output of every signature: (type, shape)} of a file of *manifest*."""
    (h, w), s = manifest.size, manifest.scale
    ports = {
        "lr": ("float32", [1, 3, h, w]),
        "sr": ("float32", [1, 3, h * s, w * s]),
        "impure_tokens": ("int32", [1]),
    }
    if manifest.mask == "input":
        ports["mask"] = ("float32", [1, 1, *manifest.layout.padded((h, w))])
    return ports


class LiteRTRunner(SessionRunner):
    """A LiteRT artifact on a device of `DEVICES`."""

    def __init__(self, artifact: Artifact, threads: int | None = None, device: str = "CPU") -> None:
        """*threads* are for the CPU.

        Raises as the session, ArtifactError where the manifest says otherwise, and InputError for threads of the GPU.
        """
        if device == "GPU":
            refuse_threads(threads, "litert:GPU")
        file, manifest = artifact.model_file, artifact.manifest
        content, where = artifact.read(file), str(file)
        self.session: Session | GpuSession = (
            GpuSession(content, where) if device == "GPU" else Session(content, where, threads)
        )
        super().__init__(artifact, self.session)
        names = [function_name(capacity, manifest.capacities) for capacity in manifest.capacities] or ["main"]
        if sorted(self.session.signatures) != sorted(names):
            found = ", ".join(self.session.signatures)
            raise ArtifactError(f"{file} has signatures {found}, but the manifest says {', '.join(names)}")

        expected = expected_ports(manifest)
        for name in names:
            ports = self.session.ports(name)
            if ports != expected:
                raise ArtifactError(f"{file} has {ports} in {name!r}, but the manifest says {expected}")

    def _close(self) -> None:
        self.session.close()


def open_target(artifact: Artifact, target: Target) -> LiteRTRunner:
    """*artifact* on the target's device."""
    return LiteRTRunner(artifact, target.threads, target.device)


def devices() -> list[str]:
    """Those that this machine has."""
    if find_spec("ai_edge_litert") is None:
        return []
    return [*DEVICES] if has_gpu() else ["CPU"]


def find_device(name: str) -> str:
    """The device called *name*, in any case. Raises InputError."""
    if name.upper() not in DEVICES:
        raise InputError(f"LiteRT computes on {' or '.join(DEVICES)}, not {name!r}")
    return name.upper()


RUNTIME = Runtime(
    "litert",
    "litert",
    ("ai-edge-litert",),
    "CPU",
    open_target,
    devices,
    find_device,
    program="ppexport.backends.litert.benchmark_model",
    threads_on=("CPU",),
)
