"""`ppexport tune`: what is tried, what is chosen, what is remembered, and who uses it. Nothing here asserts a time."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shared import examples
from sshd_profiles import write_enlarger
from test_layering import run_without
from typer.testing import CliRunner

# isort: split
from bench_threads import markdown
from conftest import exported_once
from small_networks import small_network

import ppexport
from ppexport.backends import choices
from ppexport.backends.choices import Settled, artifact_hash, choice_file, forget, recall, remember, settle
from ppexport.backends.onnx.run_onnxruntime import OPTIONS, RUNTIME, OnnxRunner
from ppexport.cli import app
from ppexport.device.artifact import read_artifact
from ppexport.device.cores import usable_processors
from ppexport.device.target import Runtime, Target, open_target, runtimes
from ppexport.errors import ArtifactError, InputError, UnavailableError
from ppexport.parity import run as parity_run
from ppexport.parity.columns import Sample, save_entries
from ppexport.parity.inputs import parity_inputs
from ppexport.parity.run import COPIED, FORMAT, VERSION
from ppexport.profile import tune as tuning
from ppexport.profile.statistics import Interval
from ppexport.profile.tune import Setting, choose_setting, groups, in_order, settings_of, thread_counts

SPIN, BLOCK = OPTIONS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ppexport" / "tune"


def save_run(artifact: Path, folder: Path, error: float = 0.0) -> Path:
    """A parity run whose twin computes what *artifact* does in ONNX Runtime, but for an *error*."""
    manifest = read_artifact(artifact).manifest
    inputs = {item.name: item for item in parity_inputs((manifest.size[0], manifest.size[1]), manifest.scale)[:2]}
    with ppexport.open_artifact(artifact, threads=1) as runner:
        found = {name: runner(item.lr) for name, item in inputs.items()}
    folder.mkdir()
    save_entries(folder / "inputs.npz", inputs)
    save_entries(folder / "twin.npz", {name: Sample(sr + np.float32(error), n) for name, (sr, n, _) in found.items()})
    report = {name: getattr(manifest, name) for name in COPIED}
    (folder / "report.json").write_text(
        json.dumps({**report, "format": FORMAT, "version": VERSION, "passed": True, "pairs": []})
    )
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that repeats pixels, with a parity run beside it. Never changed by a test."""
    folder = write_enlarger(tmp_path_factory.mktemp("tune") / "enlarger")
    save_run(folder, folder.with_name("enlarger-parity"))
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


def failure(*arguments: object) -> str:
    """The one sentence that a run with *arguments* ends with, and its exit code before it."""
    error = run(*arguments).exception
    assert isinstance(error, (InputError, ArtifactError, UnavailableError)), error
    return f"{error.exit_code}: {error}"


def setting(middle: float | None, high: float | None = None, name: str = "onnxruntime") -> Setting:
    """A setting with a ratio to the default, or None for one that did not run."""
    ratio = None if middle is None else Interval(middle / 2, middle, middle if high is None else high)
    return Setting(Target("a", name, "CPU"), ratio, ratio)


# Which is chosen.


@given(
    st.lists(st.none() | st.tuples(st.floats(0.1, 3), st.floats(1, 2), st.booleans()), min_size=1, max_size=8),
    st.booleans(),
)
@examples(300)
def test_the_fastest_is_chosen_that_passes_and_is_shown_to_be_faster(others, default_passes):
    base = setting(1.0, 1.0)
    pool = [base, *(setting(None) if o is None else setting(o[0], o[0] * o[1]) for o in others)]
    passes = {
        id(base): default_passes,
        **{id(s): o is not None and o[2] for s, o in zip(pool[1:], others, strict=True)},
    }
    asked: list[Setting] = []

    def judge(one: Setting) -> None:
        asked.append(one)
        one.passed = passes[id(one)]

    chosen = choose_setting(pool, lambda _: None, judge)
    ran = [one for one in pool if one.ratio is not None]
    able = [one for one in ran if passes[id(one)]]
    faster = [one for one in able if one is not base and one.ratio.high < 1]
    if faster:
        assert chosen.ratio.middle == min(one.ratio.middle for one in faster)
    elif default_passes:
        assert chosen is base
    elif able:
        assert chosen.ratio.middle == min(one.ratio.middle for one in able)
    else:
        assert chosen is None
    assert [one for one in pool if one.chosen] == ([] if chosen is None else [chosen])
    # No one is judged twice, or once something is chosen.
    assert asked == in_order(pool)[: len(asked)]
    assert chosen is None or asked[-1] is chosen


def test_what_was_fast_by_chance_is_not_chosen():
    base, lucky, fast = setting(1.0), setting(0.5, 0.8), setting(0.7, 0.9)
    timed = []

    def again(one):
        timed.append(one)
        one.ratio = Interval(1.0, 1.1, 1.2) if one is lucky else Interval(0.7, 0.75, 0.8)

    def judge(one):
        one.passed = True

    assert choose_setting([base, lucky, fast], again, judge) is fast
    assert timed == [lucky, fast]
    assert (lucky.passed, base.passed) == (None, None)


def test_a_tie_keeps_the_default_and_equals_keep_their_order():
    base, tie, first, second = setting(1.0), setting(0.8, 1.0), setting(0.7, 0.9), setting(0.7, 0.95)
    assert in_order([base, tie]) == [base, tie]
    assert in_order([base, tie, first, second]) == [first, second, base, tie]
    # Where the default does not run, the first that does is what others are compared with.
    assert in_order([setting(None), tie, first]) == [first, tie]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=12), st.none() | st.integers(1, 400))
@examples(200)
def test_settings_take_turns_in_groups_that_fit_the_memory(peaks, free):
    pool = [replace(setting(1.0), peak=peak) for peak in peaks]
    made = list(groups(pool, free))
    assert all(group[0] is pool[0] for group in made)
    assert [one for group in made for one in group[1:]] == pool[1:]
    for group in made:
        # Two are the least that can be compared.
        assert free is None or len(group) <= 2 or sum(one.peak for one in group) <= tuning.SHARE * free
    assert free is not None or len(made) == 1


# What is tried.


def stand_in(monkeypatch: pytest.MonkeyPatch, cores: int, **changes: Any) -> None:
    """Let ONNX Runtime have a CPU, a GPU and *changes*, and be alone on a machine with so many *cores*."""
    # In its place: the registry is one dictionary for all of a process, whose order counts.
    fake = replace(RUNTIME, devices=lambda: ["CPU", "GPU"], find_device=str, **changes)
    monkeypatch.setitem(runtimes(), "onnxruntime", fake)
    monkeypatch.setitem(runtimes(), "openvino", replace(runtimes()["openvino"], devices=list))
    monkeypatch.setattr(tuning, "usable_cores", lambda: cores)


def test_thread_counts():
    counted = {cores: thread_counts(cores) for cores in (1, 2, 3, 4, 6, 8, 16, 64)}
    assert counted == {
        1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 2, 3, 4], 6: [1, 2, 3, 4, 5, 6], 8: [1, 2, 3, 4, 7, 8],
        16: [1, 2, 3, 4, 8, 15, 16], 64: [1, 2, 3, 4, 8, 16, 32, 63, 64],
    }  # fmt: skip


def test_the_default_comes_first_and_one_thread_has_no_options(made, monkeypatch):
    stand_in(monkeypatch, 2, threads_on=("CPU",), options={"a": ("0", "1"), "b": ("x", "y", "z")})
    found = [(t.name, t.threads, dict(t.options)) for t in settings_of(made, None, False)]
    assert found[0] == ("onnxruntime", None, {})
    # Of as many threads as there are cores, that is the default.
    assert found[1] == ("onnxruntime", 1, {})
    assert found[2:7] == [
        ("onnxruntime", 2, {k: v for k, v in (("a", a), ("b", b)) if v not in "0x"})
        for a in "01" for b in "xyz" if (a, b) != ("0", "x")
    ]  # fmt: skip
    assert found[7:] == [("onnxruntime:GPU", None, {})]


def test_a_limit_of_threads_holds_for_the_default_too(made, monkeypatch):
    stand_in(monkeypatch, 4, threads_on=("CPU",), options={"a": ("0", "1")})
    found = [(t.threads, dict(t.options)) for t in settings_of(made, 2, False) if t.device == "CPU"]
    assert found == [(2, {}), (1, {}), (2, {"a": "1"})]
    assert [t.threads for t in settings_of(made, 1, False) if t.device == "CPU"] == [1]


def test_a_runtime_of_another_package_takes_part_as_it_is(made, monkeypatch):
    stand_in(monkeypatch, 4, threads_on=(), options={"a": ("0", "1")})
    assert [(t.name, t.threads, t.options) for t in settings_of(made, None, False)] == [
        ("onnxruntime", None, ()), ("onnxruntime:GPU", None, ()),
    ]  # fmt: skip


def test_a_runtime_that_is_not_installed_is_left_out(made, monkeypatch):
    pytest.importorskip("openvino")
    assert {t.runtime for t in settings_of(made, 1, False)} == {"onnxruntime", "openvino"}
    monkeypatch.setattr("ppexport.backends.openvino.run_openvino.find_spec", lambda name: None)
    assert {t.runtime for t in settings_of(made, 1, False)} == {"onnxruntime"}
    monkeypatch.setattr("ppexport.backends.onnx.run_onnxruntime.find_spec", lambda name: None)
    assert failure(made).startswith("3: ")
    assert "is for backend onnx: onnxruntime, openvino is not installed here" in failure(made)


def other_backend(made: Path, folder: Path, backend: str, flavour: str) -> Path:
    """A copy of *made* that says it is of another *backend*."""
    shutil.copytree(made, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "backend": backend, "flavour": flavour}))
    save_run(made, folder.with_name(f"{folder.name}-parity"))
    return folder


def test_an_artifact_that_nothing_here_can_run(made, tmp_path):
    pytest.importorskip("ai_edge_litert")
    folder = other_backend(made, tmp_path / "lite", "litert", "lite")
    assert {t.runtime for t in settings_of(folder, 1, False)} == {"litert"}
    message = failure(folder, "--threads", 1)
    assert message.startswith(f"3: no runtime here runs {folder}: ")
    assert "model.onnx" in message
    page = other_backend(made, tmp_path / "page", "web", "portable")
    with pytest.raises((InputError, UnavailableError)) as refused:
        settings_of(page, None, False)
    assert any(word in str(refused.value) for word in ("nothing to tune", "is not installed here"))


# Options of a session.


def test_onnx_runtime_gets_what_a_target_sets(made, caplog):
    with caplog.at_level(logging.DEBUG, "ppexport"):
        for options in ((), ((SPIN, "0"), (BLOCK, "4"))):
            with open_target(Target(str(made), "onnxruntime", "CPU", 1, options=options)) as runner:
                runner(np.zeros((1, 3, *runner.size), np.float32))
    first, second = (record.getMessage() for record in caplog.records if "opens" in record.getMessage())
    assert f"'{SPIN}': '1', '{BLOCK}': '0'" in first
    assert f"'{SPIN}': '0', '{BLOCK}': '4'" in second
    with OnnxRunner(read_artifact(made), 1, entries={BLOCK: "8"}) as runner:
        assert runner.session.get_session_options().get_session_config_entry(BLOCK) == "8"


@pytest.mark.parametrize("option", [("session.load_custom_ops", "x"), (SPIN, "2"), (SPIN, 0)])
def test_no_option_is_set_that_the_runtime_does_not_declare(option):
    with pytest.raises(InputError, match="onnxruntime has no option .* that ppexport sets"):
        Target("a", "onnxruntime", "CPU", options=(option,))
    with pytest.raises(InputError, match="openvino has no option"):
        Target("a", "openvino", "CPU", options=((SPIN, "0"),))


def test_a_target_is_the_same_after_json():
    one = Target("a", "onnxruntime", "CPU", 2, options=((SPIN, "0"),))
    again = Target(**json.loads(json.dumps(vars(one))))
    assert again == one
    assert len({one, again}) == 1
    assert one.setting == "2 threads, allow_spinning=0"
    assert Target("a", "onnxruntime", "CPU").setting == ""


# What is remembered.


@pytest.fixture
def chosen(made: Path) -> Target:
    return Target(str(made.resolve()), "onnxruntime", "CPU", 1)


def test_a_choice_is_kept_and_forgotten(made, chosen, cache):
    artifact = read_artifact(made)
    assert recall(artifact) is None
    assert not forget(artifact)
    path = remember(artifact, chosen, {"psnr": 100.0})
    assert path.parent == cache
    assert recall(artifact).target == chosen
    assert recall(artifact).measured == {"psnr": 100.0}
    assert [entry.name for entry in cache.iterdir()] == [path.name]
    assert forget(artifact)
    assert recall(artifact) is None


def changed(path: Path, **fields: Any) -> None:
    data = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "x"}, "is no choice that this ppexport reads: run `ppexport tune` again"),
        ({"version": 2}, "is no choice that this ppexport reads"),
        ({"artifact_sha256": "0" * 64}, "was chosen for another artifact or machine: run"),
        ({"machine": {"cpu": "another"}}, "was chosen for another artifact or machine"),
        ({"machine": ...}, "was chosen for another artifact or machine"),
        ({"versions": {"onnxruntime": "1.0"}}, "was chosen with other versions than ppexport .*, onnxruntime .* now"),
        ({"runtime": "nothing"}, "does not hold what a choice holds"),
        ({"runtime": ["onnxruntime"]}, "does not hold what a choice holds"),
        ({"runtime": "litert"}, "does not hold what a choice holds"),
        ({"device": "../x"}, "does not hold what a choice holds"),
        ({"threads": 5000}, "does not hold what a choice holds"),
        ({"threads": "2"}, "does not hold what a choice holds"),
        ({"options": {"session.load_custom_ops": "evil.so"}}, "does not hold what a choice holds"),
        ({"options": [1]}, "does not hold what a choice holds"),
        ({"options": ...}, "does not hold what a choice holds"),
        # What `tune` would not have tried, and so not have proved.
        ({"threads": 1, "options": {SPIN: "0"}}, "does not hold what a choice holds"),
        ({"threads": 2, "options": {SPIN: "1"}}, "does not hold what a choice holds"),
        ({"device": "CUDA"}, "does not hold what a choice holds"),
        ({"device": "CUDA", "threads": None}, "names onnxruntime:CUDA, which this machine does not have now: run"),
        ({"created": 3}, "does not hold what a choice holds"),
        ({"created": "\x1b[2J"}, "does not hold what a choice holds"),
        ({"measured": None}, "does not hold what a choice holds"),
    ],
)
def test_a_choice_that_cannot_be_used_is_left_alone_with_a_sentence(made, chosen, fields, message, caplog):
    artifact = read_artifact(made)
    path = remember(artifact, chosen, {})
    changed(path, **fields)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        recall(artifact)
    settled = settle(artifact, "auto", None, False)
    assert (settled.target, settled.why) == (None, "default")
    with ppexport.open_artifact(made, runtime="auto") as runner:
        assert isinstance(runner, OnnxRunner)
    assert [record.getMessage() for record in caplog.records] == [f"note: {settled.note}"]
    assert path.read_bytes() == before
    done = run(made, "--show")
    assert isinstance(done.exception, InputError)
    assert forget(artifact)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 9999, b"NaN", b"[]", b"x" * 70000])
def test_a_file_that_is_no_choice_is_one_sentence(made, chosen, content):
    artifact = read_artifact(made)
    remember(artifact, chosen, {}).write_bytes(content)
    note = settle(artifact, "auto", None, False).note
    assert note.startswith(str(choice_file(artifact)))
    assert note.endswith(": run `ppexport tune` again")


def test_a_folder_that_may_not_be_looked_into_holds_no_choice(made, monkeypatch):
    # A link that leads to itself, since tests may run as a user who may look into everything.
    folder = choice_file(read_artifact(made)).parent
    folder.parent.mkdir(parents=True)
    folder.symlink_to(folder)
    assert settle(read_artifact(made), "auto", None, False) == Settled(None, None, "default")
    monkeypatch.setenv("XDG_CACHE_HOME", f"/{'x' * 300}")
    assert settle(read_artifact(made), "auto", None, False) == Settled(None, None, "default")


def test_a_folder_in_its_place_is_no_choice(made):
    choice_file(read_artifact(made)).mkdir(parents=True)
    assert settle(read_artifact(made), "auto", None, False) == Settled(None, None, "default")


def test_another_machine_or_another_export_has_a_choice_of_its_own(made, chosen, monkeypatch, tmp_path):
    artifact = read_artifact(made)
    remember(artifact, chosen, {})
    again = replace(artifact, manifest=replace(artifact.manifest, created="2026-11-24T00:00:00+00:00"))
    assert artifact_hash(again) != artifact_hash(artifact)
    assert recall(again) is None
    monkeypatch.setattr(choices.platform, "node", lambda: "another")
    assert settle(artifact, "auto", None, False) == Settled(None, None, "default")


def test_a_user_without_a_home_folder(made, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "name a folder for what is kept in XDG_CACHE_HOME" in settle(read_artifact(made), "auto", None, False).note
    assert failure(made).startswith("2: this user has no home folder")


# Who uses it.


def test_who_asks_wins_over_what_was_chosen(made, chosen):
    artifact = read_artifact(made)
    remember(artifact, replace(chosen, options=()), {})
    assert settle(artifact, "auto", None, False).why == "tuned"
    assert settle(artifact, None, None, False) == Settled(None, None, "default")
    assert settle(artifact, "auto", 1, False) == Settled(None, 1, "asked")
    asked = settle(artifact, "onnxruntime:CPU", None, True)
    assert (asked.why, asked.target.threads, asked.target.trust) == ("asked", None, True)
    for wrong in ("all", "onnxruntime,onnxruntime", "nonsense", "litert"):
        with pytest.raises(InputError, match="runtime"):
            ppexport.open_artifact(made, runtime=wrong)


def test_upscale_uses_it_and_says_so(made, chosen, tmp_path):
    Image.new("RGB", (48, 32), (10, 200, 90)).save(tmp_path / "in.png")

    def upscale(*more: str) -> tuple[str, Any]:
        told = tmp_path / "told.json"
        files = [str(tmp_path / "in.png"), str(tmp_path / "out.png")]
        done = CliRunner().invoke(app, ["upscale", str(made), *files, "--json", str(told), *more])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split()), json.loads(told.read_text())["opened"]

    said, opened = upscale()
    assert "runs in ONNX Runtime on the CPU " in said
    assert opened == {"runtime": None, "threads": None, "options": {}, "why": "default"}
    most = usable_processors()
    remember(read_artifact(made), replace(chosen, threads=most, options=((SPIN, "0"),)), {})
    said, opened = upscale()
    assert f"runs in onnxruntime, {most} thread" in said
    assert "allow_spinning=0, as `ppexport tune` chose" in said
    assert opened == {"runtime": "onnxruntime", "threads": most, "options": {SPIN: "0"}, "why": "tuned"}
    said, opened = upscale("--threads", "1")
    assert "runs in ONNX Runtime on the CPU, 1 thread" in said
    assert opened["why"] == "asked"
    said, opened = upscale("--runtime", "onnxruntime")
    assert (opened["runtime"], opened["why"]) == ("onnxruntime", "asked")


# The command.


def test_the_default_passes_and_is_remembered(made, cache, tmp_path):
    told = tmp_path / "told.json"
    done = run(made, "--seconds", 0.1, "--threads", 1, "--load", 1, "--json", told)
    assert done.exit_code == 0, done.output
    said, data = " ".join(done.output.split()), json.loads(told.read_text())
    assert "enlarger in turns, beside 1 busy neighbour" in said
    (artifact,) = data["artifacts"]
    assert [s["runtime"] for s in artifact["settings"]] == [t.name for t in settings_of(made, 1, False)]
    (found,) = [s for s in artifact["settings"] if s["chosen"]]
    assert found["passed"] is True
    assert (data["load"], data["seconds"], data["best"]) == (1, 0.1, [])
    (file,) = cache.iterdir()
    assert str(file) in done.output
    choice = recall(read_artifact(made))
    assert (choice.target.name, choice.target.threads) == (found["runtime"], 1)
    assert choice.measured["load"] == 1
    shown = run(made, "--show", "--json", "-")
    assert json.loads(shown.stdout)[0]["choice"]["runtime"] == found["runtime"]
    assert "forgotten" in run(made, "--forget").output
    assert "nothing is remembered, the default is used" in run(made, "--show").output
    assert "nothing was remembered" in run(made, "--forget").output


def test_what_fails_parity_is_named_and_nothing_is_remembered(made, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("ppexport.backends.openvino.run_openvino.find_spec", lambda name: None)
    off = save_run(made, tmp_path / "off", error=1e-3)
    # Of a day when it passed.
    remember(read_artifact(made), Target(str(made), "onnxruntime", "CPU", 1), {})
    done = run(made, "--against", off, "--seconds", 0.1, "--threads", 1)
    assert done.exit_code == 1, done.output
    said = " ".join(done.output.split())
    assert "FAIL" in said
    assert re.search(r"enlarger in onnxruntime, 1 thread: \w+: 60\.0 dB, largest error 1\.0e-03", said), said
    assert "nothing passes parity here, so nothing is remembered" in said
    assert list(cache.iterdir()) == []


def test_several_artifacts_take_turns_once_more(made, monkeypatch, tmp_path):
    """With times of our own: the second artifact is the faster one, and its GPU fails."""
    twin = shutil.copytree(made, tmp_path / "twin")
    copied = run(made, twin, "--against", made.with_name("enlarger-parity"))
    assert "an artifact is named twice, or is a copy of another one" in str(copied.exception)
    manifest = twin / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"created": "2', '"created": "3'))
    stand_in(monkeypatch, 1)

    def race(pool: Any, *_: Any) -> Any:
        speed = [(0.5 if "twin" in t.artifact else 1.0) * (0.5 if t.device == "GPU" else 1.0) for t in pool]
        return [(Interval(s, s, s), Interval(*[s / speed[0]] * 3)) for s in speed]

    def judge(one: Setting, folder: Path) -> None:
        one.passed = one.target.device != "GPU"
        one.reason = "" if one.passed else "coffee: 20.0 dB"

    monkeypatch.setattr(tuning, "race", race)
    monkeypatch.setattr(tuning, "judge", judge)
    monkeypatch.setattr(tuning, "memory_of", lambda job: (0, 1))
    monkeypatch.setattr("ppexport.profile.tune.remember", lambda artifact, target, measured: Path(target.name))
    done = run(made, twin, "--against", made.with_name("enlarger-parity"))
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "best of all: twin in onnxruntime, default: 0.50 (0.50-0.50) of the choice for enlarger" in said
    assert said.index("best of all") < said.index("enlarger in onnxruntime, default: 1.00")
    assert "twin in onnxruntime:GPU, default: coffee: 20.0 dB" in said


def test_a_setting_that_does_not_run_leaves_the_others(made, monkeypatch):
    stand_in(monkeypatch, 1)

    def memory(job: Any) -> Any:
        if job.targets[0].device == "CPU":
            raise UnavailableError("it has no CPU")
        return 0, 1

    monkeypatch.setattr(tuning, "memory_of", memory)
    monkeypatch.setattr(tuning, "race", lambda pool, *_: [(Interval(1, 1, 1), Interval(1, 1, 1)) for _ in pool])
    monkeypatch.setattr(tuning, "judge", lambda one, folder: setattr(one, "passed", True))
    found = tuning.tune(made, made, 0.1, 0, None, False, lambda *_: None)
    assert [(s.target.device, s.reason, s.chosen) for s in found.settings] == [
        ("CPU", "it has no CPU", False), ("GPU", "", True),
    ]  # fmt: skip
    monkeypatch.setattr(tuning, "settings_of", lambda *_: [Target(str(made), "onnxruntime", "CPU")])
    with pytest.raises(UnavailableError, match=r"no runtime here runs .*enlarger: it has no CPU"):
        tuning.tune(made, made, 0.1, 0, None, False, lambda *_: None)


def test_bad_input_is_one_sentence_before_any_work(made, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "probe", lambda *_: pytest.fail("work was done"))
    assert failure(tmp_path).startswith(f"2: {tmp_path} is not an artifact")
    assert failure(made, "--show", "--forget").startswith("2: --show and --forget are different")
    assert failure(made, "--load", 65).startswith("2: --load 65 is no number of busy neighbours")
    assert failure(made, "--threads", 5000).startswith("2: 5000 threads are more than")
    assert failure(made, made).startswith("2: an artifact is named twice")
    assert failure(made, "--against", tmp_path / "none").startswith("2: ")
    other = shutil.copytree(made, tmp_path / "other")
    changed(other / "manifest.json", weights={"file": "w", "sha256": "1" * 64})
    assert failure(made, other).startswith("2: artifacts that are tuned together are of one model, size and scale")
    failed = save_run(made, tmp_path / "failed")
    changed(failed / "report.json", passed=False)
    assert "failed did not pass: `ppexport parity` shows why" in failure(made, "--against", failed)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert failure(made).startswith(f"2: {tmp_path / 'file' / 'ppexport' / 'tune'} cannot be made: Not a directory")


def test_without_torch_a_saved_run_is_needed(made, tmp_path, monkeypatch):
    lonely = shutil.copytree(made, tmp_path / "lonely")
    monkeypatch.setattr("ppexport.cli.tune.find_spec", lambda name: None)
    message = failure(lonely)
    assert message.startswith("3: nothing is chosen that parity has not passed here, and torch is not installed")
    assert "--against RUN" in message


def test_a_run_is_made_where_it_is_missing(tmp_path_factory, tmp_path, monkeypatch):
    network = small_network(layers=2)
    made = exported_once(tmp_path_factory, network, backend="onnx", size=(32, 48))
    lonely, saved = shutil.copytree(made, tmp_path / "lonely"), tmp_path / "lonely-parity"
    # Of weights that nobody has here parity says what it says of them.
    assert "--checkpoint" in failure(lonely)
    monkeypatch.setattr("ppexport.parity.references.reference_network", lambda artifact, checkpoint: network)
    monkeypatch.setattr(parity_run, "parity_inputs", lambda size, scale: parity_inputs(size, scale)[:1])
    monkeypatch.setattr(tuning, "probe", lambda *_: None)
    monkeypatch.setattr(tuning, "race", lambda pool, *_: [(Interval(1, 1, 1), Interval(1, 1, 1)) for _ in pool])
    # An earlier run that was interrupted is no hindrance.
    saved.mkdir()
    save_entries(saved / "inputs.npz", {"coffee": parity_inputs((32, 48), 2)[0]})
    done = run(lonely, "--threads", 1)
    assert done.exit_code == 0, done.output
    assert json.loads((saved / "report.json").read_text())["passed"] is True
    assert recall(read_artifact(lonely)).measured["psnr"] > 90


def test_ctrl_c_keeps_nothing(made, cache, monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "race", interrupted)
    monkeypatch.setattr(tuning, "probe", lambda *_: None)
    done = run(made)
    assert done.exit_code == 130
    assert "interrupted: nothing new is remembered" in done.output
    assert list(cache.iterdir()) == []


def test_every_runtime_that_takes_threads_says_where():
    """And declares values of its options, of which each has a default and at least one other."""
    for runtime in runtimes().values():
        assert isinstance(runtime, Runtime)
        assert not runtime.options or runtime.threads_on
        assert all(len(set(values)) > 1 for values in runtime.options.values())


def test_the_table_of_loads_names_what_a_setting_loses_at_most():
    pool = [Target("a", "onnxruntime", "CPU"), Target("a", "onnxruntime", "CPU", 2, options=((SPIN, "0"),))]
    fast, slow, base = Interval(0.4, 0.5, 0.6), Interval(1.1, 1.25, 1.5), Interval(1, 1, 1)
    lines = markdown(pool, {0: [(base, base), (slow, slow)], 2: [(base, base), (fast, fast)]}).splitlines()
    assert lines[0].startswith("| setting | ms (95 %), 0 busy | of the first (95 %), 0 busy | ms (95 %), 2 busy |")
    assert lines[2] == (
        "| onnxruntime, default | 1.0 (1.0-1.0) | 1.00 (1.00-1.00) | 1.0 (1.0-1.0) | 1.00 (1.00-1.00) | 100 % |"
    )
    assert lines[3].startswith("| onnxruntime, 2 threads, allow_spinning=0 | 1.2 (1.1-1.5) | 1.25 (1.10-1.50) |")
    assert lines[3].endswith("| 25 % |")


def test_a_device_needs_no_torch_for_it(made):
    blocked = ("torch", "onnx", "onnxsim", "pydantic", "yaml", "safetensors")
    code = "from pathlib import Path\nimport ppexport.profile.tune\nfrom ppexport.cli.tune import tune\n"
    done = run_without(blocked, f"{code}tune([Path({str(made)!r})], show=True)")
    assert done.returncode == 0, done.stderr
    assert "nothing is remembered, the default is used" in " ".join(done.stdout.split())
