"""What only some boards and phones tell: who they are, and sensors that run as a program beside the measurement."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterator, List

from ppexport.profile.agent.android import Thermal
from ppexport.profile.agent.jetson import describe_jetson
from ppexport.profile.agent.sensors import Sensor
from ppexport.profile.agent.tegrastats import Tegrastats


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
