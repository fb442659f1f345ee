"""The first record of a journal: what is measured, and the machine that measures it."""

from __future__ import annotations

import hashlib
import json
import platform
from typing import Any, Dict

from ppexport.profile.agent.board import describe_board
from ppexport.profile.agent.journal import FORMAT, VERSION
from ppexport.profile.agent.machine import describe, versions


def complete_header(wanted: Dict[str, Any]) -> Dict[str, Any]:
    """The header of a measurement of *wanted*, see `ppexport.profile.job.wanted_of`, on this machine."""
    subjects = [
        {**subject, "runtime_versions": versions(packages)}
        for subject, packages in zip(wanted["subjects"], wanted["packages"])
    ]
    machine = {"address": wanted["address"], "host_name": platform.node(), **describe()}
    tools = {"ppexport": wanted["ppexport"], "python": platform.python_version(), **versions(("numpy",))}
    same = (subjects, wanted["images"], wanted["plan"], machine["cpu"], machine["system"], tools)
    return {
        "format": FORMAT,
        "version": VERSION,
        # What must be equal for a run to go on where another process left it.
        "identity": hashlib.sha256(json.dumps(same, sort_keys=True).encode("utf-8")).hexdigest(),
        "created": wanted["created"],
        "subjects": subjects,
        "plan": wanted["plan"],
        "machine": {**machine, **describe_board()},
        "versions": tools,
        "images": wanted["images"],
        "inside_the_clock": wanted["inside_the_clock"],
    }
