"""Exported graphs, kept in a folder and used again while nothing that they are made from has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ppexport
from peers import plain
from peers.in_torch import Source
from ppexport.device.artifact import Manifest, read_artifact
from ppexport.errors import ArtifactError
from ppexport.exporting import export, package_versions
from ppexport.files import sha256_text
from ppexport.networks.load import card_of

Say = Callable[[str], None]


def fingerprint(paths: Iterable[Path]) -> str:
    """Twelve digits of the SHA-256 of all these files."""
    return sha256_text("\0".join(f"{p.name}\0{p.read_text(encoding='utf-8')}" for p in sorted(paths)))[:12]


@cache
def our_code() -> str:
    """The fingerprint of all code that an artefact is made by.

    A manifest names versions, but between two commits the version stays and the graph does not.
    """
    root = Path(ppexport.__file__).parent
    rooms = ("networks", "twin", "backends/onnx")
    return fingerprint([root / "exporting.py", *(path for room in rooms for path in root.glob(f"{room}/**/*.py"))])


@cache
def plain_code() -> str:
    """The fingerprint of all code that the plain graph is made by."""
    return fingerprint([Path(plain.__file__), *(Path(ppexport.__file__).parent / "networks").glob("*.py")])


@dataclass(frozen=True)
class Cache:
    """The exports of one model for one LR size, in the folder *folder*."""

    folder: Path
    model: str
    size: tuple[int, int]

    def _place(self, source: Source, kind: str, code: str) -> Path:
        """Where the export *kind* of *source* is kept."""
        arch = "dense" if source.dense else "pure_pass"
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{Path(self.model).name}-{arch}-{kind}-{self.size[0]}x{self.size[1]}-{code}"

    def _matches(self, found: Manifest, card_sha256: str, flavour: str, capacities: Sequence[int] | None) -> bool:
        """Whether an artefact is the one that would be exported."""
        wanted = [found.tokens] if capacities is None else list(capacities)
        made = (found.card_sha256, found.flavour, found.capacities, found.size, found.versions)
        return made == (card_sha256, flavour, wanted, list(self.size), package_versions())

    def artifact(self, source: Source, flavour: str, capacities: Sequence[int] | None, say: Say) -> Path:
        """The folder of our artefact, exported now unless it is there. Raises PpexportError."""
        out = self._place(source, f"{flavour}-{'full' if capacities is None else 'set'}", our_code())
        network = source.load()
        try:
            known = self._matches(read_artifact(out).manifest, card_of(network).hash(), flavour, capacities)
        except ArtifactError:
            known = False
        if not known:
            say(f"exporting {out.name}")
            export(network, backend="onnx", size=self.size, out=out, capacities=capacities, flavour=flavour)
        return out

    def plain(self, source: Source, say: Say) -> Path:
        """The file of the plain graph, exported now unless it is there. Raises ExportError."""
        network = source.load()
        weights = card_of(network).weights
        assert weights is not None
        made = sha256_text(f"{weights.sha256} {plain_code()} {package_versions()}")[:12]
        out = self._place(source, "plain", made).with_suffix(".onnx")
        if not out.is_file():
            say(f"exporting {out.name}")
            plain.export_plain(network, self.size, out)
        return out
