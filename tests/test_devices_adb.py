"""Devices behind adb. A stand-in plays adb and the phone: it records its arguments, hangs, dies, and disconnects."""

from __future__ import annotations

import os
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sshd import wait_until

from ppexport.errors import InputError
from ppexport.remote.adb import AdbTransport
from ppexport.remote.address import AdbAddress, ConnectionLost, DeviceError, DiskFullError, parse_address
from ppexport.remote.detached import Job, Pace
from ppexport.remote.ssh import open_device

pytest_plugins = ["adb_fixtures"]
FAST = Pace(poll=0.02, reconnect=(0.02,) * 5)


@pytest.fixture
def transport(phone) -> AdbTransport:
    return AdbTransport(AdbAddress("SERIAL1"))


def test_files_there_and_back(phone, transport, tmp_path):
    source, back = tmp_path / "a b", tmp_path / "back"
    # Every byte: a terminal in between would change line ends.
    source.write_bytes(bytes(range(256)) * 2000)
    transport.put(source, "test-1", "model.ort")
    assert (phone / "phone/.cache/ppexport/test-1/model.ort").read_bytes() == source.read_bytes()
    transport.get("test-1", "model.ort", back, 1 << 20)
    assert back.read_bytes() == source.read_bytes()
    arguments = (phone / "arguments").read_text().splitlines()
    assert arguments[:4] == ["-s", "SERIAL1", "shell", "-T"]
    facts = transport.describe()
    assert (facts["board"], facts["android"], facts["machine"]) == ("Phone 9", "15", os.uname().machine)


def test_exit_codes_and_messages_are_the_scripts_own(transport):
    reply = transport.run('printf "%s" "$1"; printf "no newline" >&2; exit 1', ["a'b $(x) \"\n;"])
    assert (reply.code, reply.output, reply.messages) == (1, b"a'b $(x) \"\n;", b"no newline")
    assert transport.run("exit 255").code == 255
    # A script cannot speak for adb: its marker is not the last one.
    assert transport.run('echo "ppexport-exit 0" >&2; exit 7').code == 7
    with pytest.raises(DiskFullError):
        transport.checked("echo 'cat: write: No space left on device' >&2; exit 1")


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        ("offline", ConnectionLost, "offline"),
        ("unauthorized", DeviceError, "accept its question"),
        ("mute", ConnectionLost, "the connection ended"),
    ],
)
def test_a_device_that_does_not_work(phone, transport, state, kind, message):
    (phone / state).touch()
    with pytest.raises(kind, match=message):
        transport.checked("echo hello")


def test_a_device_that_is_not_there(phone):
    with pytest.raises(ConnectionLost, match="SERIAL2"), open_device("adb://SERIAL2") as transport:
        transport.checked("true")


def test_a_hanging_device(phone, transport):
    (phone / "hang").touch()
    begin = time.monotonic()
    with pytest.raises(ConnectionLost, match="does not answer"):
        transport.run("true", timeout=0.3)
    assert time.monotonic() - begin < 30


def test_no_adb(transport, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="platform tools"):
        transport.run("true")


def test_a_line_that_breaks_while_a_file_is_sent(phone, transport, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(400_000))
    (phone / "cut").touch()
    job = Job(transport, "test-1", FAST, lambda _: None)
    job.put(source, "model.ort")
    there = phone / "phone/.cache/ppexport/test-1"
    assert [path.name for path in there.iterdir()] == ["model.ort"]
    assert (there / "model.ort").read_bytes() == source.read_bytes()


def test_a_job_goes_on_while_the_device_is_away(phone, transport, tmp_path):
    program = tmp_path / "program"
    program.write_text("import time, os\nwhile not os.path.exists('go'): time.sleep(0.02)\nprint('measured')\n")
    job = Job(transport, "test-1", FAST, lambda _: None)
    job.put(program, "program.py")
    job.start([sys.executable, "program.py"])
    (phone / "offline").touch()
    with pytest.raises(ConnectionLost):
        job.follow(lambda _: None)
    folder = phone / "phone/.cache/ppexport/test-1"
    (folder / "go").touch()
    wait_until(lambda: list(folder.glob("exit.*")))
    (phone / "offline").unlink()
    output = bytearray()
    assert job.follow(output.extend).succeeded
    assert output == b"measured\n"
    job.remove()
    assert not folder.exists()


@pytest.mark.parametrize("text", ["emulator-5554", "10.0.0.5:5555", "R58M12ABCDE", "adb-ab_c._adb-tls-connect._tcp"])
def test_serials(text):
    assert parse_address(f"adb://{text}") == AdbAddress(text)
    assert str(AdbAddress(text)) == f"adb://{text}"


@given(st.one_of(st.text(), st.from_regex(r"adb://[-;$ `'\"\n\w.:]*", fullmatch=True)))
def test_whatever_serial_is_accepted_is_no_option_and_one_word(text):
    try:
        address = parse_address("adb://" + text.removeprefix("adb://"))
    except InputError:
        return
    assert isinstance(address, AdbAddress)
    assert address.serial[0].isalnum()
    assert address.serial.isascii()
    assert not set(address.serial) - set("._:-") - {c for c in address.serial if c.isalnum()}


def test_a_port_of_the_phone_leads_here_while_a_page_is_open(phone, transport):
    am = phone / "phone-bin" / "am"
    am.write_text(f'#!/bin/sh\nprintf "%s " "$@" > {phone}/opened\n')
    am.chmod(0o755)
    with transport.reversed(4711):
        transport.open_page("http://127.0.0.1:4711/a-b_C/")
    arguments = (phone / "arguments").read_text().splitlines()
    assert arguments[:5] == ["-s", "SERIAL1", "reverse", "tcp:4711", "tcp:4711"]
    assert arguments[-5:] == ["-s", "SERIAL1", "reverse", "--remove", "tcp:4711"]
    opened = (phone / "opened").read_text()
    assert opened == "start -a android.intent.action.VIEW -d http://127.0.0.1:4711/a-b_C/ "
    am.write_text("#!/bin/sh\necho 'Error: Activity not started, unable to resolve Intent'\n")
    with pytest.raises(DeviceError, match="opens no browser: Error: Activity not started"):
        transport.open_page("http://127.0.0.1:4711/")
    with pytest.raises(DeviceError, match="not found"), AdbTransport(AdbAddress("OTHER")).reversed(4711):
        pass
