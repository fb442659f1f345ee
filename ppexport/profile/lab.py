"""A lab: the devices of a YAML file, each with its address and how it is to be set for a measurement.

    devices:
      - name: orin                    # of its folder of results
        address: ssh://user@orin      # or adb://SERIAL
        artifact: x2_256_orin         # in place of the command's, such as an engine that was built for it
        runtime: onnxruntime          # in place of the command's
        threads: 4
        python: /home/user/venv/bin/python3
        cores: 0-3
        power_mode: MAXN              # of a Jetson, its name or number in /etc/nvpmodel.conf; set and put back
        clocks: locked                # of a Jetson, by jetson_clocks, and put back
        sensors: [watts, celsius]     # what a run must show; without it the device counts as failed
        perf_binary: onnxruntime_perf_test
        identity: ~/.ssh/lab

Only name and address are needed. Paths are relative to the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from ppexport.device.machine import core_list
from ppexport.errors import InputError
from ppexport.profile.remote import Settings
from ppexport.remote.address import SshAddress, parse_address

MAX_BYTES = 1 << 20
MAX_DEVICES = 256
SSH_PORT = 22
Kind = Literal["watts", "celsius", "mhz", "throttling", "throttled", "load", "share"]
"""What the name of a sensor begins with."""
Cores = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
"""YAML takes a single core for a number."""


@contextmanager
def _as_value_error() -> Iterator[None]:
    """What pydantic collects."""
    try:
        yield
    except InputError as error:
        raise ValueError(str(error)) from None


class Device(BaseModel):
    """One device; the module's docstring says what its fields mean."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    address: str
    artifact: str | None = None
    runtime: str | None = None
    threads: int | None = Field(default=None, ge=1)
    python: str | None = None
    cores: Cores | None = None
    power_mode: int | str | None = None
    clocks: Literal["locked"] | None = None
    sensors: list[Kind] = Field(default_factory=list)
    perf_binary: str | None = None
    identity: str | None = None

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        with _as_value_error():
            address = parse_address(value)
        if address is None:
            raise ValueError("this machine is measured without a lab")
        return value

    @field_validator("power_mode", mode="before")
    @classmethod
    def _power_mode(cls, value: object) -> object:
        if value is not None and not (type(value) is int and 0 <= value <= 999):
            if not isinstance(value, str) or value.isdecimal():
                raise ValueError(f"Input should be a number up to 999, or the name of a mode, not {value!r}")
            with _as_value_error():
                Settings(power_mode=value)
        return value

    @field_validator("python")
    @classmethod
    def _python(cls, value: str | None) -> str | None:
        with _as_value_error():
            Settings(value)
        return value

    @field_validator("cores")
    @classmethod
    def _cores(cls, value: str | None) -> str | None:
        if value is not None:
            with _as_value_error():
                core_list(value)
        return value

    def settings(self) -> Settings:
        """How the device is to be set."""
        cores = () if self.cores is None else core_list(self.cores)
        return Settings(self.python, self.power_mode, self.clocks == "locked", cores)

    def missing(self, sensors: Iterable[str]) -> list[str]:
        """Which of the kinds of sensors that it must show are not among the names *sensors*."""
        shown = {name.partition(".")[0] for name in sensors}
        return [kind for kind in self.sensors if kind not in shown]


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
            found.setdefault(machine_of(device.address), []).append(device)
        return list(found.values())


def machine_of(text: str) -> str:
    """What is equal for addresses of one machine, whatever user they name and however they are spelled."""
    address = parse_address(text)
    if isinstance(address, SshAddress):
        return str(SshAddress(address.host.lower(), None, address.port or SSH_PORT))
    return str(address)


def read_lab(path: Path) -> Lab:
    """The lab that the YAML file *path* describes, its paths absolute. Raises InputError, naming device and field."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES} bytes: a lab file is small")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    try:
        lab = Lab.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error, data)}") from None
    return Lab(devices=[_with_paths(device, path.parent) for device in lab.devices])


def _explain(error: ValidationError, data: object) -> str:
    """The first thing that is wrong, by the device's name where it has one."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if len(where) > 1 and where[0] == "devices" and where[1].isdecimal():
        # What is no mapping has no such place.
        entry = data["devices"][int(where[1])] if isinstance(data, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        where[:2] = [f"device {name if isinstance(name, str) else int(where[1]) + 1}"]
    return f"{': '.join(where) or 'the file'}: {first['msg'].removeprefix('Value error, ')}"


def _with_paths(device: Device, base: Path) -> Device:
    paths = {
        field: str((base / os.path.expanduser(value)).absolute())
        for field in ("artifact", "perf_binary", "identity")
        if (value := getattr(device, field)) is not None
    }
    return device.model_copy(update=paths)
