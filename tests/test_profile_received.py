"""What a device sends as its journal is made anew from what was checked."""

from __future__ import annotations

import json

import pytest
from sshd_profiles import BRIEF, write_enlarger

from ppexport.device.job import complete_header
from ppexport.device.target import choose
from ppexport.profile.browser import SENSORS
from ppexport.profile.received import RecordChecker, memory_from, receive
from ppexport.profile.remote import Settings, prepare_remote
from ppexport.profile.result import Profile, write_profile
from ppexport.remote.address import TransferError

QUERY = ["q", 0, 0, 0, 5_000_000, 5, 5, 1536, -1]


@pytest.fixture(scope="module")
def request_made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("received")
    targets = choose(write_enlarger(folder / "enlarger"), None, 1, False)
    return prepare_remote(targets, BRIEF, folder / "run", None, "ssh://board", Settings())


@pytest.fixture
def sent(request_made):
    """A header as the agent writes it."""
    return json.loads(json.dumps(complete_header(request_made.wanted)))


def arrive(request_made, folder, *lines, torn=b"") -> int:
    source = folder / "sent.jsonl"
    whole = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    source.write_bytes(b"".join(line + b"\n" for line in whole) + torn)
    return sum(receive(source, request_made.wanted, request_made.digest, folder / "latency.jsonl").queries)


def other(header, **more):
    return ["header", {**header, **more}]


LIES = {
    "another artifact": (lambda h: [other(h, subjects=[{**h["subjects"][0], "artifact": "x"}])], "another measurement"),
    "two subjects": (lambda h: [other(h, subjects=h["subjects"] * 2)], "another measurement"),
    "no subjects": (lambda h: [other(h, subjects="many")], "another format"),
    "no identity": (lambda h: [other(h, identity="x")], "another measurement"),
    "no machine": (lambda h: [other(h, machine={"cpu": 3})], "which machine"),
    "a foreign query": (lambda h: [["header", h], ["q", 7, *QUERY[2:]]], "was not asked for"),
    "a foreign image": (lambda h: [["header", h], ["q", 0, 99, *QUERY[3:]]], "was not asked for"),
    "no time": (lambda h: [["header", h], ["q", 0, 0, 0, 0, 5, 5, 0, -1]], "was not asked for"),
    "an early reading": (lambda h: [["header", h], ["c", -1, {}]], "not a valid record"),
    "an endless load": (lambda h: [["header", h], ["load", 0, 10**400]], "not a valid record"),
    "a negative first run": (lambda h: [["header", h], ["first", 0, -1]], "not a valid record"),
    "an odd warm-up": (lambda h: [["header", h], ["warm", 0, 3, {"a": [1]}]], "not a valid record"),
    "many sensors": (
        lambda h: [["header", h], *(["c", i, {f"x{i}.{j}": 1 for j in range(200)}] for i in range(2))],
        "more than 256 sensors",
    ),
    "not JSON": (lambda h: [["header", h], b'["q",0,'], "not JSON"),
    "a long line": (lambda h: [["header", h], b"x" * 2_000_000], "longer than"),
    "two headers": (lambda h: [["header", h], QUERY, ["header", h]], "in another place"),
    "no header": (lambda h: [QUERY], "in another place"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_device_that_lies(request_made, sent, tmp_path, name):
    lie, message = LIES[name]
    with pytest.raises(TransferError, match=message):
        arrive(request_made, tmp_path, *lie(sent))
    assert not (tmp_path / "latency.jsonl").exists()


def test_what_a_device_says_is_cleaned(request_made, sent, tmp_path):
    sent["machine"] |= {"cpu": "\x1b[31mred" + "x" * 1000, "governors": 3, "usable_cores": "many", "odd": [1]}
    clocks = {"GPU": {"min": 1, "max": 2, "now": "x"}, "\x1b": {}, "EMC": 3, "locked": "no"}
    sent["machine"]["jetson"] = {"l4t": "\x1b[2J36", "power_mode": {"number": 1}, "clocks": clocks, "odd": {}}
    sent["subjects"][0]["runtime_versions"] = {"onnxruntime": "1.2", "other": "3", "onnxruntime-gpu": "\x1b[1m"}
    sent |= {"inside_the_clock": "nothing", "created": "never", "versions": {"python": "3.8.10", "ppexport": "9"}}
    reading = [
        "c",
        1,
        {
            "celsius.\x1b[2Jx": 1,
            "ok": 2,
            "t": 5,
            "watts.endless": 10**400,
            "text": "a",
            "flag": True,
            "celsius.cpu": 40,
        },
    ]
    begin = ["begin", {"t": 0, "wall": "now", "odd": 1}]
    lines = [["header", sent], begin, *[QUERY] * 16, reading, ["end", {"t": 9}]]
    assert arrive(request_made, tmp_path, *lines, torn=b'["q",0') == 16
    found = Profile(write_profile(tmp_path, tmp_path / "latency.jsonl", [None]))
    machine = found.data["machine"]
    assert machine["cpu"] == ("red" + "x" * 1000)[:200]
    assert (machine["governors"], machine["usable_cores"]) == ([], 1)
    assert machine["jetson"] == {
        "l4t": "36", "jetpack": None, "power_mode": {"number": 1, "name": ""},
        "clocks": {"GPU": {"min": 1, "max": 2, "now": None}, "locked": None},
    }  # fmt: skip
    assert "odd" not in machine
    assert found.subjects[0]["runtime_versions"] == {"onnxruntime": "1.2"}
    assert found.data["protocol"]["inside_the_clock"].startswith("checks of the input")
    assert found.data["created"] == request_made.wanted["created"]
    assert found.data["versions"] == {"python": "3.8.10", "ppexport": request_made.wanted["ppexport"]}
    assert set(found.data["sensors"]) == {"t", "ok", "celsius.cpu"}
    assert found.data["sensors"]["t"] == [1]


def test_a_date_of_an_earlier_call_is_kept_and_written_anew(request_made, sent, tmp_path):
    for told, kept in (("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05+00:00"), ("2026-01-02\x1b03:04", None)):
        assert arrive(request_made, tmp_path, ["header", {**sent, "created": told}], QUERY) == 1
        header = json.loads((tmp_path / "latency.jsonl").read_text().splitlines()[0])[1]
        assert header["created"] == kept or (kept is None and "\x1b" not in header["created"])


@pytest.mark.parametrize("told", [{}, {"memory": 3}, {"memory": [[1]]}, {"memory": [["a", 2]]}, {"memory": [[-1, 2]]}])
def test_memory_that_is_none(told):
    assert memory_from(told, 1) == [None]


def test_memory():
    assert memory_from({"memory": [[1, 2], [3, 4], [5, 6]]}, 2) == [(1, 2), (3, 4)]


def test_of_a_browser_only_what_a_page_can_read_is_kept():
    checker = RecordChecker({"subjects": ["x2"], "images": [0]}, known=SENSORS)
    told = {"page.hidden": 1, "watts.total": 5.0, "mhz.cpu0": 900, "throttled.now": 1}
    assert checker.checked(["c", 7, told]) == ("c", 7, {"page.hidden": 1})
