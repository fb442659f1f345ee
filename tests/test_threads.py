"""The number of a runtime's threads, wherever it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ppexport
from ppexport.backends.onnx.run_onnxruntime import make_session
from ppexport.backends.openvino.run_openvino import Session
from ppexport.cli import app
from ppexport.device import cores
from ppexport.device.cores import usable_cores, usable_processors
from ppexport.device.runner import check_threads, thread_count
from ppexport.device.target import Target, choose, open_target
from ppexport.errors import InputError
from ppexport.search.trials import RUNTIMES

MOST = usable_processors()
WRONG = [0, -1, "2", 1.5, True, np.bool_(True), MOST + 1, 5000, 100_000]
wrong = pytest.mark.parametrize("threads", WRONG, ids=repr)


def test_what_can_be_used():
    assert [check_threads(n) for n in (None, 1, MOST, np.int64(1))] == [None, 1, MOST, 1]
    assert [thread_count(n) for n in (None, 1)] == [usable_cores(), 1]


def test_too_many_are_answered_with_the_limit_and_the_way_out():
    with pytest.raises(InputError, match=rf"^5000 threads are more than the {MOST} that can help .*: use {MOST} or"):
        check_threads(5000)
    assert check_threads(5000, here=False) == 5000


def system(root: Path, files: dict[str, str]) -> str:
    """A system's tree below *root* that has *files*."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return str(root)


CPU = "sys/devices/system/cpu/cpu{}/topology/{}"
# Two cores of two hyper-threads each.
SIBLINGS = {CPU.format(n, "core_cpus_list"): f"{n % 2},{n % 2 + 2}" for n in range(4)}
OLDER = {CPU.format(n, "thread_siblings_list"): f"{n % 2},{n % 2 + 2}" for n in range(4)}
GROUP = {"proc/self/cgroup": "0::/a/b"}


@pytest.mark.parametrize(
    ("files", "allowed", "processors", "physical"),
    [
        ({}, 4, 4, 4),
        (SIBLINGS, 4, 4, 2),
        (OLDER, 4, 4, 2),
        # Processors 0 and 1 are on different cores; 0 to 2 on two.
        (SIBLINGS, 2, 2, 2),
        (SIBLINGS, 3, 3, 2),
        ({**SIBLINGS, **GROUP, "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 4, 4, 2),
        ({**SIBLINGS, **GROUP, "sys/fs/cgroup/a/b/cpu.max": "250000 100000"}, 4, 3, 2),
        ({**SIBLINGS, **GROUP, "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 4, 1, 1),
        ({**SIBLINGS, **GROUP, "sys/fs/cgroup/cpu.max": "150000 100000"}, 4, 2, 2),
        ({**SIBLINGS, **GROUP, "sys/fs/cgroup/a/b/cpu.max": "nonsense"}, 4, 4, 2),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n0::/", "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            }, 4, 1, 1,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            }, 4, 4, 4,
        ),
    ],
)  # fmt: skip
def test_affinity_hyper_threads_and_quotas_count(tmp_path, monkeypatch, files, allowed, processors, physical):
    monkeypatch.setattr(cores, "_allowed", lambda: list(range(allowed)))
    monkeypatch.setattr(cores, "_cores_of_macos", lambda: None)
    root = system(tmp_path, files)
    assert (usable_processors(root), usable_cores(root)) == (processors, physical)


@wrong
def test_no_place_of_the_api_takes_another_number(artifact, threads):
    model = (artifact / "model.onnx").read_bytes()
    for use in (
        lambda: ppexport.open_artifact(artifact, threads=threads),
        lambda: make_session(model, "a test", threads),
        lambda: Session(model, "a test", threads=threads),
        lambda: RUNTIMES["onnxruntime"](artifact / "model.onnx", threads),
        lambda: RUNTIMES["openvino"](artifact / "model.onnx", threads),
        lambda: open_target(choose(artifact, None, threads, False)[0]),
    ):
        with pytest.raises(InputError, match="threads"):
            use()


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5, True])
def test_a_target_for_another_machine_takes_a_number_of_its_cores_alone(threads):
    assert Target("a", "onnxruntime", "CPU", 5000).threads == 5000
    with pytest.raises(InputError, match="threads are a whole number from 1"):
        Target("a", "onnxruntime", "CPU", threads)


@pytest.mark.parametrize("threads", ["0", "-1", str(MOST + 1), "5000"])
def test_no_command_takes_another_number(artifact, tmp_path, threads):
    (tmp_path / "pictures").mkdir()
    out = str(tmp_path / "out")
    for command in (
        ["upscale", str(artifact), "in.png", "out.png"],
        ["profile", str(artifact), "-o", out],
        ["profile", str(artifact), "--runtime", "openvino", "-o", out],
        ["compare", str(artifact), str(artifact), "-o", out],
        ["quantize-search", "pp_atd_light_x2", "--images", str(tmp_path / "pictures"), "-o", out],
    ):
        done = CliRunner().invoke(app, [*command, "--threads", threads])
        assert isinstance(done.exception, InputError), (command, done.output)
        assert "threads" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_search_on_one_core_takes_one_thread_where_none_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_allowed", lambda: [0])
    (tmp_path / "pictures").mkdir()
    command = ["quantize-search", "pp_atd_light_x2", "--images", str(tmp_path / "pictures"), "-o", str(tmp_path / "o")]
    done = CliRunner().invoke(app, command)
    # Of the pictures, since the threads are right.
    assert "pictures" in str(done.exception)
    assert "threads" not in str(done.exception)
