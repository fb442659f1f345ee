"""Runs an ONNX artefact with ONNX Runtime."""

from __future__ import annotations

from ppexport.artifact import Artifact
from ppexport.backends.base import Image, Result, Runner
from ppexport.backends.onnx.session import make_session
from ppexport.errors import ArtifactError


class OnnxRunner(Runner):
    """An ONNX artefact on ONNX Runtime's CPU provider."""

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        super().__init__(artifact)
        self.session = make_session(artifact.model_file, threads)
        self._check()

    def _check(self) -> None:
        """Raise ArtifactError unless the model file is what the manifest says."""
        m = self.artifact.manifest
        (h, w), s = self.size, self.scale
        expected = {"lr": [1, 3, h, w], "sr": [1, 3, h * s, w * s], "impure_tokens": [1]}
        found = {port.name: port.shape for port in (*self.session.get_inputs(), *self.session.get_outputs())}
        if found != expected:
            raise ArtifactError(f"{self.artifact.model_file} has {found}, but the manifest says {expected}")
        facts = self.session.get_modelmeta().custom_metadata_map
        said = {"ppexport.capacity": str(m.capacities[-1]), "ppexport.card_sha256": m.card_sha256}
        for key, value in said.items():
            if facts.get(key) != value:
                raise ArtifactError(
                    f"{self.artifact.model_file}: {key} is {facts.get(key)!r}, the manifest says {value!r}"
                )

    def _run(self, lr: Image) -> Result:
        sr, impure = self.session.run(["sr", "impure_tokens"], {"lr": lr})
        return Result(sr, int(impure[0]), self.artifact.manifest.capacities[-1])
