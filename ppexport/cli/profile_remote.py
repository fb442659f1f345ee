"""The part of `ppexport profile` that has a device measure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ppexport.cli.devices import following, taken_up_later

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ppexport.device.measure import Plan
    from ppexport.device.target import Target
    from ppexport.profile.remote import ProfileWork, Settings
    from ppexport.profile.result import Profile
    from ppexport.remote.detached import Telling
    from ppexport.remote.ssh import SshOptions


@dataclass(frozen=True)
class There:
    """A device, and how it is reached and set."""

    address: str
    options: SshOptions
    settings: Settings
    timeout: float | None
    perf_binary: Path | None = None
    """Measures in place of our agent."""


@contextmanager
def work_there(
    there: There, targets: Sequence[Target], plan: Plan, folder: Path, images: Path | None, telling: Telling
) -> Iterator[ProfileWork]:
    """The measurement on a device, connected until the block ends. Raises PpexportError."""
    from ppexport.folders import run_folder
    from ppexport.profile.latency_run import RUN, prepare_remote
    from ppexport.profile.perf_binary import PerfBinary
    from ppexport.profile.remote import RemoteProfile
    from ppexport.remote.ssh import open_device

    request = prepare_remote(targets, plan, folder, images, there.address, there.settings)
    with run_folder(folder, RUN), open_device(there.address, there.options) as device:
        if there.perf_binary is None:
            yield RemoteProfile(device, request, folder, telling)
        else:
            yield PerfBinary(device, request, there.perf_binary, folder, telling)


def measure_there(there: There, targets: Sequence[Target], plan: Plan, folder: Path, images: Path | None) -> Profile:
    """Measure on a device, and show what happens. Raises PpexportError."""
    with (
        following("profile") as telling,
        work_there(there, targets, plan, folder, images, telling) as work,
        taken_up_later(work),
    ):
        return work.run(there.timeout)


def clean_there(there: There, artifact: Path) -> list[str]:
    """Stop and remove every measurement of *artifact* on a device; returns what was done."""
    from ppexport.device.artifact import read_artifact
    from ppexport.profile.remote import job_prefix
    from ppexport.remote.detached import remove_jobs
    from ppexport.remote.ssh import open_device

    whole = read_artifact(artifact)
    with open_device(there.address, there.options) as device:
        return remove_jobs(device, job_prefix(whole))
