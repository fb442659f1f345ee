"""What only some boards and phones tell: who they are, and sensors that run as a program beside the measurement."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterator, List

from ppexport.device.android import Thermal
from ppexport.device.jetson import describe_jetson
from ppexport.device.journal import FORMAT, VERSION
from ppexport.device.machine import describe, versions
from ppexport.device.sensors import Sensor
from ppexport.device.tegrastats import Tegrastats


def describe_board(root: str = "/") -> Dict[str, Any]:
    """{"jetson": see `describe_jetson`} on a Jetson, else nothing."""
    jetson = describe_jetson(root)
    return {} if jetson is None else {"jetson": jetson}


@contextmanager
def board_sensors() -> Iterator[List[Sensor]]:
    """The sensors of a Jetson, by `tegrastats`, or of a phone, by `dumpsys`; ended with the block."""
    with ExitStack() as stack:
        sensors: List[Sensor] = []
        program = shutil.which("tegrastats")
        if program is not None:
            try:
                sensor = Tegrastats((program, *Tegrastats.OPTIONS))
            except OSError:
                pass
            else:
                stack.callback(sensor.close)
                sensors.append(sensor)
        if shutil.which("dumpsys") is not None and shutil.which("getprop") is not None:
            sensors.append(Thermal())
        yield sensors


# The first record of a journal: what is measured, and the machine that measures it.


def complete_header(wanted: Dict[str, Any]) -> Dict[str, Any]:
    """The header of a measurement of *wanted*, see `ppexport.device.job.wanted_of`, on this machine."""
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
