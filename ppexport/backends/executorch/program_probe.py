"""Looks into an ExecuTorch program by means of a second, open one."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.backends.executorch.lower import write_program
from ppexport.backends.executorch.run_executorch import Session
from ppexport.backends.open_copy import OpenCopyProbe
from ppexport.backends.open_front import KeptResults, OpenFront
from ppexport.files import sha256_text
from ppexport.networks.load import card_of
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from ppexport.device.runner import Runner


class ProgramProbe(OpenCopyProbe):
    """A program and its open copy."""

    def __init__(self, runner: Runner, twin: StaticTwin, folder: Path) -> None:
        """Lower *twin* once more, which takes about as long as the export, unless *folder* has the copy."""
        manifest, outputs = runner.artifact.manifest, OpenFront(twin).outputs
        versions = {name: version(name) for name in ("torch", "executorch")}
        made_from = {"files": manifest.files, "versions": versions, "outputs": outputs}
        kept = KeptResults(folder, sha256_text(json.dumps(made_from, sort_keys=True))[:16])
        path = kept.folder / "open.pte"
        write_program(path, twin, card_of(twin.network), manifest, "xnnpack", OpenFront)
        super().__init__(runner, kept, Session(path.read_bytes(), str(path), outputs=outputs))
