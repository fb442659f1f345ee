"""The ssh transport against a real sshd on the loopback address."""

from __future__ import annotations

import os
import threading

import pytest
from sshd import wait_until

from ppexport.errors import InputError
from ppexport.remote.address import ConnectionLost, TransferError
from ppexport.remote.detached import Job, Pace
from ppexport.remote.ssh import SshOptions, open_device

pytest_plugins = ["sshd_fixtures"]


@pytest.fixture
def line(device):
    with open_device(device.address, device.options) as transport:
        yield transport


def test_scripts_and_their_arguments(line, device):
    odd = ["a b", "$(id)", "`id`", "'", '"', "\\", "*", "-n", "é", "a\nb", "", "!!", "~"]
    script = 'for word; do printf "%s\\0" "$word"; done; printf err >&2; cd; pwd; exit 7'
    reply = line.run(script, odd)
    assert reply.output.decode().split("\0") == [*odd, f"{device.home}\n"]
    assert (reply.code, reply.messages) == (7, b"err")
    assert line.describe()["machine"] == os.uname().machine
    assert len(device.connections()) == 1, "the steps do not share a connection"
    with pytest.raises(TransferError, match="more than"):
        line.run("cat /dev/zero")


def test_a_step_that_hangs_is_given_up(line):
    with pytest.raises(ConnectionLost, match="does not answer"):
        line.run("sleep 60", timeout=0.5)
    assert line.run("echo again").output == b"again\n"


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a$b", "a\nb"])
def test_a_key_whose_path_ssh_cannot_read_is_named(device, name):
    options = SshOptions(device.identity.rename(device.folder / name), device.config)
    with open_device(device.address, options) as transport, pytest.raises(InputError, match="ssh cannot be given"):
        transport.run("true")


def test_files_there_and_back(line, tmp_path):
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(3_000_000))
    line.put(source, "test-1", "a.bin")
    line.get("test-1", "a.bin", back, 3_000_000)
    assert back.read_bytes() == source.read_bytes()


def test_a_line_that_breaks_while_a_file_is_sent(line, device, tmp_path):
    folder = device.home / ".cache/ppexport/test-1"
    source = tmp_path / "source"
    source.write_bytes(os.urandom(200_000_000))
    failed: list[BaseException] = []

    def put():
        try:
            line.put(source, "test-1", "a.bin")
        except ConnectionLost as error:
            failed.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    wait_until(lambda: folder.exists() and any(p.stat().st_size > 1_000_000 for p in folder.iterdir()))
    device.cut()
    thread.join(60)
    assert failed
    # The half of it is cleared away, and never takes the name.
    wait_until(lambda: list(folder.iterdir()) == [])
    small = tmp_path / "small"
    small.write_bytes(b"small")
    Job(line, "test-1", Pace(0.01, (0.01,))).put(small, "a.bin")
    assert (folder / "a.bin").read_bytes() == b"small"


def test_a_connection_that_was_lost_is_made_again(line, device):
    assert line.run("echo 1").output == b"1\n"
    first = device.connections()
    device.cut()
    # The first steps afterwards may go past the shared connection, which has not noticed yet.
    wait_until(lambda: line.run("echo 2").output == b"2\n" and len(device.connections()) == 1)
    assert device.connections() != first
