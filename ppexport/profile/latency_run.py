"""A latency run in its folder:

images.npy      pixels that queries cycle over
latency.jsonl   the journal
profile.json    the result
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ppexport.device.artifact import read_artifact
from ppexport.device.jetson import BEFORE, CLOCKS
from ppexport.device.job import CROPS, IMAGES, JOURNAL, Job, complete_header, wanted_of
from ppexport.device.journal import JournalError, read_header
from ppexport.device.launch import Progress, known_part, memory_of, run
from ppexport.device.measure import PLANS, Plan
from ppexport.device.target import Target
from ppexport.errors import InputError
from ppexport.folders import Run
from ppexport.profile.query_crops import Crop, crops_of, save_crops
from ppexport.profile.remote import Request, Settings, make_request
from ppexport.profile.result import PROFILE, Profile, write_profile


def _begun(folder: Path) -> bool:
    """Whether *folder* holds a latency run: its journal, or before that nothing but the crops."""
    try:
        journal = folder / JOURNAL
        return [path.name for path in folder.glob("[!.]*")] == [IMAGES] or read_header(str(journal)) is not None
    except (OSError, JournalError):
        return False


_MORE = [f"{kind}{runtime}.json" for kind in ("layers", "routing", "frames") for runtime in ("", "-*")]
RUN = Run("latency run", (IMAGES, JOURNAL, PROFILE, BEFORE, CLOCKS, CROPS, *_MORE), _begun)


def plan_of(quick: bool, sustained: bool, targets: Sequence[Target]) -> Plan:
    """The plan of the options. Raises InputError for both of them, or a sustained run of several runtimes."""
    if quick and sustained:
        raise InputError("--quick and --sustained are different protocols: name one")
    if sustained and len(targets) > 1:
        raise InputError("a sustained run heats the machine with one runtime: name one --runtime")
    return PLANS["quick" if quick else "sustained" if sustained else "full"]


def _crops(targets: Sequence[Target], images: Path | None, folder: Path) -> list[Crop]:
    """What all targets of a run in *folder* are timed on. Raises PpexportError."""
    manifests = [read_artifact(Path(target.artifact)).manifest for target in targets]
    if len({(*m.size, m.scale) for m in manifests}) > 1:
        raise InputError("artifacts that are timed in turns need one size and scale, so that they do the same work")
    found = crops_of(next((m for m in manifests if m.options), manifests[0]), images)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is not a folder")
    return found


def prepare(targets: Sequence[Target], plan: Plan, folder: Path, images: Path | None) -> Job:
    """The job of a run of *targets* on this machine in *folder*, which is made.

    *images* is a folder of pictures, None for the bundled photographs. Everything that can be refused is refused here.
    Raises PpexportError.
    """
    crops = _crops(targets, images, folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = complete_header(wanted_of(targets, crops, plan, "local"))
    job = Job(tuple(targets), folder / IMAGES, plan, folder / JOURNAL, header)
    if known_part(job) is None:
        save_crops(job.images, crops)
    return job


def prepare_remote(
    targets: Sequence[Target], plan: Plan, folder: Path, images: Path | None, address: str, settings: Settings
) -> Request:
    """The request for a run on the device *address*, for *folder*, which is made later. Raises PpexportError."""
    crops = _crops(targets, images, folder)
    return make_request(targets, crops, wanted_of(targets, crops, plan, address), settings)


def measure(job: Job, progress: Progress, say: Callable[[str], object]) -> Profile:
    """Measure *job*, or what is missing of it, and write its result. Raises PpexportError."""
    folder = job.journal.parent
    if not run(job, progress) and (folder / PROFILE).is_file():
        say(f"{folder} already holds this run, complete: nothing was measured again")
        return Profile(folder / PROFILE)
    memory = [memory_of(replace(job, targets=(target,))) for target in job.targets]
    return Profile(write_profile(folder, job.journal, memory))
