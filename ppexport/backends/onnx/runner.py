"""Runs an ONNX artefact with ONNX Runtime."""

from __future__ import annotations

from typing import Any

from ppexport.artifact import Artifact
from ppexport.backends.base import Prepared, Result, Runner, feeds
from ppexport.backends.onnx.session import CPU, make_session
from ppexport.errors import ArtifactError
from ppexport.mask import padded_size


class OnnxRunner(Runner):
    """An ONNX artefact in ONNX Runtime, on its CPU provider unless another is named."""

    def __init__(self, artifact: Artifact, threads: int | None = None, provider: str = CPU) -> None:
        super().__init__(artifact)
        file = artifact.model_file
        self.session: Any = make_session(artifact.read(file), str(file), threads, provider)
        self._check()

    def _check(self) -> None:
        """Raise ArtifactError unless the model file is what the manifest says."""
        m = self.artifact.manifest
        (h, w), s = self.size, self.scale
        expected: dict[str, list[int | str]] = {"lr": [1, 3, h, w], "sr": [1, 3, h * s, w * s], "impure_tokens": [1]}
        if len(m.capacities) > 1:
            expected["slots"] = [1, "slots"]
        if m.mask == "input":
            expected["mask"] = [1, 1, *(padded_size(side) for side in self.size)]
        found = {port.name: port.shape for port in (*self.session.get_inputs(), *self.session.get_outputs())}
        if found != expected:
            raise ArtifactError(f"{self.artifact.model_file} has {found}, but the manifest says {expected}")
        self.check_facts(self.session.get_modelmeta().custom_metadata_map)

    def _run(self, prepared: Prepared) -> Result:
        sr, impure = self.session.run(["sr", "impure_tokens"], feeds(self.artifact.manifest, prepared))
        return Result(sr, int(impure[0]), prepared.capacity)
