"""Names of the files of a run, in its own folder here and in its job's folder on a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ppexport
from ppexport.device.artifact import read_artifact
from ppexport.device.board import complete_header
from ppexport.device.measure import INSIDE, Plan, plan_from
from ppexport.device.target import Target, facts, runtimes

if TYPE_CHECKING:
    from ppexport.profile.pictures import Picture


IMAGES = "images.npy"
"""Pixels that queries cycle over."""
JOURNAL = "latency.jsonl"
REQUEST = "request.json"
"""On a device: what is to be measured."""
ARCHIVE = "agent.pyz"
"""On a device: the program that measures."""
OUTCOME = "outcome.json"
"""On a device: what is known at the end only, such as peak memory."""
CROPS = "routing.npy"
"""Here: what `--routing` measures on, while it does."""


# What a measuring process is told: targets, images, plan, and where to write.


@dataclass(frozen=True)
class Job:
    """One measurement."""

    targets: tuple[Target, ...]
    images: Path
    """.npy, uint8 (images, h, w, 3)."""
    plan: Plan
    journal: Path
    header: dict[str, Any]

    def to_json(self) -> str:
        """For `job_from`."""
        return json.dumps(
            {
                "targets": [target.to_dict() for target in self.targets],
                "images": str(self.images),
                "plan": vars(self.plan),
                "journal": str(self.journal),
                "header": self.header,
            }
        )


def job_from(text: str) -> Job:
    """The job that `to_json` wrote."""
    data = json.loads(text)
    targets = tuple(Target(**target) for target in data["targets"])
    return Job(targets, Path(data["images"]), plan_from(data["plan"]), Path(data["journal"]), data["header"])


def wanted_of(targets: Sequence[Target], pictures: Sequence[Picture], plan: Plan, address: str) -> dict[str, Any]:
    """What is to be measured: all of a journal's header that does not depend on the machine that measures.

    Raises ArtifactError for a damaged artefact.
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


def header_of(targets: Sequence[Target], pictures: Sequence[Picture], plan: Plan, address: str) -> dict[str, Any]:
    """The first record of the journal of this measurement on this machine. Raises ArtifactError as `wanted_of`."""
    return complete_header(wanted_of(targets, pictures, plan, address))
