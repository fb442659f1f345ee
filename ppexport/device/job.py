"""A measurement: its files, what a measuring process receives, and the header of its journal."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ppexport
from ppexport.device.artifact import read_artifact
from ppexport.device.jetson import describe_jetson
from ppexport.device.journal import FORMAT, VERSION
from ppexport.device.machine import describe, versions
from ppexport.device.measure import INSIDE, Plan
from ppexport.device.target import Target, facts, runtimes

if TYPE_CHECKING:
    from ppexport.profile.latency_run import Crop


IMAGES = "images.npy"
"""Pixels that queries cycle over."""
JOURNAL = "latency.jsonl"
CROPS = "routing.npy"
"""What `--routing` measures on; on this machine only, and removed afterwards."""


@dataclass(frozen=True)
class Job:
    """One measurement."""

    targets: tuple[Target, ...]
    images: Path
    """.npy, uint8 (images, h, w, 3)."""
    plan: Plan
    journal: Path
    header: dict[str, Any]
    fps: float | None = None
    """A deadline for frames, where one was asked for."""

    def to_json(self) -> str:
        """For `job_from`."""
        return json.dumps(asdict(self), default=os.fspath)


def job_from(text: str) -> Job:
    """The job that `Job.to_json` wrote."""
    data = json.loads(text)
    targets = tuple(Target(**target) for target in data["targets"])
    return Job(
        targets, Path(data["images"]), Plan(**data["plan"]), Path(data["journal"]), data["header"], data.get("fps")
    )


def wanted_of(targets: Sequence[Target], pictures: Sequence[Crop], plan: Plan, address: str) -> dict[str, Any]:
    """What is to be measured: all of a journal's header that does not depend on the machine that measures.

    Args:
        targets: The artifacts, each in a runtime.
        pictures: What the queries cycle over.
        plan: How long to measure.
        address: The machine that measures, as `--on` names it, for people.

    Raises:
        ArtifactError: An artifact is damaged.
    """
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "address": address,
        "ppexport": ppexport.__version__,
        "subjects": [facts(target, read_artifact(Path(target.artifact))) for target in targets],
        "packages": [runtimes()[target.runtime].packages for target in targets],
        "plan": vars(plan),
        "images": [picture.facts() for picture in pictures],
        "inside_the_clock": INSIDE,
    }


def complete_header(wanted: dict[str, Any]) -> dict[str, Any]:
    """The header of a measurement of *wanted*, see `wanted_of`, on this machine."""
    subjects = [
        {**subject, "runtime_versions": versions(packages)}
        for subject, packages in zip(wanted["subjects"], wanted["packages"])
    ]
    machine = {"address": wanted["address"], "host_name": platform.node(), **describe()}
    jetson = describe_jetson()
    tools = {"ppexport": wanted["ppexport"], "python": platform.python_version(), **versions(("numpy",))}
    same = (subjects, wanted["images"], wanted["plan"], machine["cpu"], machine["system"], tools)
    return {
        "format": FORMAT,
        "version": VERSION,
        # What must be equal for a run to continue where another process left it.
        "identity": hashlib.sha256(json.dumps(same, sort_keys=True).encode("utf-8")).hexdigest(),
        "created": wanted["created"],
        "subjects": subjects,
        "plan": wanted["plan"],
        "machine": {**machine, **({} if jetson is None else {"jetson": jetson})},
        "versions": tools,
        "images": wanted["images"],
        "inside_the_clock": wanted["inside_the_clock"],
    }
