"""Runs an ONNX artefact with OpenVINO."""

from __future__ import annotations

from ppexport.artifact import Artifact
from ppexport.backends.base import Prepared, Result, Runner, feeds
from ppexport.backends.openvino.session import Session
from ppexport.errors import ArtifactError


class OpenVinoRunner(Runner):
    """An ONNX artefact in OpenVINO."""

    def __init__(
        self, artifact: Artifact, device: str = "CPU", threads: int | None = None, *, counters: bool = False
    ) -> None:
        """Raises as `Session`, and ArtifactError where the graph is not what the manifest says."""
        super().__init__(artifact)
        file = artifact.graph_file
        self.session = Session(artifact.read(file), str(file), device, threads, counters=counters)
        m = artifact.manifest
        expected = {"lr"} | ({"slots"} if len(m.capacities) > 1 else set()) | ({"mask"} if m.mask == "input" else set())
        if set(self.session.inputs) != expected:
            raise ArtifactError(f"{file} takes {sorted(self.session.inputs)}, but the manifest says {sorted(expected)}")

    def _run(self, prepared: Prepared) -> Result:
        out = self.session.run(feeds(self.artifact.manifest, prepared))
        return Result(out["sr"], int(out["impure_tokens"][0]), prepared.capacity)
