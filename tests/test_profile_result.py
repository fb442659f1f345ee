"""From journals to figures: percentiles, intervals, marks, memory, and comparisons as a gate."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from profiles import MS, reading, steady, subject, write_journal
from typer.testing import CliRunner

from ppexport.cli import app
from ppexport.errors import InputError
from ppexport.files import read_limited_json, read_limited_text
from ppexport.profile import statistics
from ppexport.profile.comparison import compare_interleaved
from ppexport.profile.result import Collected, Profile, write_profile
from ppexport.profile.statistics import percentile, percentile_interval, ratio_independent, ratio_interleaved

invoke = CliRunner().invoke


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


def made(folder, times, memory=None, **more):
    folder.mkdir(exist_ok=True)
    journal = write_journal(folder / "latency.jsonl", times, **more)
    return Profile(write_profile(folder, journal, memory or [(1 << 20, 1 << 28)] * len(times)))


def kinds(profile):
    return {mark["kind"] for mark in profile.data["marks"]}


def test_percentiles_are_latencies_that_were_measured():
    ms = np.arange(1.0, 101.0)[::-1]
    assert [percentile(ms, p) for p in (50, 90, 99)] == [50, 90, 99]
    assert percentile(np.array([3.0]), 99) == 3
    for count in (1, 2, 7, 64, 1001):
        some = np.random.default_rng(count).normal(size=count)
        for p in (1, 50, 90, 99, 100):
            assert percentile(some, p) == np.percentile(some, p, method="inverted_cdf")


def test_a_profile_says_what_was_measured(tmp_path):
    times = [float(i + 1) for i in range(100)]
    p = made(tmp_path / "a", [times])
    s = p.subjects[0]["summary"]
    assert (s["count"], s["p50_ms"], s["p90_ms"], s["p99_ms"], s["min_ms"], s["max_ms"]) == (100, 50, 90, 99, 1, 100)
    assert s["p90_ms_per_megapixel"] == pytest.approx(90 / (128 * 128 / 1e6))
    assert s["droop"] is None
    assert p.subjects[0]["load_ms"] == 500
    assert p.subjects[0]["first_ms"] == 200
    assert p.subjects[0]["memory"] == {"before": 1 << 20, "peak": 1 << 28}
    assert [round(v / MS) for v in p.samples[0]["ns"]] == times
    assert p.data["protocol"]["plan"]["queries"] == 64


def test_sustained_runs_tell_the_first_and_the_last_minute(tmp_path):
    times = [100.0] * 3000 + [150.0] * 2000
    s = made(tmp_path / "a", [times], plan="sustained").subjects[0]["summary"]
    assert s["droop"] == {"first_minute_ms": 100, "last_minute_ms": 150, "ratio": 1.5}


def test_intervals_hold_the_median_as_often_as_they_say():
    hits = 0
    for seed in range(30):
        ms = np.random.default_rng(seed).normal(100, 5, 256)
        interval = percentile_interval(ms, 50, 8, seed)
        hits += interval.low <= 100 <= interval.high
    assert hits >= 25


def test_intervals_of_a_drifting_machine_are_wider_than_single_queries_say():
    drift = 100 + 10 * np.sin(np.linspace(0, 6, 512)) + np.random.default_rng(0).normal(0, 1, 512)
    mixed = np.random.default_rng(1).permutation(drift)
    wide, narrow = (percentile_interval(ms, 50, 8) for ms in (drift, mixed))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_measuring_in_turns_cancels_a_common_drift():
    drift = 1 + 0.3 * np.sin(np.linspace(0, 9, 512))
    rng = np.random.default_rng(0)
    a, b = (drift * ms * rng.normal(1, 0.01, 512) for ms in (100, 110))
    turns, apart = ratio_interleaved(b, a, 50, 8), ratio_independent(b, a, 50, (8, 8))
    assert turns.low < 1.1 < turns.high
    assert turns.high - turns.low < 0.5 * (apart.high - apart.low)


def test_30_000_samples_take_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    journal = write_journal(tmp_path / "latency.jsonl", [(np.arange(30_000) % 97 + 50.0).tolist()])
    tracemalloc.start()
    try:
        target = write_profile(tmp_path, journal, [None])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Seven columns of 8 bytes are 1.7 MB; a list of parsed records would take over 18.
    assert peak < 10e6
    p = Profile(target)
    assert p.subjects[0]["summary"]["count"] == 30_000
    assert p.samples[0]["ns"][-1] == round((29_999 % 97 + 50) * MS)


def test_a_quiet_run_has_no_marks(tmp_path):
    assert kinds(made(tmp_path / "a", [steady()])) == set()


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("clock", {"mhz.cpu0": 2000.0}),
        ("heat", {"celsius.cpu": 75.0}),
        ("time set", {"wall": 1_000_000_000_000 + 60 * 10**9}),
        ("slept", {"boot": 10**12}),
        ("others", {"busy": 15.0}),
        ("stolen", {"stolen": 5.0}),
        ("throttled", {"throttled.cpu0": 7.0}),
        ("throttled", {"throttling": 2.0}),
    ],
)
def test_what_sensors_and_clocks_saw_is_marked(tmp_path, kind, last):
    t = round(128 * 100 * MS)
    first = {"throttled.cpu0": 2.0} if kind == "throttled" else {}
    p = made(
        tmp_path / "a", [[100.0] * 128], readings=[reading(0, **first), reading(t // 2, **first), reading(t, **last)]
    )
    assert kinds(p) == {kind}


def test_what_ran_while_a_run_was_interrupted_is_not_said_to_disturb_it(tmp_path):
    second = 10**9
    # Between the second and the third reading the run was interrupted for a minute, of which its clock shows nothing.
    busy = [0.0, 1.0, 121.0, 122.0]
    times = [0, second, second + 200_000, 2 * second]
    readings = [reading(t, busy=b, own=o) for t, b, o in zip(times, busy, [0.0, 1.0, 1.0, 2.0], strict=True)]
    assert "others" not in kinds(made(tmp_path / "a", [[100.0] * 128], readings=readings))


def test_energy_is_told_where_the_rails_add_up(tmp_path):
    t = round(128 * 100 * MS)
    watts = [reading(round(t * i / 10), **{"watts.total": 6.0 + i % 2}) for i in range(11)]
    (subject,) = made(tmp_path / "a", [[100.0] * 128], readings=watts).subjects
    assert subject["summary"]["energy"]["joules_per_image"] == pytest.approx(0.65)
    assert subject["summary"]["energy"]["watts"] == pytest.approx(6.5)
    # Power cannot be told apart between two that take turns, nor from readings of a part of the run.
    both = made(tmp_path / "b", [[100.0] * 64, [100.0] * 64], readings=watts)
    assert [s["summary"]["energy"] for s in both.subjects] == [None, None]
    part = made(tmp_path / "c", [[100.0] * 128], readings=watts[:5])
    assert part.subjects[0]["summary"]["energy"] is None


def test_what_the_samples_show_is_marked(tmp_path):
    held = steady()
    held[40] = 90_000.0
    cpu = [100.0] * 128
    p = made(tmp_path / "a", [held], cpu_ms=cpu)
    assert kinds(p) == {"waited"}
    assert "90.0 s" in p.data["marks"][0]["text"]
    # Nothing is left out of the figures for it.
    assert p.subjects[0]["summary"]["max_ms"] == 90_000
    assert "drift" in kinds(made(tmp_path / "b", [[100.0] * 64 + [120.0] * 64]))
    assert kinds(made(tmp_path / "c", [steady(spread=0.3)])) >= {"noise"}
    assert kinds(made(tmp_path / "d", [steady()], settled=False)) == {"warm-up"}
    # Content that differs from image to image is no noise.
    assert kinds(made(tmp_path / "e", [[50.0 + 20 * (i % 8) for i in range(128)]])) == set()


def test_an_unfinished_or_foreign_journal_is_refused(tmp_path):
    with pytest.raises(InputError, match="not complete"):
        Collected(write_journal(tmp_path / "a", [steady(8)], complete=False))
    (tmp_path / "b").write_text('["header",{"format":"x"}]\n')
    with pytest.raises(InputError, match="not a journal"):
        Collected(tmp_path / "b")
    with pytest.raises(InputError, match="cannot be read"):
        Collected(tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("samples"), lambda d: d.update(version=2), lambda d: d.update(format="x"),
        lambda d: d["samples"][0]["ns"].pop(), lambda d: d["samples"][0].update(ns=[]),
        lambda d: d["samples"][0]["ns"].__setitem__(0, -5), lambda d: d["samples"][0]["ns"].__setitem__(0, 1 << 80),
        lambda d: d["subjects"][0]["summary"].update(p50_ms="<b>"), lambda d: d.update(subjects=[]),
        lambda d: d.update(machine=None), lambda d: d["subjects"].append({}),
    ],
)  # fmt: skip
def test_damaged_profiles_are_refused_with_one_sentence(tmp_path, change):
    p = made(tmp_path / "a", [steady(16)])
    data = json.loads(p.path.read_text())
    change(data)
    p.path.write_text(json.dumps(data))
    done = invoke(app, ["compare", str(p.path), str(p.path)])
    assert isinstance(done.exception, InputError)
    assert str(p.path) in str(done.exception)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": 12}', "is larger than 8 bytes, the most that is read of a lab file"),
        (b"[NaN]", "it is not readable JSON .NaN is not JSON"), (b"[1", "it is not readable JSON"),
        (b"[" * 8, "it is not readable JSON"), (None, "cannot be read: No such file"),
    ],
)  # fmt: skip
def test_files_from_anywhere_are_read_with_a_limit(tmp_path, data, why):
    path = tmp_path / "x"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path}.* {why}"):
        read_limited_json(path, 8, "a lab file")
    path.write_bytes(b"a\xff")
    with pytest.raises(InputError, match="x is not a lab file: it is not text in UTF-8"):
        read_limited_text(path, 8, "a lab file")
    path.write_bytes(b'["\xff"]')
    assert read_limited_json(path, 8, "a lab file") == ["\ufffd"]


def test_texts_of_a_device_cannot_move_the_cursor(tmp_path):
    p = made(tmp_path / "a", [steady(16)], subjects=[subject("x\u001b[2J\u202ey")])
    assert p.subjects[0]["name"] == "xy"


def test_compare_is_a_gate(tmp_path):
    before, after, same = (
        made(tmp_path / name, [steady(256, ms, seed=seed)]).path
        for seed, (name, ms) in enumerate((("a", 100.0), ("b", 120.0), ("c", 100.5)))
    )
    target = tmp_path / "out.json"
    done = invoke(app, ["compare", str(before), str(after), "--limit", "1.05", "--json", str(target)])
    assert done.exit_code == 1
    assert "FAIL" in done.output
    ratio = json.loads(target.read_text())["ratios"]["p90"]
    assert 1.05 < ratio["low"] <= ratio["middle"] <= ratio["high"]
    assert ratio["middle"] == pytest.approx(1.2, abs=0.03)
    assert invoke(app, ["compare", str(before), str(same), "--limit", "1.05"]).exit_code == 0
    assert invoke(app, ["compare", str(after), str(before), "--limit", "1.05", "--figure", "p50"]).exit_code == 0
    assert invoke(app, ["compare", str(before), str(after)]).exit_code == 0


def test_compare_takes_the_folders_of_runs(tmp_path):
    folders = [str(made(tmp_path / name, [steady()]).path.parent) for name in "ab"]
    file = str(tmp_path / "b" / "profile.json")
    for arguments in (folders, [folders[0], file], [file, folders[0]]):
        done = invoke(app, ["compare", *arguments])
        assert "measured at different times" in done.output, done.exception
    two = made(tmp_path / "two", [steady(), steady(ms=130.0)]).path.parent
    assert "measured in turns" in invoke(app, ["compare", str(two)]).output
    done = invoke(app, ["compare", folders[0], str(tmp_path)])
    assert "takes two profile runs (folders or profile.json)" in str(done.exception)


def test_compare_lists_what_else_differs_and_refuses_what_cannot_be_compared(tmp_path):
    a = made(tmp_path / "a", [steady()]).path
    b = made(tmp_path / "b", [steady()], subjects=[subject("other", threads=4)], plan="full").path
    out = invoke(app, ["compare", str(a), str(b)]).output
    assert "protocol: quick and full" in out
    assert "threads: None and 4" in out
    two = made(tmp_path / "two", [steady(), steady(ms=130.0)]).path
    assert compare_interleaved(Profile(two)).ratios["p50"].middle == pytest.approx(1.3, abs=0.02)
    assert "measured in turns" in invoke(app, ["compare", str(two)]).output
    for arguments in ([a], [two, a], [a, tmp_path], [a, b, "--quick"], [a, b, "--figure", "p42"], [tmp_path / "no"]):
        assert isinstance(invoke(app, ["compare", *map(str, arguments)]).exception, InputError), arguments
