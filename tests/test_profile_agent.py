"""The measuring loop and its journal, on a clock that a test moves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from ppexport.device import sensors
from ppexport.device.journal import Journal, JournalError, cut_torn_line, lines_of, read_past
from ppexport.device.machine import Clock, describe, environment, peak_memory
from ppexport.device.measure import PLANS, Loop, Plan, Query, Subject

MS = 1_000_000
HEADER = {"format": "ppexport-latency-journal", "version": 1}


class Hands(Clock):
    """A clock that stands still until somebody moves it."""

    def __init__(self):
        self.time = 5_000_000_000

    def now(self):
        return self.time

    def cpu(self):
        return self.time // 2


class Sleeper(Subject):
    """Takes as long as it is told, by the hands."""

    def __init__(self, clock, ms, log=None, name="", dies=None):
        self.clock, self.ms, self.log, self.name, self.dies = clock, ms, log, name, dies
        self.count = 0

    def load(self):
        self.clock.time += 7 * MS

    def query(self, image):
        if self.count == self.dies:
            raise KeyboardInterrupt
        taken = self.ms(self.count, image) if callable(self.ms) else self.ms
        self.clock.time += round(taken * MS)
        self.count += 1
        if self.log is not None:
            self.log.append((self.name, image))
        return Query(1000, 128, 5)


def records(path):
    with open(path, "rb") as stream:
        return list(lines_of(stream, str(path)))


def measure(path, subjects, plan, images=8, clock=None, **more):
    journal = Journal(str(path))
    if not path.stat().st_size:
        journal.write("header", HEADER)
    try:
        Loop(subjects, images, plan, journal, clock=clock or subjects[0].clock, **more).run(
            read_past(str(path), len(subjects))
        )
    finally:
        journal.close()
    return records(path)


SHORT = Plan("short", 20, 0.1)


def test_plans_are_the_protocols():
    assert (PLANS["full"].queries, PLANS["full"].seconds) == (1024, 60)
    assert (PLANS["quick"].queries, PLANS["quick"].seconds) == (64, 6)
    assert PLANS["sustained"].seconds == 600
    assert all(plan.warm_change == 0.02 for plan in PLANS.values())


def test_both_the_queries_and_the_seconds_must_be_reached(tmp_path):
    for ms, plan, expected in ((10, Plan("a", 20, 0.05), 20), (10, Plan("b", 20, 0.4), 40)):
        clock = Hands()
        found = measure(tmp_path / plan.name, [Sleeper(clock, ms)], plan)
        queries = [r for r in found if r[0] == "q"]
        assert len(queries) == expected
        assert [r[2] for r in queries[:9]] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
        assert {r[4] for r in queries} == {ms * MS}
        assert {r[5] for r in queries} == {ms * MS // 2}
        assert [r for r in found if r[0] == "load"] == [["load", 0, 7 * MS]]
        assert [r for r in found if r[0] == "first"] == [["first", 0, ms * MS]]
        assert found[-1][0] == "end"


def test_warm_up_ends_when_the_median_of_a_window_stands(tmp_path):
    clock = Hands()
    # The first 24 queries get faster by a tenth per window of 8, later ones stay. Query 0 is the first run.
    steps = Sleeper(clock, lambda count, image: 20 * 0.9 ** min((count - 1) // 8, 3) + image / 1000)
    found = measure(tmp_path / "a", [steps], SHORT)
    assert [r for r in found if r[0] == "warm"] == [["warm", 0, 40, True]]
    restless = Sleeper(clock, lambda count, image: 10 + 5 * (count // 8 % 2))
    found = measure(tmp_path / "b", [restless], Plan("short", 4, 0.0, warm_windows=6))
    assert [r for r in found if r[0] == "warm"] == [["warm", 0, 48, False]]
    # Windows are whole cycles of the images: content that costs more never looks like a machine that gets slower.
    content = Sleeper(clock, lambda count, image: 10 + 30 * image)
    found = measure(tmp_path / "c", [content], SHORT, images=11)
    assert [r for r in found if r[0] == "warm"] == [["warm", 0, 22, True]]


def test_subjects_take_turns_a_b_b_a(tmp_path):
    clock, log = Hands(), []
    subjects = [Sleeper(clock, ms, log, name) for ms, name in ((10, "A"), (20, "B"), (30, "C"))]
    found = measure(tmp_path / "journal", subjects, Plan("short", 12, 0.0))
    order = "".join("ABC"[r[1]] for r in found if r[0] == "q")
    assert order.startswith("ABCCBA" "BCAACB" "CABBAC" "ABCCBA")  # fmt: skip
    assert {order.count(name) for name in "ABC"} == {12}
    # Each timed query follows one of the same subject on the same image, which is not timed.
    timed = log[-2 * len(order) :]
    assert timed[0::2] == timed[1::2]
    assert [r[4] // MS for r in found if r[0] == "q"][:6] == [10, 20, 30, 30, 20, 10]


def test_a_run_that_dies_goes_on_where_it_ended(tmp_path):
    path = tmp_path / "journal"
    clock = Hands()
    with pytest.raises(KeyboardInterrupt):
        measure(path, [Sleeper(clock, 10, dies=1 + 16 + 7)], SHORT)
    kept = [r for r in records(path) if r[0] == "q"]
    assert len(kept) == 7
    with path.open("ab") as stream:
        stream.write(b'["q",0,7,80')
    later = Hands()
    later.time = 999_000_000_000_000
    found = measure(path, [Sleeper(later, 10)], SHORT)
    queries = [r for r in found if r[0] == "q"]
    assert queries[:7] == kept
    assert len(queries) == 20
    # Time goes on where it stopped, and images where they were.
    assert [r[2] for r in queries[6:9]] == [6, 7, 0]
    assert all(0 < b[3] - a[3] < 1e9 for a, b in pairwise(queries))
    assert [r[0] for r in found].count("begin") == 2
    assert [r[0] for r in found].count("load") == 1
    before = path.read_bytes()
    past = read_past(str(path), 1)
    assert past.complete
    assert path.read_bytes() == before


def test_a_killed_process_loses_nothing(tmp_path):
    """SIGKILL in the middle of the loop: every query that was timed is in the journal, whole."""
    path = tmp_path / "journal"
    code = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from ppexport.device.journal import Journal, read_past
from ppexport.device.measure import Loop, Query, Subject
from ppexport.device.measure import Plan
class S(Subject):
    def load(self): pass
    def query(self, image):
        time.sleep(0.001)
        return Query(0, 0, -1)
journal = Journal({str(path)!r})
journal.write("header", {HEADER!r})
class Loud(Journal):
    def write(self, *record):
        super().write(*record)
        if record[0] == "q": print(record[3], flush=True)
journal.__class__ = Loud
Loop([S()], 8, Plan("x", 10**6, 0.0, warm_windows=2), journal).run(read_past({str(path)!r}, 1))
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for _ in range(50):
        last = child.stdout.readline()
    child.kill()
    rest = child.stdout.read().splitlines()
    child.wait()
    told = int([last, *rest][-1] if rest and rest[-1].strip() else last)
    starts = [r[3] for r in records(path) if r[0] == "q"]
    assert len(starts) >= 50
    assert told in starts


def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    journal = Journal(str(path))
    journal.write("header", HEADER)

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def write(self, line):
            return self.stream.write(line[:9])

    whole = path.read_bytes()
    monkeypatch.setattr(journal, "_stream", Full(journal._stream))
    with pytest.raises(OSError, match="No space left"):
        journal.write("q", 0, 0, 1, 2, 3, 4, 5, 6)
    assert path.read_bytes() == whole
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="No space left"), open("/dev/full", "ab", buffering=0) as full:
            full.write(b"x")


@pytest.mark.parametrize(
    "line",
    [b"{}\n", b"[]\n", b'["x"]\n', b"[" * 5000 + b"\n", b"\xff\xfe\n", b'["q",0,0,0]\n', b'["q",0,0,0,1,1,1,1,1e99]\n',
     b'["q",0,0,0,NaN,1,1,1,1]\n', b'["q",true,0,0,1,1,1,1,1]\n', b'["c",0]\n', b'["load",0,"x"]\n'],
)  # fmt: skip
def test_hostile_lines_are_refused(tmp_path, line):
    path = tmp_path / "journal"
    path.write_bytes(json.dumps(["header", HEADER]).encode() + b"\n" + line)
    with pytest.raises(JournalError, match="line 2"):
        records(path)


def test_an_endless_line_is_not_read(tmp_path):
    path = tmp_path / "journal"
    path.write_bytes(b'["' + b"x" * (1 << 21))
    with pytest.raises(JournalError, match="longer than"):
        records(path)
    cut_torn_line(str(path))
    assert path.read_bytes() == b""


def test_sensors_are_read_from_the_system_and_may_fail(tmp_path):
    for core, khz in (("cpu0", 1_500_000), ("cpu1", 1_200_000)):
        folder = tmp_path / "sys/devices/system/cpu" / core
        (folder / "cpufreq").mkdir(parents=True)
        (folder / "cpufreq" / "scaling_cur_freq").write_text(f"{khz}\n")
        (folder / "cpufreq" / "scaling_governor").write_text("schedutil\n")
        (folder / "thermal_throttle").mkdir()
        (folder / "thermal_throttle" / "core_throttle_count").write_text("3\n")
    for zone, kind, temp in (("thermal_zone0", "CPU-therm", "48500"), ("thermal_zone1", "off", "-256000")):
        folder = tmp_path / "sys/class/thermal" / zone
        folder.mkdir(parents=True)
        (folder / "type").write_text(kind + "\n")
        (folder / "temp").write_text(temp + "\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text("0.52 0.4 0.3 1/234 5678\n")
    (tmp_path / "proc/stat").write_text("cpu  100 20 30 4000 50 6 7 80 0 0\ncpu0 1 2 3\n")
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name : Test CPU\ncpu family : 6\nmodel : 1\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:  2048 kB\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('PRETTY_NAME="Test Linux 1"\n')
    root = str(tmp_path)

    def system():
        return sensors.system_reading(root)

    def broken():
        raise OSError("unplugged")

    reading = sensors.read_all([broken, system])
    assert reading == {
        "mhz.cpu0": 1500, "mhz.cpu1": 1200, "throttled.cpu0": 3, "throttled.cpu1": 3, "celsius.CPU-therm": 48.5,
        "load": 0.52, "busy": 1.63, "stolen": 0.8,
    }  # fmt: skip
    machine = describe(root)
    assert (machine["cpu"], machine["system"]) == ("Test CPU (family 6, model 1)", "Test Linux 1")
    assert (machine["memory_bytes"], machine["governors"]) == (2 << 20, ["schedutil"])
    (tmp_path / "proc/device-tree").mkdir()
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano\0")
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name : ARMv8 Processor rev 1 (v8l)\n")
    assert describe(root)["cpu"] == "NVIDIA Jetson Orin Nano"
    shutil.rmtree(tmp_path / "sys")
    shutil.rmtree(tmp_path / "proc")
    assert system() == {}
    assert describe(root)["memory_bytes"] is None


def test_this_machine_and_its_secrets():
    machine = describe()
    assert machine["cpu"]
    assert machine["cores"] >= machine["usable_cores"] >= 1
    assert environment({"OMP_NUM_THREADS": "2", "PASSWORD": "x"}) == {"OMP_NUM_THREADS": "2"}
    assert peak_memory() > 10 << 20


def test_clocks_are_read_together_even_when_the_process_is_interrupted():
    class Interrupted(Hands):
        waits = (300_000_000, 0)

        def wall(self):
            wait, *self.waits = self.waits
            self.time += wait
            return self.time + 7

    found = Interrupted().reading()
    assert found["wall"] - found["now"] == 7


def test_the_real_clock_is_monotonic():
    clock = Clock()
    first, begin = clock.reading(), time.perf_counter_ns()
    assert clock.now() >= first["now"]
    assert abs(begin - first["now"]) < 1e9
