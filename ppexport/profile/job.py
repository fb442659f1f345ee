"""What a measuring process is told: targets, images, plan, and where to write."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ppexport
from ppexport.artifact import read_artifact
from ppexport.files import sha256_text
from ppexport.profile.agent.journal import FORMAT, VERSION
from ppexport.profile.agent.machine import describe, versions
from ppexport.profile.agent.plan import Plan, plan_from
from ppexport.profile.pictures import Picture
from ppexport.profile.runtimes import Target, facts
from ppexport.profile.subject import INSIDE


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


def header_of(targets: Sequence[Target], pictures: Sequence[Picture], plan: Plan, address: str) -> dict[str, Any]:
    """The first record of the journal of this measurement. Raises ArtifactError for a damaged artefact."""
    subjects = [facts(target, read_artifact(Path(target.artifact))) for target in targets]
    images = [picture.facts() for picture in pictures]
    machine = {"address": address, "host_name": platform.node(), **describe()}
    tools = {"ppexport": ppexport.__version__, "python": platform.python_version(), **versions(("numpy",))}
    same = (subjects, images, vars(plan), machine["cpu"], machine["system"], tools)
    return {
        "format": FORMAT,
        "version": VERSION,
        # What must be equal for a run to go on where another process left it.
        "identity": sha256_text(json.dumps(same, sort_keys=True)),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "subjects": subjects,
        "plan": vars(plan),
        "machine": machine,
        "versions": tools,
        "images": images,
        "inside_the_clock": INSIDE,
    }
