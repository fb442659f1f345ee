"""A lab: the devices of a YAML file, each with its address and how it is to be set for a measurement.

    devices:
      - name: orin                    # of its folder of results
        address: ssh://user@orin      # or adb://SERIAL
        artifact: x2_256_orin         # in place of the command's, such as an engine that was built for it
        runtime: onnxruntime          # in place of the command's
        threads: 4
        python: /home/user/venv/bin/python3
        cores: 0-3
        power_mode: MAXN              # Jetson only: a name or number of /etc/nvpmodel.conf; restored afterwards
        clocks: locked                # Jetson only: locked by jetson_clocks, restored afterwards
        sensors: [watts, celsius]     # what a run must show; without it the device counts as failed
        perf_binary: onnxruntime_perf_test
        identity: ~/.ssh/lab

Only name and address are needed. Paths are relative to the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ppexport.errors import InputError
from ppexport.files import read_limited_text
from ppexport.profile.remote import Settings, parse_cores
from ppexport.remote.address import SshAddress, parse_address

MAX_BYTES = 1 << 20
MAX_DEVICES = 256
SSH_PORT = 22


def _absolute(value: object, info: ValidationInfo) -> object:
    """A path relative to the folder of the lab file, which is the context of the validation."""
    return (Path(str(info.context)) / os.path.expanduser(value)).absolute() if isinstance(value, str) else value


Kind = Literal["watts", "celsius", "mhz", "throttling", "throttled", "load", "share"]
"""What the name of a sensor begins with."""
Text = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
"""YAML reads a single core or the number of a mode as a number."""
FilePath = Annotated[Path, BeforeValidator(_absolute)]


class Device(BaseModel):
    """One device; the module's docstring says what its fields mean."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    address: str
    artifact: FilePath | None = None
    runtime: str | None = None
    threads: int | None = Field(default=None, ge=1)
    python: str | None = None
    cores: Text | None = None
    power_mode: Text | None = None
    clocks: Literal["locked"] | None = None
    sensors: list[Kind] = Field(default_factory=list)
    perf_binary: FilePath | None = None
    identity: FilePath | None = None

    @field_validator("address", "python", "cores", "power_mode")
    @classmethod
    def _usable(cls, value: str | None, info: ValidationInfo) -> str | None:
        try:
            if info.field_name == "python":
                Settings(python=value)
            elif info.field_name == "power_mode":
                Settings(power_mode=value)
            elif info.field_name == "cores":
                parse_cores(value)
            elif parse_address(str(value)) is None:
                raise InputError("this machine is measured without a lab")
        except InputError as error:
            # What pydantic collects.
            raise ValueError(str(error)) from None
        return value

    @property
    def settings(self) -> Settings:
        """How the device is to be set."""
        return Settings(self.python, self.power_mode, self.clocks == "locked", parse_cores(self.cores))


class Lab(BaseModel):
    """All devices."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    devices: list[Device] = Field(min_length=1, max_length=MAX_DEVICES)

    @field_validator("devices")
    @classmethod
    def _names(cls, value: list[Device]) -> list[Device]:
        names = [device.name.lower() for device in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two devices are called {twice[0]}, and would share a folder")
        return value

    def groups(self) -> list[list[Device]]:
        """The devices by machine: those of one machine are one device, which measures one thing at a time."""
        found: dict[str, list[Device]] = {}
        for device in self.devices:
            address = parse_address(device.address)
            # Whatever user they name and however they are spelled.
            if isinstance(address, SshAddress):
                address = SshAddress(address.host.lower(), None, address.port or SSH_PORT)
            found.setdefault(str(address), []).append(device)
        return list(found.values())


def read_lab(path: Path) -> Lab:
    """The lab that the YAML file *path* describes, its paths absolute. Raises InputError, naming device and field."""
    try:
        data = yaml.safe_load(read_limited_text(path, MAX_BYTES, "a lab file"))
        return Lab.model_validate(data, context=path.parent)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error, data)}") from None


def _explain(error: ValidationError, data: Any) -> str:
    """The first thing that is wrong, by the device's name where it has one."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if len(where) > 1 and where[0] == "devices" and where[1].isdecimal():
        entry = data["devices"][int(where[1])]
        name = entry.get("name") if isinstance(entry, dict) else None
        where[:2] = [f"device {name if isinstance(name, str) else int(where[1]) + 1}"]
    return f"{': '.join(where) or 'the file'}: {first['msg'].removeprefix('Value error, ')}"
