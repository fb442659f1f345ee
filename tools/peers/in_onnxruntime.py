"""Candidates in ONNX Runtime: the plain graph, and our artefacts as the project's own runner opens them.

Imports no torch: the peak memory of a child that runs one of these is a device's.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from peers.candidate import Candidate, Image
from ppexport.backends.backend import open_artifact
from ppexport.backends.onnx.run_onnxruntime import OnnxRunner
from ppexport.device.runner import Flushed, Prepared, Runner
from ppexport.errors import ArtifactError, UnavailableError, first_line, require


def stop_spinning(options: Any) -> Any:
    """*options* of a session whose threads sleep between runs; spinning, they slow all other sessions severalfold."""
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


class PlainOnnx(Candidate):
    """A graph with default options: input `lr`, output `sr`."""

    reference = "dense"

    def __init__(self, key: str, name: str, lr: Image, path: Path, threads: int, flush: bool = False) -> None:
        super().__init__(key, name, lr)
        self.path, self.threads, self.flush = path, threads, flush
        self._session: Any = None

    def prepare(self) -> None:
        """Open the session."""
        require("onnxruntime", "onnx")
        import onnxruntime

        options = stop_spinning(onnxruntime.SessionOptions())
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        if self.flush:
            options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            with Flushed():
                session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
            self._session = session
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise UnavailableError(f"ONNX Runtime cannot load it: {first_line(error)}") from None

    def close(self) -> bool:
        """Close the session."""
        self._session = None
        return True

    def run(self) -> Image:
        """Run the session."""
        sr: Image = self._session.run(["sr"], {"lr": self.lr})[0]
        return sr


@cache
def open_quietly(folder: Path, threads: int) -> Runner:
    """The project's runner for the artefact *folder*, its session with the runner's options and no idle spinning.

    One for all candidates of the same artefact, such as the capacities of a set.
    """
    import onnxruntime

    runner = open_artifact(folder, threads=threads)
    if not isinstance(runner, OnnxRunner):
        raise ArtifactError(f"{folder} is no ONNX artefact")
    options = stop_spinning(runner.session.get_session_options())
    model = runner.artifact.read(runner.artifact.model_file)
    # The first session goes before the second is made, else a child's peak memory would be that of two.
    runner.session = None
    with Flushed():
        runner.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return runner


class OurArtifact(Candidate):
    """An artefact of ours: checks, host mask, choice of the capacity and run, as a user's call does them."""

    flush = True

    def __init__(self, key: str, name: str, lr: Image, folder: Path, threads: int, reference: str | None) -> None:
        super().__init__(key, name, lr)
        self.folder, self.threads, self.reference = folder, threads, reference
        self._runner: Runner | None = None
        self.capacity: int | None = None
        """Slots of the last run."""
        self.host_seconds: list[float] = []
        """What checking, mask and choice took in every run."""

    def prepare(self) -> None:
        """Open the artefact."""
        self._runner = open_quietly(self.folder, self.threads)

    def close(self) -> bool:
        """Close the artefact, for all candidates that share it."""
        self._runner = None
        open_quietly.cache_clear()
        return True

    def run(self) -> Image:
        """One call of the runner, the host's part clocked apart."""
        assert self._runner is not None
        begin = time.perf_counter()
        prepared = self._runner.prepare(self.lr)
        self.host_seconds.append(time.perf_counter() - begin)
        result = self._runner.run(prepared)
        self.capacity = result.capacity
        return result.sr


class FixedCapacity(OurArtifact):
    """A capacity set run with a number of slots that is given, not chosen; too few give another picture."""

    def __init__(self, key: str, name: str, lr: Image, folder: Path, threads: int, capacity: int) -> None:
        super().__init__(key, name, lr, folder, threads, None)
        self.slots = capacity
        self._prepared: Prepared | None = None

    def prepare(self) -> None:
        """Open the artefact and compute the mask."""
        super().prepare()
        assert self._runner is not None
        self._prepared = self._runner.prepare(self.lr)._replace(capacity=self.slots)

    def run(self) -> Image:
        """One run, without the host's part."""
        assert self._runner is not None
        assert self._prepared is not None
        result = self._runner.run(self._prepared)
        self.capacity = result.capacity
        return np.asarray(result.sr, np.float32)


class Repeated(OurArtifact):
    """An artefact whose time is the mean of several runs, so that small pictures see longer stretches too."""

    def __init__(self, key: str, lr: Image, folder: Path, threads: int, runs: int) -> None:
        super().__init__(key, key, lr, folder, threads, None)
        self.runs = runs

    def time(self) -> float:
        """Mean seconds of a run."""
        return sum(super(Repeated, self).time() for _ in range(self.runs)) / self.runs
