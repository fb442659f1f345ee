"""Addresses, untrusted output, processes with limits, and the ssh command."""

from __future__ import annotations

import ast
import string
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import examples

import ppexport.remote
from ppexport.errors import InputError, printable
from ppexport.remote.address import SshAddress, TransferError, parse_address
from ppexport.remote.output import parse_object
from ppexport.remote.ssh import SshOptions, SshTransport, open_device
from ppexport.remote.transport import TimeIsUp, fact_lines, run_limited

ADDRESSES = {
    "ssh://orin": SshAddress("orin"),
    "ssh://nvidia@orin.local": SshAddress("orin.local", "nvidia"),
    "ssh://a_b-c.d@192.168.0.7:2222": SshAddress("192.168.0.7", "a_b-c.d", 2222),
    "ssh://root@[fe80::1]:22": SshAddress("fe80::1", "root", 22),
    "ssh://my_board": SshAddress("my_board"),
}
REFUSED = [
    "", "orin", "LOCAL", "local ", "ssh://", "ssh://-oProxyCommand=touch x", "ssh://-oProxyCommand=x", "ssh://a@-b",
    "ssh://-a@b", "ssh://a@b/c", "ssh://a@b:0", "ssh://a@b:65536", "ssh://a@b:-1", "ssh://a@b:２２", "ssh://a b",
    "ssh://a;b", "ssh://$(x)", "ssh://`x`", "ssh://a@b@c", "ssh://a:b@c", "ssh://[::1", "ssh://[zz]", "ssh://[1.2.3.4]",
    "ssh://a..b", "ssh://.a", "ssh://a.", "ssh://a-", "ssh://a\n", "ssh://a\0", "ssh://a%h", "http://a", "ssh:///a",
    "ssh://ä", "ssh://" + "a" * 64, "ssh://" + ".".join(["a" * 60] * 5), "-oProxyCommand=x",
]  # fmt: skip


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses(text):
    assert parse_address(text) == ADDRESSES[text]
    assert str(ADDRESSES[text]) == text


@pytest.mark.parametrize("text", REFUSED)
def test_refused_addresses(text):
    with pytest.raises(InputError):
        parse_address(text)


def test_local_is_no_address():
    assert parse_address("local") is None


SAFE = set(string.ascii_letters + string.digits + "_.-:")


@given(
    st.one_of(st.text(), st.text().map("ssh://".__add__), st.from_regex(r"ssh://[-@:.\[\]\w$;'\" ]*", fullmatch=True))
)
def test_whatever_is_accepted_is_safe(text):
    try:
        address = parse_address(text)
    except InputError:
        return
    if address is None:
        assert text == "local"
        return
    assert isinstance(address, SshAddress)
    for part in (address.host, address.user or "x"):
        assert set(part) <= SAFE
        assert not part.startswith("-")
    assert address.port is None or 0 < address.port < 65536
    assert parse_address(str(address)) == address


@examples()
@given(st.text(alphabet="\x1b\x9b\x9d[]0;m\x07\\PabcX\x90\r\n\t‮é", max_size=60))
def test_nothing_printable_reaches_the_terminal_as_an_order(text):
    clean = printable(text)
    assert not {c for c in clean if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c == "\u202e"}


def test_printable_keeps_the_words():
    assert printable(b"\x1b[31mred\x1b[0m \x1b]0;title\x07and \xff plain\r\n\tline") == "red and \ufffd plain\n\tline"


@pytest.mark.parametrize("text", ["", "[]", "1", "{", "[" * 100_000, '{"a":' * 100_000])
def test_only_json_objects_are_taken(text):
    assert parse_object(text) is None


def test_texts_of_objects_are_cleaned():
    assert parse_object('{"a\\u001b[1m": ["\\u001b]0;x\\u0007b", {"c": 1}]}') == {"a": ["b", {"c": 1}]}


def test_facts_of_a_machine_are_lines_with_known_names():
    assert fact_lines(b"system=Linux\nbad name=x\n\x1b[1mx=\x1b[2my\nempty\nlong=" + b"z" * 999) == {
        "system": "Linux", "x": "y", "long": "z" * 200,
    }  # fmt: skip


def run(*command, source=None, limit=1000, timeout=20.0):
    output = bytearray()
    code, messages = run_limited(command, source, output.extend, limit, timeout)
    return code, bytes(output), messages


def test_processes():
    assert run("sh", "-c", "printf out; printf err >&2; exit 7") == (7, b"out", b"err")
    with pytest.raises(TransferError, match="more than 1000 bytes"):
        run("sh", "-c", "cat /dev/zero")
    with pytest.raises(TimeIsUp):
        run("sleep", "60", timeout=0.2)
    with pytest.raises(TimeIsUp):
        run("sh", "-c", "exec >&- 2>&-; exec sleep 60", timeout=0.2)
    with pytest.raises(FileNotFoundError):
        run("no-such-program")
    # Whoever holds the pipes open in the background does not hold up the caller.
    begin = time.monotonic()
    assert run("sh", "-c", "echo first; sleep 60 & exit 0")[:2] == (0, b"first\n")
    assert time.monotonic() - begin < 30
    # More on standard error than a pipe holds does not block, and only its end is kept.
    code, _, messages = run("sh", "-c", "head -c 1000000 /dev/zero >&2; echo end >&2")
    assert code == 0
    assert len(messages) == 1 << 16
    assert messages.endswith(b"end\n")


def test_the_ssh_command(tmp_path):
    address = parse_address("ssh://me@board:2222")
    transport = SshTransport(address, SshOptions(tmp_path / "key", tmp_path / "config"))
    command = transport._ssh()
    assert command[-2:] == ["--", "board"]
    for setting in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no"):
        assert setting in command
    trusting = SshTransport(address, SshOptions(accept_new_host_key=True))
    assert "StrictHostKeyChecking=accept-new" in trusting._ssh()
    trusting.close()
    socket = next(word for word in command if word.startswith("ControlPath="))
    # Quoted, since a temporary folder may have spaces in its name.
    assert Path(socket.partition("=")[2].strip('"')).parent.stat().st_mode & 0o777 == 0o700
    transport.close()


def test_files_that_are_not_there_are_told_before_anything_is_done(tmp_path):
    with (
        pytest.raises(InputError, match="no_key is not a file"),
        open_device("ssh://a", SshOptions(tmp_path / "no_key")),
    ):
        pass


@pytest.mark.parametrize("path", sorted(Path(ppexport.remote.__file__).parent.glob("*.py")), ids=lambda p: p.name)
def test_devices_need_the_standard_library_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    found |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    ours = {name for name in found if name.startswith("ppexport")}
    assert {name.partition(".")[0] for name in found - ours} <= sys.stdlib_module_names
    rooms = {"ppexport", "ppexport.errors", "ppexport.files", "ppexport.device.agent"}
    assert all(name in rooms or name.startswith("ppexport.remote") for name in ours)
