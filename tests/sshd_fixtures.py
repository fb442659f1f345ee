"""Fixtures for tests that need a device; `pytest_plugins = ["sshd_fixtures"]` brings them into a test module."""

from __future__ import annotations

from pathlib import Path

import pytest
from sshd import Device
from sshd_builds import write_source


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A device that answers."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "device"
    folder.mkdir()
    device = Device(folder)
    device.start()
    yield device
    device.steer("hold", False)
    device.go_away()


@pytest.fixture
def source(tmp_path) -> Path:
    """An ONNX artifact to build from."""
    return write_source(tmp_path / "x2_64")
