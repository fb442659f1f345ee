"""A latency run in its folder, and what an artifact is timed on: crops of photographs, since cost follows content.

images.npy      pixels that queries cycle over
latency.jsonl   the journal
profile.json    the result
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppexport.device.artifact import Manifest, read_artifact
from ppexport.device.jetson import BEFORE, CLOCKS
from ppexport.device.job import CROPS, IMAGES, JOURNAL, Job, complete_header, wanted_of
from ppexport.device.journal import JournalError, read_header
from ppexport.device.launch import Progress, known_part, memory_of, run
from ppexport.device.mask import mirror_pad
from ppexport.device.measure import PLANS, Plan
from ppexport.device.neighbours import MOST
from ppexport.device.target import Target, runtimes
from ppexport.errors import InputError
from ppexport.files import atomic_path
from ppexport.folders import Run
from ppexport.imaging.images import photo_folder, pictures_in, read_levels
from ppexport.parity.inputs import PHOTOS
from ppexport.profile.result import PROFILE, Profile, write_profile

LEAST = 8
"""Images that queries cycle over, at least."""
PLACES = ((0.15, 0.2), (0.85, 0.8), (0.15, 0.8), (0.85, 0.2), (0.5, 0.5))
"""Where in a photograph to cut, as shares of the room there is (down, right)."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Crop:
    """One LR image."""

    name: str
    rgb: Pixels
    """(h, w, 3)."""
    pure_share: float | None
    """Share of pure pixels after padding; None for a network without Pure-Pass."""

    def facts(self) -> dict[str, Any]:
        """Name, hash and pure share."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rgb).tobytes()).hexdigest()
        return {"name": self.name, "sha256": digest, "pure_share": self.pure_share}


def crop(photo: Pixels, size: tuple[int, int], place: tuple[float, float]) -> Pixels:
    """A window of *size* at *place*, mirrored where the photograph is too small."""
    photo = mirror_pad(photo, max(photo.shape[0], size[0]), max(photo.shape[1], size[1])).astype(np.uint8)
    top, left = (round((photo.shape[i] - size[i]) * place[i]) for i in (0, 1))
    return np.ascontiguousarray(photo[top : top + size[0], left : left + size[1]])


def share_of(manifest: Manifest, rgb: Pixels) -> float | None:
    """The share of pixels of *rgb* that Pure-Pass finds pure; None for a network without it."""
    return None if manifest.mask == "none" else float(manifest.pure(rgb).mean())


def crops_of(manifest: Manifest, folder: Path | None = None, places: int = 2) -> list[Crop]:
    """Crops of the artifact's size: *places* of every bundled photograph, or of every picture in *folder*.

    Raises InputError for fewer than eight.
    """
    files = [photo_folder() / name for name, _, _ in PHOTOS] if folder is None else pictures_in(folder)
    # A folder of few pictures is cut in more places, a large one in one.
    count = places if folder is None else max(1, min(len(PLACES), -(-LEAST // len(files))))
    found = []
    for path in files:
        photo = read_levels(path)
        for number, place in enumerate(PLACES[:count]):
            rgb = crop(photo, (manifest.size[0], manifest.size[1]), place)
            found.append(Crop(f"{path.stem}-{number}" if count > 1 else path.stem, rgb, share_of(manifest, rgb)))
    if len(found) < LEAST:
        raise InputError(f"{folder} gives {len(found)} images; a measurement needs at least {LEAST}: add pictures")
    return found


def crops_for(targets: Sequence[Target], images: Path | None, folder: Path) -> list[Crop]:
    """What all *targets* of a run in *folder* are timed on.

    *images* is a folder of pictures, None for the bundled photographs. Raises PpexportError.
    """
    manifests = [read_artifact(Path(target.artifact)).manifest for target in targets]
    if len({(*m.size, m.scale) for m in manifests}) > 1:
        raise InputError("artifacts that are timed in turns need one size and scale, so that they do the same work")
    found = crops_of(next((m for m in manifests if m.options), manifests[0]), images)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is not a folder")
    return found


def check_place(targets: Sequence[Target], address: str) -> None:
    """Raise InputError where *targets* are not timed on *address*, as `--on` names it."""
    for target in targets:
        own, name = runtimes()[target.runtime].place, Path(target.artifact).name
        if own and own != address:
            raise InputError(f"{name} is timed in a {own}: use `ppexport profile` with --on {own}")
        if not own and address in {runtime.place for runtime in runtimes().values()} - {""}:
            raise InputError(f"{name} holds no page for a browser: `ppexport export MODEL --backend web` makes one")


def save_crops(path: Path, made: Sequence[Crop]) -> None:
    """Write the pixels (images, h, w, 3) to an .npy file, atomically.

    Raises InputError where it holds others, which may be anybody's.
    """
    pixels = np.stack([picture.rgb for picture in made])
    if path.exists():
        try:
            same = np.array_equal(np.load(path, allow_pickle=False), pixels)
        except (OSError, ValueError, EOFError):
            same = False
        if not same:
            raise InputError(f"{path} holds other pictures than those to measure: name another folder")
        return
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, pixels)


def _begun(folder: Path) -> bool:
    """Whether *folder* holds a latency run: its journal, or before that nothing but the crops."""
    try:
        journal = folder / JOURNAL
        return [path.name for path in folder.glob("[!.]*")] == [IMAGES] or read_header(str(journal)) is not None
    except (OSError, JournalError):
        return False


_MORE = [f"{kind}{runtime}.json" for kind in ("layers", "routing", "frames") for runtime in ("", "-*")]
RUN = Run("latency run", (IMAGES, JOURNAL, PROFILE, BEFORE, CLOCKS, CROPS, *_MORE), _begun)


def check_load(load: int) -> int:
    """*load*. Raises InputError for no number of busy neighbours."""
    if not 0 <= load <= MOST:
        raise InputError(f"--load {load} is no number of busy neighbours: they are 0 to {MOST}")
    return load


def plan_of(quick: bool, sustained: bool, load: int, targets: Sequence[Target]) -> Plan:
    """The plan of the options.

    Raises InputError for both of the first two, a sustained run of several runtimes, or no number of neighbours.
    """
    check_load(load)
    if quick and sustained:
        raise InputError("--quick and --sustained are different protocols: name one")
    if sustained and len(targets) > 1:
        raise InputError("a sustained run heats the machine with one runtime: name one --runtime")
    return replace(PLANS["quick" if quick else "sustained" if sustained else "full"], load=load)


def prepare(targets: Sequence[Target], plan: Plan, folder: Path, images: Path | None) -> Job:
    """The job of a run of *targets* on this machine in *folder*, which is made; *images* is as in `crops_for`.

    Everything that can be refused is refused here. Raises PpexportError.
    """
    check_place(targets, "local")
    crops = crops_for(targets, images, folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = complete_header(wanted_of(targets, crops, plan, "local"))
    job = Job(tuple(targets), folder / IMAGES, plan, folder / JOURNAL, header)
    if known_part(job) is None:
        save_crops(job.images, crops)
    return job


def measure(job: Job, progress: Progress, say: Callable[[str], object]) -> Profile:
    """Measure *job*, or what is missing of it, and write its result. Raises PpexportError."""
    folder = job.journal.parent
    if not run(job, progress) and (folder / PROFILE).is_file():
        say(f"{folder} already holds this run, complete: nothing was measured again")
        return Profile(folder / PROFILE)
    memory = [memory_of(replace(job, targets=(target,))) for target in job.targets]
    return Profile(write_profile(folder, job.journal, memory))
