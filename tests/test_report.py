"""The report page: everything inside, nothing loaded, nothing that a file says is obeyed; and latency.yaml."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import warnings

import numpy as np
import pytest
import yaml
from conftest import photo
from profiles import reading, steady, subject, write_journal
from shared import ODD
from typer.testing import CliRunner

from ppexport.backends.backend import Operation
from ppexport.cli import app
from ppexport.device.picture import to_input
from ppexport.errors import InputError
from ppexport.networks.architecture import find_architecture
from ppexport.networks.card import models_folder
from ppexport.parity.columns import Sample, save_entries
from ppexport.parity.inputs import ParityInput
from ppexport.profile import statistics
from ppexport.profile.by_layer import layers_result, why_sum_differs
from ppexport.profile.result import Profile, beginning, write_profile
from ppexport.report import records
from ppexport.report.figures import drawn
from ppexport.report.material import gather
from ppexport.report.page import board_line, judge, render

invoke = CliRunner().invoke
EVIL = "<script>alert(1)</script>$x_{2}$ {{ 7*7 }} \"'> é"


def profile_folder(folder, times=None, subjects=None, **more):
    folder.mkdir(parents=True)
    times = times or [steady()]
    t = round(sum(times[0]) * 1e6)
    readings = [reading(0), reading(t // 2, **{"celsius.cpu": 55.0}), reading(t, **{"celsius.cpu": 58.0})]
    journal = write_journal(folder / "latency.jsonl", times, subjects=subjects, readings=readings, **more)
    write_profile(folder, journal, [(1, 2_000_000)] * len(times))
    return folder


def write_layers(path, operations, measured, method):
    path.write_text(
        json.dumps(
            {
                **beginning("layers", measured, {}),
                **layers_result(operations, method, find_architecture("pp_atd_light")),
            }
        )
    )


def parity_folder(folder, digest="a" * 64, name="coffee", passed=True, precision="fp32"):
    folder.mkdir(parents=True)
    lr = to_input(photo(16, 24))
    sr = lr.repeat(2, axis=2).repeat(2, axis=3)
    save_entries(folder / "inputs.npz", {name: ParityInput(name, lr)})
    pure = np.zeros(16 * 32, np.bool_)
    pure[:100] = True
    save_entries(folder / "twin.npz", {name: Sample(sr=sr, impure=412, pure=pure)})
    save_entries(folder / f"onnx-{precision}.npz", {name: Sample(sr=sr + np.float32(1e-6), impure=412)})
    row = {
        "name": name, "errors": {"psnr": 120.5, "max_abs": 1e-6, "p999": 1e-6, "ssim": 1.0}, "passed": passed,
        "reason": "", "flips": [0, 0], "task": [30.0, 30.001], "task_same_routing": [30.0, 30.002],
    }  # fmt: skip
    gate = {"psnr": 90.0, "max_abs": None, "task_change": 0.001, "near_tie": 1e-6}
    pair = {"reference": "twin", "other": f"onnx-{precision}", "gate": gate, "rows": [row], "passed": passed,
            "worst": name, "psnr_y_change": 0.001, "psnr_y_change_same_routing": 0.002}  # fmt: skip
    report = {
        "format": "ppexport-parity", "version": 2, "model": "pp_atd_light_x2", "backend": "onnx",
        "precision": precision, "flavour": "portable", "capacities": [384], "size": [16, 24],
        "created": "2026-11-23T12:00:00+00:00", "files": {"model.onnx": digest}, "weights": {"sha256": "c" * 64},
        "versions": {}, "passed": passed, "pairs": [pair],
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A page with every section, and names that attack it."""
    root = tmp_path_factory.mktemp("report")
    first = profile_folder(root / "p1", [steady(), steady(ms=60.0)], [subject(EVIL), subject("small", "e" * 64)])
    operations = [Operation("/conv_first/Conv", "Conv", 1.0), Operation(f"/{EVIL}/x", "Odd", 2.0)]
    write_layers(first / "layers.json", operations, subject(EVIL), EVIL)
    line = {name: {"low": 0.1, "middle": 0.2, "high": 0.3} for name in ("at_zero_ms", "slope_ms", "saving")}
    head = {"version": 1, "subject": {"name": EVIL}, "machine": {}}
    images = [{"pure_share": i / 8, "ms": [10.0 - i, 11.0 - i]} for i in range(8)]
    slots = [{"capacity": c, "ms": [c / 100, c / 90]} for c in (128, 256)]
    routing = {"format": "ppexport-routing", **head, "images": images, "capacities": slots, "line": line}
    (first / "routing.json").write_text(json.dumps(routing))
    deadlines = {"24": {"hit_rate": 0.5, "p90_holds": False}}
    frames = {"format": "ppexport-frames", **head, "ns": [1], "deadlines": deadlines, "sentence": EVIL,
              "inside_the_clock": "x"}  # fmt: skip
    (first / "frames.json").write_text(json.dumps(frames))
    bad = parity_folder(root / "bad<b>", name="a<img src=x>", passed=False, precision="fp16")
    return render(gather([first, parity_folder(root / "good"), bad]), "ppexport report")


def test_nothing_of_a_file_becomes_markup(everything):
    assert "<script>alert" not in everything
    assert "<img src=x" not in everything
    assert "bad<b>" not in everything
    assert "{{ 7*7 }}" in everything
    assert html.escape("<script>alert(1)</script>") in everything
    assert everything.count("<script") == 1


def test_letters_that_matplotlib_lacks_are_left_to_the_browser():
    plot = drawn(lambda axes: axes.set_title(ODD))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "日本" in plot()


def test_nothing_is_loaded_from_anywhere(everything):
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", everything)
    assert addresses
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in addresses)
    assert "default-src 'none'" in everything
    assert not re.search(r"url\((?!#)", everything)
    assert "@import" not in everything


MEASURE = """<body><iframe src="page.html" style="width: WIDTHpx; height: 3000px; border: 0"></iframe><script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const boxes = [...page.querySelectorAll(".fold td")].filter((box) => box.scrollWidth > box.clientWidth + 1);
  const cells = [...page.querySelectorAll(".fold tbody tr:first-child td")].map((cell) =>
    getComputedStyle(cell, "::before").content + (cell.getClientRects().length ? "" : " hidden"));
  document.title = JSON.stringify([page.documentElement.scrollWidth, boxes.length, cells]);
});
</script></body>"""


@pytest.mark.parametrize("width", [320, 500, 1000])
def test_nothing_is_wider_than_the_page(everything, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    (tmp_path / "page.html").write_text(everything)
    (tmp_path / "frame.html").write_text(MEASURE.replace("WIDTH", str(width)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    address = (tmp_path / "frame.html").as_uri()
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([browser, *options, address], capture_output=True, text=True, env=home, check=False)
    found = re.search(r"<title>(.*)</title>", done.stdout)
    assert found, done.stderr
    wide, boxes, cells = json.loads(html.unescape(found[1]))
    assert wide <= width
    assert boxes == 0
    if width > 700:
        assert set(cells) == {"none"}
    else:
        # Every cell that is shown says which column it is of.
        assert cells[:3] == ['"run"', '"model"', '"backend"']
        assert '"fp32"' in cells
        assert '"fp16" hidden' in cells


def test_a_sum_that_is_not_the_latency_is_explained(tmp_path):
    folder = profile_folder(tmp_path / "run", [steady(ms=10.0)])
    measured = Profile(folder / "profile.json").subjects[0]
    p50 = measured["summary"]["p50_ms"]
    for share, why in (
        (1.0, None), (1.3, None), (0.7, None),
        (1.4, "recording the time of every operation takes time itself"), (0.6, "times operations alone"),
    ):  # fmt: skip
        operations = [Operation("/conv_first/Conv", "Conv", share * p50)]
        write_layers(folder / "layers.json", operations, measured, "traced")
        page = render(gather([folder]), "ppexport report")
        sentence = f"All operations take {share * p50:.1f} ms, the measured p50 is {p50:.1f} ms: "
        assert (sentence in page) == (why is not None)
        assert why is None or why in page
    assert why_sum_differs({"subject": {"name": "of an older file"}, "total_ms": 5.0}) is None


def test_every_section_is_there(everything):
    for section in ("parity", "latency", "layers", "content", "pareto", "versions"):
        assert f'<section id="{section}"' in everything
    # Two plots a profile, branches, blocks, two of routing, one Pareto.
    assert everything.count("<svg") == 7
    assert 'class="good"' in everything
    assert 'class="bad"' in everything
    assert "currentColor" in everything
    assert "#010203" not in everything
    assert "°C" in everything
    assert "a" * 64 in everything


FRAMES = """<!doctype html><body>
<iframe id="phone" width="390" height="800" src="page.html"></iframe>
<iframe id="wide" width="1200" height="800" src="page.html"></iframe>
<p id="phone-told"></p><p id="wide-told"></p>
<script>
addEventListener("load", () => { for (const id of ["phone", "wide"]) {
  const page = document.getElementById(id).contentDocument, root = page.documentElement;
  document.getElementById(id + "-told").textContent =
    (root.scrollWidth - root.clientWidth) + " " + page.defaultView.getComputedStyle(page.body).backgroundColor;
} });
</script>"""
"""Tells how far the page is wider than a phone and a desk, and its background."""


def test_the_page_works_in_a_browser_without_network(everything, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    (tmp_path / "page.html").write_text(everything, encoding="utf-8")
    (tmp_path / "frames.html").write_text(FRAMES, encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [*command, f"file://{tmp_path}/page.html"], capture_output=True, text=True, check=True, timeout=120
    )
    # The sliders' script ran, by the hash in the policy; nothing else did.
    assert done.stdout.count('style="--at: 50%;"') == 2
    # Errors of the page, refused requests among them, would be told by the console.
    assert "CONSOLE" not in done.stderr
    done = subprocess.run(
        [*command, "--blink-settings=preferredColorScheme=0", "--allow-file-access-from-files",
         f"file://{tmp_path}/frames.html"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    for name in ("phone", "wide"):
        told = re.search(rf'id="{name}-told">([^<]*)<', done.stdout)
        assert told is not None
        assert told[1] == "0 rgb(18, 22, 29)"


def test_the_pareto_front_joins_by_the_files_hash(tmp_path):
    from ppexport.report.figures import pareto_points

    a = profile_folder(tmp_path / "a", [steady(), steady(ms=50.0)], [subject("slow"), subject("fast", "e" * 64)])
    other = profile_folder(tmp_path / "b", [steady(ms=200.0)], [subject("slower")])
    points = pareto_points(gather([a, other, parity_folder(tmp_path / "p")]))
    assert [(p["name"], p["db"], p["beaten"]) for p in points] == [("slow", 30.001, False), ("slower", 30.001, True)]


def test_report_command(tmp_path):
    folder = profile_folder(tmp_path / "run")
    out = tmp_path / "r.html"
    done = invoke(app, ["report", str(folder), "-o", str(out), "--json", str(tmp_path / "j.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "j.json").read_text())["bytes"] == out.stat().st_size
    for arguments in ([tmp_path], [tmp_path / "no"], [folder, "-o", tmp_path], [folder, "-o", tmp_path / "no" / "x"]):
        assert isinstance(invoke(app, ["report", *map(str, arguments)]).exception, InputError)
    (folder / "layers.json").write_text("{}")
    assert isinstance(invoke(app, ["report", str(folder), "-o", str(out)]).exception, InputError)


@pytest.mark.parametrize("place", [("machine", "system"), ("subjects", 0, "bytes"), ("protocol", "plan")])
def test_profiles_that_lack_something_are_a_sentence(tmp_path, place):
    folder = profile_folder(tmp_path / "run")
    path = folder / "profile.json"
    data = json.loads(path.read_text())
    *way, last = place
    part = data
    for step in way:
        part = part[step]
    del part[last]
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="a file in run lacks what a report draws"):
        render(gather([folder]), "x")


def test_profiles_from_before_energy_was_measured_are_drawn(tmp_path):
    folder = profile_folder(tmp_path / "run")
    path = folder / "profile.json"
    data = json.loads(path.read_text())
    del data["subjects"][0]["summary"]["energy"]
    path.write_text(json.dumps(data))
    assert "<svg" in render(gather([folder]), "x")


@pytest.mark.parametrize(
    "change", [{"pairs": []}, {"pairs": [{}]}, {"units": {"fp32": {}}}, {"size": ["x", 1]}, {"files": 5}, {"model": 1}]
)
def test_damaged_parity_runs_are_refused(tmp_path, change):
    folder = parity_folder(tmp_path / "p")
    data = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(InputError, match="parity run"):
        gather([folder])


def test_what_a_compute_unit_computed_is_not_the_artifacts_own_figure(tmp_path):
    folder = parity_folder(tmp_path / "p")
    data = json.loads((folder / "report.json").read_text())
    unit = {**data["pairs"][0], "other": "onnx-fp32-gpu", "psnr_y_change": None}
    (folder / "report.json").write_text(json.dumps({**data, "units": {"gpu": {}}, "pairs": [*data["pairs"], unit]}))
    (parity,) = gather([folder]).parities
    assert parity.judged == data["pairs"][0]


def test_both_changes_of_quality_are_on_the_page(everything):
    assert '<th class="n">PSNR-Y change as it runs</th><th class="n">with the same routing</th>' in everything
    assert '<td class="n">+0.0010 dB</td><td class="n">+0.0020 dB</td>' in everything


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({}, ("good", "passes: 120.5 dB, gate 90 dB")),
        (
            {"errors": {"psnr": 67.0}, "injected": {"psnr": None}, "flips": [0, 2], "reason": "2 near ties"},
            ("tie", "passes: equal once the same categories are injected, gate 90 dB; as it runs 67.0 dB, categories "
             "flipped in 1 of 1 inputs"),
        ),
        (
            {"errors": {"psnr": 67.0}, "passed": False, "reason": "67.0 dB"},
            ("bad", "FAIL: 67.0 dB, gate 90 dB; failed: coffee"),
        ),
    ],
)  # fmt: skip
def test_the_verdict_says_which_figure_the_gate_judged(tmp_path, row, verdict):
    (parity,) = gather([parity_folder(tmp_path / "p", passed=row.get("passed", True))]).parities
    parity.rows[0].update(row)
    assert judge(parity) == verdict


def test_a_parity_run_cannot_name_files_outside_its_folder(tmp_path):
    folder = parity_folder(tmp_path / "p")
    data = json.loads((folder / "report.json").read_text())
    data["pairs"][0]["other"] = "../p/onnx-fp32"
    (folder / "report.json").write_text(json.dumps(data))
    assert 'class="slider"' not in render(gather([folder]), "x")


def in_checkout(monkeypatch, root):
    """The bundled models are those in *root*."""
    monkeypatch.setattr(records, "models_folder", lambda: root)
    monkeypatch.setattr(records, "find_card", lambda name: (type("C", (), {"name": name}), root / name))


def test_latencies_are_recorded_beside_the_card_in_a_checkout_only(tmp_path, monkeypatch):
    root = tmp_path / "checkout" / "models"
    shutil.copytree(models_folder() / "pp_atd_light_x2", root / "pp_atd_light_x2")
    (root.parent / "setup.cfg").write_text("")
    in_checkout(monkeypatch, root)
    target = root / "pp_atd_light_x2" / "latency.yaml"
    target.unlink(missing_ok=True)
    first = Profile(profile_folder(tmp_path / "a") / "profile.json")
    second = Profile(
        profile_folder(tmp_path / "b", [steady(ms=50.0)], [subject("s", flavour="portable")]) / "profile.json"
    )
    assert records.record_latency([first]) == [target]
    records.record_latency([second])
    data = yaml.safe_load(target.read_text())["Test CPU"]
    assert set(data) == {
        "onnx-fp32-ort-full-64x64 onnxruntime:CPU", "onnx-fp32-portable-full-64x64 onnxruntime:CPU"
    }  # fmt: skip
    entry = data["onnx-fp32-ort-full-64x64 onnxruntime:CPU"]
    assert entry["p90_ms"] == round(first.subjects[0]["summary"]["p90_ms"], 3)
    assert entry["files"] == {"model.onnx": "a" * 64}
    target.write_text("- x\n")
    with pytest.raises(InputError, match="not a mapping"):
        records.record_latency([first])
    (root.parent / "setup.cfg").unlink()
    with pytest.raises(InputError, match="checkout"):
        records.record_latency([first])


def test_parity_is_recorded_by_backend_and_precision(tmp_path, monkeypatch):
    root = tmp_path / "checkout" / "models"
    (root / "pp_atd_light_x2").mkdir(parents=True)
    (root.parent / "setup.cfg").write_text("")
    in_checkout(monkeypatch, root)
    target = root / "pp_atd_light_x2" / "numerics.yaml"
    target.write_text("evaluation:\n  set5:\n    pytorch-fp32: {psnr_y: 36.9}\n")
    runs = [parity_folder(tmp_path / p, precision=p) for p in ("fp32", "fp16")]
    parities = gather(runs).parities
    assert records.record_parity(parities) == [target]
    data = records.read_numerics(target.parent)
    assert data["evaluation"] == {"set5": {"pytorch-fp32": {"psnr_y": 36.9}}}
    assert set(data["parity"]) == {f"onnx-{p}-portable-full-16x24" for p in ("fp32", "fp16")}
    entry = data["parity"]["onnx-fp16-portable-full-16x24"]
    assert (entry["psnr"], entry["psnr_same_routing"], entry["flips"]) == (120.5, 120.5, 0)
    assert (entry["date"], entry["passed"]) == ("2026-11-23", True)
    assert (entry["psnr_y_change"], entry["psnr_y_change_same_routing"]) == (0.001, 0.002)
    del parities[0].data["flavour"]
    with pytest.raises(InputError, match="of an older ppexport and does not tell its flavour"):
        records.record_parity(parities)


def test_columns_that_were_filled_in_later_are_drawn_too(tmp_path):
    folder = parity_folder(tmp_path / "p")
    later = parity_folder(tmp_path / "q", precision="fp16")
    shutil.copy(later / "report.json", folder / "report-onnx-fp16.json")
    parities = gather([folder]).parities
    assert [parity.name for parity in parities] == ["p", "p onnx-fp16"]
    assert "p onnx-fp16" in render(gather([folder]), "x")


JETSON = {"l4t": "36.3.0", "jetpack": "6.0", "power_mode": {"number": 1, "name": "15W"}, "clocks": {"locked": True}}


def test_a_board_is_recorded_by_its_power_mode(tmp_path, monkeypatch):
    root = tmp_path / "checkout" / "models"
    (root / "pp_atd_light_x2").mkdir(parents=True)
    monkeypatch.setattr(records, "model_folder", lambda name: root / name)
    profile = Profile(profile_folder(tmp_path / "a") / "profile.json")
    profile.data["machine"]["jetson"] = JETSON
    records.record_latency([profile])
    assert set(yaml.safe_load((root / "pp_atd_light_x2" / "latency.yaml").read_text())) == {"Test CPU, 15W"}


def test_what_a_board_says_of_itself():
    assert board_line({"jetson": JETSON}) == "L4T 36.3.0, JetPack 6.0, power mode 1 (15W), clocks locked"
    assert board_line({"phone": {"board": "Phone 9", "soc": "SM1", "android": "15"}}) == "Phone 9, SoC SM1, Android 15"
    assert board_line({"jetson": {"l4t": None, "clocks": 3, "power_mode": "x"}}) == ""
    assert board_line({"jetson": [], "cpu": "x"}) == ""
