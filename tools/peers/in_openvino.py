"""Candidates in OpenVINO, which is optional."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from peers.candidate import Candidate, Image
from ppexport.backends.openvino.run_openvino import Session
from ppexport.errors import UnavailableError


class OpenVino(Candidate):
    """An ONNX graph, input `lr` and output `sr`, in OpenVINO's CPU plugin."""

    flush = True
    reference = "dense"

    def __init__(self, key: str, name: str, lr: Image, path: Path, threads: int) -> None:
        super().__init__(key, name, lr)
        self.path, self.threads = path, threads
        self._session: Session | None = None

    def prepare(self) -> None:
        """Compile for the CPU. Raises UnavailableError where OpenVINO is missing, ArtifactError where it refuses."""
        if find_spec("openvino") is None:
            raise UnavailableError("not installed: pip install openvino")
        self._session = Session(self.path.read_bytes(), str(self.path), threads=self.threads)

    def run(self) -> Image:
        """One inference, its result copied out."""
        assert self._session is not None
        return self._session.run({"lr": self.lr}, ["sr"])["sr"]
