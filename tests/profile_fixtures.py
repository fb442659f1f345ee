"""Fixtures for measurements on devices; `pytest_plugins = ["profile_fixtures"]` brings them into a test module."""

from __future__ import annotations

from pathlib import Path

import pytest
from sshd_profiles import make_python, write_enlarger


@pytest.fixture(scope="session")
def device_python(tmp_path_factory) -> Path:
    """A Python with NumPy and ONNX Runtime, and nothing else."""
    return make_python(tmp_path_factory.mktemp("device-python") / "venv")


@pytest.fixture
def enlarger(tmp_path) -> Path:
    """An artifact that takes next to no time."""
    return write_enlarger(tmp_path / "enlarger")


@pytest.fixture
def board(device, device_python):
    """A device behind ssh that can measure."""
    device.program("python3", f'#!/bin/sh\nexec "{device_python}" "$@"\n')
    return device
