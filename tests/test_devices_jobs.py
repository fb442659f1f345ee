"""Files and jobs on this machine, by the same scripts that run on a device."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sshd import alive, wait_until

from ppexport.errors import InputError
from ppexport.remote import scripts
from ppexport.remote.address import DeviceError, DiskFullError, TransferError
from ppexport.remote.detached import DetachedWork, Job, Pace, StillRunning, Telling, remove_jobs
from ppexport.remote.transport import LocalTransport

FAST = Pace(poll=0.02, reconnect=())


@pytest.fixture
def local(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return LocalTransport()


@pytest.fixture
def job(local):
    job = Job(local, "test-1", FAST)
    yield job
    job.remove()


def folder_of(job):
    return Path.home() / ".cache" / "ppexport" / job.folder


def test_files_there_and_back(local, tmp_path):
    source, back = tmp_path / "a b", tmp_path / "back"
    source.write_bytes(os.urandom(300_000))
    local.put(source, "test-1", "model.onnx")
    there = Path.home() / ".cache/ppexport/test-1/model.onnx"
    assert there.read_bytes() == source.read_bytes()
    assert not there.stat().st_mode & 0o077
    before = there.stat().st_ino
    local.put(source, "test-1", "model.onnx")
    assert there.stat().st_ino == before, "a file that is there already was sent again"
    assert local.stat("test-1", "model.onnx")[0] == 300_000
    local.get("test-1", "model.onnx", back, 300_000)
    assert back.read_bytes() == source.read_bytes()
    back.write_text("old")
    with pytest.raises(TransferError, match="no more than 10 belong"):
        local.get("test-1", "model.onnx", back, 10)
    with pytest.raises(TransferError, match="missing"):
        local.get("test-1", "nothing", back, 10)
    (there.parent / "link").symlink_to("/etc/passwd")
    with pytest.raises(TransferError, match="missing"):
        local.get("test-1", "link", back, 1 << 20)
    assert back.read_text() == "old"
    assert sorted(p.name for p in there.parent.iterdir()) == ["link", "model.onnx"]


def test_a_job_that_is_started_by_many_at_once_runs_once(job, tmp_path, monkeypatch):
    job.put(Path(__file__), "a")
    # A slow disk: everyone has looked whether the job runs before anyone has started it.
    slow = tmp_path / "bin" / "rm"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 0.3\nexec {shutil.which("rm")} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    command = ["sh", "-c", f"echo run >> '{tmp_path}/runs'; sleep 30"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: job.start(command), range(4)))
    wait_until(lambda: (tmp_path / "runs").exists())
    assert (tmp_path / "runs").read_text() == "run\n"


def test_a_job_that_another_command_removes_is_not_called_failed(job):
    class Work(DetachedWork[None]):
        noun, doing = "build", "building"
        _failed_before = _collect = lambda self, *_: None

        def _start(self):
            self.job.put(Path(__file__), "a")
            self._run(["sleep", "30"])
            job.remove()

        def _failure(self, output, state):
            return AssertionError(state)

    work = Work(job.transport, job.folder, Telling(lambda line: None, lambda doing: None), FAST)
    with pytest.raises(DeviceError, match="another command has collected or removed this build .* starts it anew"):
        work.follow_up()


def test_names_are_ours_only(local, tmp_path):
    for folder, name in (("../x", "a"), ("a", "../b"), ("a", ".b"), ("", "b"), ("a", "b c"), ("-a", "b"), ("a", "-b")):
        with pytest.raises(InputError):
            local.put(Path(__file__), folder, name)
        with pytest.raises(InputError):
            local.get(folder, name, tmp_path / "x", 10)
    with pytest.raises(InputError):
        remove_jobs(local, "")


def test_a_full_disk(local, tmp_path, monkeypatch):
    wide = tmp_path / "wide"
    wide.write_bytes(bytes(5_000_000))
    monkeypatch.setattr(scripts, "PUT", "ulimit -f 1000\ntrap '' XFSZ\n" + scripts.PUT)
    with pytest.raises(DiskFullError, match="full"):
        local.put(wide, "test-1", "model.onnx")
    assert list((Path.home() / ".cache/ppexport/test-1").iterdir()) == []


def test_a_short_or_damaged_file_is_not_put_in_place(local):
    for script, sent, message in (
        (scripts.PUT, ("test-1", "a", "99", "0" * 64), "short"),
        (scripts.PUT, ("test-1", "a", "0", "0" * 64), "damaged"),
    ):
        with pytest.raises(DeviceError, match=f"refused a step: the file arrived {message}"):
            local.checked(script, sent)
    assert list((Path.home() / ".cache/ppexport/test-1").iterdir()) == []


def test_a_job_from_beginning_to_end(job, tmp_path):
    assert job.state().kind == "absent"
    source = tmp_path / "source"
    source.write_text("print('hello'); import sys; sys.stderr.write('oh\\n'); sys.exit(int(sys.argv[1]))")
    job.put(source, "program.py")
    assert job.state().kind == "new"
    output = bytearray()
    job.start([sys.executable, "program.py", "0"])
    state = job.follow(output.extend)
    assert state.succeeded
    assert sorted(bytes(output).splitlines()) == [b"hello", b"oh"]
    assert job.has("output")
    job.discard(["output", "not-there"])
    assert not job.has("output")
    job.start([sys.executable, "program.py", "9"])
    state = job.follow(output.extend)
    assert (state.kind, state.code, state.failed, state.succeeded) == ("exited", 9, True, False)
    job.start(["no-such-program"])
    assert job.follow(output.extend).code == 127
    job.remove()
    assert job.state().kind == "absent"
    assert list((Path.home() / ".cache").iterdir()) == []


def test_arguments_reach_a_job_unchanged(job, local):
    odd = ["a b", "$(touch /tmp/never)", "`x`", "'", '"', "\\", "*", "-n", "é", "a\nb", ""]
    local.checked("mkdir -p ~/.cache/ppexport/test-1")
    job.start([sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *odd])
    output = bytearray()
    assert job.follow(output.extend).succeeded
    assert json.loads(output) == odd


def test_a_running_job_is_found_left_alone_and_stopped(job, local):
    local.checked("mkdir -p ~/.cache/ppexport/test-1 ~/.cache/ppexport/test-2")
    script = 'echo "$$" >> starts; sleep 300 & echo "$!" > child; wait'
    job.start(["sh", "-c", script])
    folder = folder_of(job)
    wait_until(lambda: (folder / "child").exists() and (folder / "child").read_text().endswith("\n"))
    assert job.state().kind == "running"
    job.start(["sh", "-c", script])
    with pytest.raises(StillRunning):
        job.follow(lambda _: None, timeout=0.1)
    assert len((folder / "starts").read_text().splitlines()) == 1
    child = int((folder / "child").read_text())
    assert remove_jobs(local, "test-1") == ["stopped test-1", "removed test-1"]
    assert not folder.exists()
    assert (folder.parent / "test-2").is_dir()
    wait_until(lambda: not alive(child))


TOOLS = [
    "sh", "cat", "mkdir", "mv", "rm", "wc", "cut", "tr", "grep", "tail", "head", "sleep", "rmdir", "nohup", "uname",
    "df", "sed",
]  # fmt: skip


def test_a_job_that_is_stopped_may_put_things_back_first(job, local, tmp_path):
    back = tmp_path / "back"
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "try:\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(600)\n"
        "finally:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(1.5)\n"
        "    pathlib.Path(sys.argv[1]).write_text(str(pathlib.Path('output').exists()))\n"
    )
    local.checked("mkdir -p ~/.cache/ppexport/test-1")
    job.start([sys.executable, "-c", program, str(back)])
    wait_until(lambda: (folder_of(job) / "output").read_text() == "begun\n")
    assert remove_jobs(local, "test-1") == ["stopped test-1", "removed test-1"]
    assert back.read_text() == "True"


def test_a_machine_with_few_tools(job, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(tools))
    source = tmp_path / "source"
    source.write_text("text")
    job.put(source, "file")
    assert job.transport.stat("test-1", "file") == (4, "-")
    job.get("file", tmp_path / "back", 4)
    assert (tmp_path / "back").read_text() == "text"
    assert job.transport.describe()["free_kb"]
    job.start(["sh", "-c", 'echo "$$" > child; exec sleep 300'])
    child = folder_of(job) / "child"
    wait_until(lambda: child.exists() and child.read_text().endswith("\n"))
    pid = int(child.read_text())
    job.remove()
    wait_until(lambda: not alive(pid))


def test_a_job_that_was_killed_or_whose_machine_was_restarted(job, local):
    local.checked("mkdir -p ~/.cache/ppexport/test-1")
    job.start(["sleep", "300"])
    pid = int((folder_of(job) / "pid").read_text())
    wait_until(lambda: os.getpgid(pid) == pid)
    os.killpg(pid, signal.SIGKILL)
    wait_until(lambda: job.state().kind == "died")
    assert job.state().failed
    # After a restart the number belongs to somebody else.
    (folder_of(job) / "pid").write_text(f"{os.getpid()}\n")
    assert job.state().kind == "died"
    job.start(["true"])
    assert job.follow(lambda _: None).succeeded


def test_a_job_outlives_who_started_it(local, tmp_path):
    local.checked("mkdir -p ~/.cache/ppexport/test-1")
    code = (
        "import os, signal\n"
        "from ppexport.remote.detached import Job\nfrom ppexport.remote.transport import LocalTransport\n"
        "Job(LocalTransport(), 'test-1').start(['sh', '-c', 'sleep 1; echo survived'])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    job, output = Job(local, "test-1", FAST), bytearray()
    assert job.follow(output.extend).succeeded
    assert output == b"survived\n"


def test_much_output_arrives_whole(job, local):
    local.checked("mkdir -p ~/.cache/ppexport/test-1")
    job.start([sys.executable, "-c", "for i in range(100000): print(f'line {i}')"])
    output = bytearray()
    assert job.follow(output.extend).succeeded
    assert bytes(output).splitlines() == [f"line {i}".encode() for i in range(100_000)]


class Strange(LocalTransport):
    """A device whose answers are not what they should be."""

    def __init__(self, answer):
        self.answer = answer

    def _stream(self, script, arguments, source, sink, limit, timeout):
        sink(self.answer)
        return 0, b""


@pytest.mark.parametrize("answer", [b"", b"hello\n", b"\xff\n", b"exited x\n", b"-5 -\n", b"5 zz\n", b"1" * 99])
def test_strange_answers_are_errors(answer, tmp_path):
    with pytest.raises(DeviceError, match="no state"):
        Job(Strange(answer), "test-1", FAST).state()
    with pytest.raises(DeviceError, match="no size"):
        Strange(answer).get("test-1", "a", tmp_path / "a", 100)


def test_describe(local):
    facts = local.describe()
    assert facts["system"] == os.uname().sysname
    assert facts["machine"] == os.uname().machine
    assert int(facts["free_kb"]) > 0
