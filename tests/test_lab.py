"""Labs: files that describe devices, and measuring on all of them."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sshd import Device
from sshd_profiles import BRIEF, profile, refused

from ppexport.cli.devices import RemoteRun, clean_lab, exit_code, lab_json, measure_lab, show_lab
from ppexport.device.measure import PLANS
from ppexport.errors import InputError
from ppexport.profile.lab import Lab, read_lab
from ppexport.profile.remote import Settings, parse_cores
from ppexport.profile.result import Profile
from ppexport.remote import ssh as devices
from ppexport.remote.ssh import SshOptions

pytest_plugins = ["sshd_fixtures", "profile_fixtures"]
WHOLE = """
devices:
  - name: orin
    address: ssh://user@orin
    artifact: engines/orin
    runtime: onnxruntime
    threads: 4
    python: /home/user/venv/bin/python3
    cores: 0-3
    power_mode: 0
    clocks: locked
    sensors: [watts, celsius]
    identity: ~/.ssh/lab
  - {name: phone, address: "adb://R58M12ABCDE", cores: 7, perf_binary: onnxruntime_perf_test}
"""


def test_a_whole_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "lab.yaml"
    path.write_text(WHOLE)
    orin, phone = read_lab(path).devices
    assert orin.artifact == tmp_path / "engines/orin"
    assert orin.identity == Path("/home/me/.ssh/lab")
    settings = orin.settings
    assert (settings.power_mode, settings.lock_clocks, settings.cores) == ("0", True, (0, 1, 2, 3))
    assert settings.python == "/home/user/venv/bin/python3"
    assert phone.settings.cores == (7,)
    assert phone.perf_binary == tmp_path / "onnxruntime_perf_test"


def test_one_machine_is_one_device_however_it_is_spelled(tmp_path):
    addresses = [
        "ssh://a@Orin",
        "ssh://b@orin:22",
        "ssh://orin:2222",
        "adb://R58M12ABCDE",
        "ssh://[::1]",
        "ssh://[::1]:22",
    ]
    path = tmp_path / "lab.yaml"
    path.write_text(json.dumps({"devices": [{"name": f"d{i}", "address": a} for i, a in enumerate(addresses)]}))
    groups = [[device.name for device in group] for group in read_lab(path).groups()]
    assert groups == [["d0", "d1"], ["d2"], ["d3"], ["d4", "d5"]]


def test_cores():
    assert parse_cores("0,2,6-7") == (0, 2, 6, 7)
    assert parse_cores(None) == ()
    for text in ("", "a", "7-4", "64", "-1", "1;2", "0-"):
        with pytest.raises(InputError, match="cores"):
            parse_cores(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices: [", "is not readable YAML"),
        ("a: 2021-99-99", "is not readable YAML"),
        ("just text", "valid dictionary"),
        ("devices: []", "devices: List should have at least 1 item"),
        ("devices: [{name: a}]", "device a: address: Field required"),
        ("devices: [{address: 'ssh://a'}]", "device 1: name: Field required"),
        ("devices: [{name: a, address: 'ssh://-oProxyCommand=x'}]", "device a: address: a device is local, ssh://"),
        ("devices: [{name: a, address: local}]", "without a lab"),
        ("devices: [{name: ../a, address: 'ssh://a'}]", "device ../a: name: String should match"),
        ("devices: [{name: a, address: 'ssh://a', power: 1}]", "device a: power: Extra inputs"),
        (
            "devices: [{name: a, address: 'ssh://a', power_mode: 'a;b'}]",
            "device a: power_mode: a power mode is a number, or a name such as MAXN_SUPER, not 'a;b'",
        ),
        ("devices: [{name: a, address: 'ssh://a', power_mode: 1000}]", "power_mode: a power mode is a number, or"),
        ("devices: [{name: a, address: 'ssh://a', power_mode: true}]", "device a: power_mode: Input should"),
        ("devices: [{name: a, address: 'ssh://a', cores: 7-4}]", "device a: cores: cores count up"),
        ("devices: [{name: a, address: 'ssh://a', sensors: [power]}]", "device a: sensors: 0: Input should be 'watts'"),
        ("devices: [{name: a, address: 'ssh://a', python: -c}]", "device a: python: a device's Python is a name"),
        ("devices: [{name: a, address: 'ssh://a'}, {name: A, address: 'ssh://b'}]", "two devices are called a"),
        ("!!python/object/apply:os.system [id]", "is not readable YAML"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_lab(path)
    assert str(caught.value).startswith(f"{path}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["devices", "name", "address", "cores"]) | st.text(), x), max_leaves=8))  # fmt: skip
def test_no_file_breaks_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(json.dumps(data))
    with suppress(InputError):
        assert isinstance(read_lab(path), Lab)


@pytest.fixture
def second(board, device_python, tmp_path):
    folder = tmp_path / "second"
    folder.mkdir()
    other = Device(folder)
    other.program("python3", f'#!/bin/sh\nexec "{device_python}" "$@"\n')
    other.start()
    yield other
    other.go_away()


def run_in(out, artifact, options):
    return RemoteRun(artifact, None, None, False, True, False, 0, out, None, "local", options, Settings(), None, None)


def test_a_lab(board, second, enlarger, tmp_path, monkeypatch):
    # Both devices' host keys for one client.
    board.known_hosts.write_text(board.known_hosts.read_text() + second.known_hosts.read_text())
    lab, out = tmp_path / "lab.yaml", tmp_path / "out"
    devices = [
        {"name": "one", "address": board.address, "cores": 0, "sensors": ["load"]},
        {"name": "away", "address": "ssh://nobody@127.0.0.1:1"},
        {"name": "two", "address": second.address, "identity": str(second.identity), "sensors": ["watts"]},
        {"name": "again", "address": board.address, "threads": 1},
    ]
    lab.write_text(json.dumps({"devices": devices}))
    monkeypatch.setitem(PLANS, "quick", BRIEF)
    run = run_in(out, enlarger, board.options)
    found = measure_lab(read_lab(lab), run)
    assert list(found) == ["one", "away", "two", "again"]
    errors = {name: str(outcome.error) for name, outcome in found.items() if outcome.error is not None}
    assert set(errors) == {"away", "two"}
    assert "cannot be reached" in errors["away"]
    assert errors["two"] == "the run shows no watts, which the lab file asks for"
    results = {name: Profile(out / name / "profile.json").data for name in ("one", "two", "again")}
    assert results["one"]["machine"]["usable_cores"] == 1
    assert results["one"]["machine"]["address"] == board.address
    # One address is one device: what it measures it measures alone.
    end = results["one"]["sensors"]["t"][-1] / 1e9
    first, later = (datetime.fromisoformat(results[name]["created"]) for name in ("one", "again"))
    assert (later - first).total_seconds() > end - 1
    # A lack of a device and a bad file are different failures.
    assert exit_code(found) == 1
    assert exit_code({"away": found["away"]}) == 3
    assert exit_code({"one": found["one"]}) == 0
    console = Console(record=True, width=200)
    show_lab(found, console)
    assert console.export_text().count("failed") == 2
    told = lab_json(found)["devices"]
    assert told["away"] == {"error": errors["away"], "result": None}
    assert told["two"]["result"]["subjects"][0]["summary"]["count"] >= 16
    assert board.jobs() == second.jobs() == []
    cleaned = clean_lab(read_lab(lab), run)
    assert cleaned["one"] == cleaned["two"] == []
    assert "cannot be reached" in cleaned["away"][0]


def test_what_the_system_refuses_costs_no_other_device(enlarger, tmp_path, monkeypatch):
    lab, out = tmp_path / "lab.yaml", tmp_path / "out"
    lab.write_text(json.dumps({"devices": [{"name": n, "address": f"ssh://{n}@127.0.0.1:1"} for n in ("full", "off")]}))
    out.mkdir()
    (out / "full").write_text("a file")
    run = run_in(out, enlarger, SshOptions())
    errors = {name: str(outcome.error) for name, outcome in measure_lab(read_lab(lab), run).items()}
    assert errors["full"] == f"{out / 'full'} is not a folder"
    assert "cannot be reached" in errors["off"]
    monkeypatch.setattr(devices, "open_device", fails_with(OSError(28, "No space left on device", "/tmp/x")))
    errors = {name: str(outcome.error) for name, outcome in measure_lab(read_lab(lab), run).items()}
    assert re.fullmatch(r"/tmp/x: No space left on device \(the disk at /.* has \d+\.\d MB left\)", errors["off"])


def fails_with(error):
    def fail(*_):
        raise error

    return fail


def test_the_command(enlarger, tmp_path):
    lab, told = tmp_path / "lab.yaml", tmp_path / "told.json"
    lab.write_text("devices: [{name: away, address: 'ssh://nobody@127.0.0.1:1'}]")
    assert "leave --on" in refused(enlarger, "--devices", lab, "--on", "ssh://a")
    assert "is not a lab file" in refused(enlarger, "--devices", enlarger / "model.onnx")
    done = profile(enlarger, "--devices", lab, "--quick", "-o", tmp_path / "out", "--json", told, code=3)
    assert "away: ssh://nobody@127.0.0.1:1 cannot be reached" in done.stderr
    assert "cannot be reached" in json.loads(told.read_text())["devices"]["away"]["error"]
