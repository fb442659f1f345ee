"""A Core ML artifact and a command line; `pytest_plugins = ["apple_fixtures"]` brings them into a test module."""

from __future__ import annotations

import re
import sys

import pytest
from conftest import exported_once
from small_networks import SIZE, small_network

from ppexport import cli


@pytest.fixture(scope="session")
def coreml_set(tmp_path_factory):
    """A capacity set of a small network in fp16, 128 and 256 slots. Never changed by a test."""
    pytest.importorskip("coremltools")
    return exported_once(
        tmp_path_factory, small_network(), backend="coreml", size=SIZE, precision="fp16", capacities=[128, 256]
    )


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Runs ppexport in this process; checks its exit code and gives (standard output, standard error)."""

    def command(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["ppexport", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.run()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == code, out + err
        return out, err

    return command


@pytest.fixture
def fails(command_line):
    """Runs ppexport, expecting one sentence that matches *message* and nothing on standard output."""

    def command(*arguments, message, code=2):
        out, err = command_line(*arguments, code=code)
        assert out == ""
        assert len(err.strip().splitlines()) == 1, err
        assert re.search(message, err), err

    return command
