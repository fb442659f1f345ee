"""Looks into a Core AI asset, which Apple's runtime computes, by means of a second, open one.

A picture takes minutes. So whatever was computed is kept until the run is complete, and an interrupted run continues
from what was kept.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.backends.coreai.asset import Session
from ppexport.backends.coreai.convert_asset import write_asset
from ppexport.backends.open_copy import OpenCopyProbe
from ppexport.backends.open_front import KeptResults, OpenFront
from ppexport.files import sha256_text
from ppexport.networks.load import card_of
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from ppexport.device.runner import Runner


class AssetProbe(OpenCopyProbe):
    """An asset and its open copy."""

    def __init__(self, runner: Runner, twin: StaticTwin, folder: Path) -> None:
        """Convert *twin* once more, which takes about as long as the export, unless *folder* has the copy."""
        manifest = runner.artifact.manifest
        versions = {name: version(name) for name in ("torch", "coreai-core", "coreai-torch")}
        made_from = {"files": manifest.files, "versions": versions, "outputs": OpenFront(twin).outputs}
        kept = KeptResults(folder, sha256_text(json.dumps(made_from, sort_keys=True))[:16])
        path = kept.folder / "open.aimodel"
        if not path.is_dir():
            new = path.with_name("new.aimodel")
            shutil.rmtree(new, ignore_errors=True)
            write_asset(new, twin, card_of(twin.network), manifest, OpenFront)
            new.rename(path)
        super().__init__(runner, kept, Session(path))
