"""`profile` and `parity` of a page in a real browser, and whatever interrupts one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from fake_page import write_page
from small_networks import small_network
from typer.testing import CliRunner
from web_pages import chromium, needs_runtime, small_page

from ppexport.backends.backend import open_artifact
from ppexport.backends.web import run_browser, run_session
from ppexport.backends.web.run_browser import BrowserRunner, Headless, headless_session
from ppexport.backends.web.run_session import BrowserSession
from ppexport.backends.web.run_work import BrowserResult
from ppexport.cli import app
from ppexport.device.artifact import read_artifact
from ppexport.device.job import JOURNAL
from ppexport.device.measure import PLANS, Plan
from ppexport.device.target import choose
from ppexport.errors import ArtifactError, InputError, UnavailableError
from ppexport.parity import run as parity_run
from ppexport.parity.inputs import parity_inputs
from ppexport.profile.browser import measure_in_browser
from ppexport.profile.content import ROUNDS
from ppexport.profile.remote import Settings, prepare_remote
from ppexport.profile.result import Profile
from ppexport.remote.lan import lan_addresses
from ppexport.report.material import gather
from ppexport.report.page import board_line

pytest_plugins = ["web_fixtures"]
pytestmark = needs_runtime
invoke = CliRunner().invoke
TINY = Plan("quick", 10, 0.0, warm_windows=2)
LONG = Plan("quick", 30, 4.0, warm_windows=1)
"""Takes long enough to be interrupted."""
SIZE, LAYERS = (32, 48), 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page with a capacity set, whose mask and capacity JavaScript computes."""
    return small_page(
        tmp_path_factory, size=SIZE, webgpu=False, capacities=[128, 512, 1536], flavour="ort", layers=LAYERS
    )


@pytest.fixture(scope="module", autouse=True)
def _a_browser():
    """Skips without one."""
    chromium()


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(PLANS, "quick", TINY)


def request_of(folder, out, plan=TINY):
    return prepare_remote(choose(folder, None, None, False), plan, out, None, "browser", Settings())


def quiet(*_):
    return None


def leftovers():
    """Processes of headless browsers of ours."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "ppexport-browser-" in line]


def test_a_page_is_proven_measured_and_compared_with_a_saved_run(folder, tmp_path, monkeypatch, tiny):
    monkeypatch.setitem(ROUNDS, "quick", 1)
    some = [item for item in parity_inputs(SIZE, 2) if item.name in ("coffee", "few_impure")]
    monkeypatch.setattr(parity_run, "parity_inputs", lambda size, scale: some)
    saved, out, copies = tmp_path / "parity", tmp_path / "run", {}
    kept = parity_run.keep
    monkeypatch.setattr(parity_run, "keep", lambda *what: (copies.update(what[2][-1].copies), kept(*what)))
    with open_artifact(folder) as runner:
        assert isinstance(runner, BrowserRunner)
        report = parity_run.run_parity(small_network(layers=LAYERS), runner, saved, quiet)
    assert report.passed
    assert report.pairs[1].other == "web-fp32"
    assert set(copies) == {"coffee", "few_impure"}
    assert all(row.errors.psnr > 100 and row.flips == [0] * LAYERS for row in report.pairs[1].rows)
    arguments = ["profile", str(folder), "--on", "browser", "--headless", "--quick", "-o", str(out)]
    more = ["--against", str(saved), "--threads", "1", "--routing", "--json", str(tmp_path / "j.json")]
    done = invoke(app, [*arguments, *more])
    assert done.exit_code == 0, done.output
    p = Profile(out / "profile.json")
    (subject,) = p.subjects
    assert (subject["runtime"], subject["runtime_device"], subject["threads"]) == ("browser", "wasm", 1)
    assert subject["runtime_versions"] == {"onnxruntime-web": "1.30.0"}
    assert subject["summary"]["count"] == 10
    assert subject["load_ms"] > 0
    assert subject["first_ms"] > 0
    assert set(p.samples[0]["capacity"].tolist()) <= set(subject["capacities"])
    assert (p.samples[0]["host_ns"] < p.samples[0]["ns"]).all()
    browser = p.data["machine"]["browser"]
    assert (browser["device"], browser["threads"], browser["isolated"], browser["secure"]) == ("wasm", 1, True, True)
    assert browser["timer_step_ms"] < 0.01
    assert "Chrom" in p.data["machine"]["cpu"]
    assert "wasm in 1 thread" in board_line(p.data["machine"])
    kinds = {mark["kind"] for mark in p.data["marks"]}
    assert not kinds & {"hidden", "timer", "threads", "insecure", "fallback"}
    assert json.loads((tmp_path / "j.json").read_text())["parity"]["passed"] is True
    assert (saved / "report-web-fp32.json").is_file()
    (routing,) = gather([out]).routing
    assert len(routing["images"]) == 25
    assert all(len(image["ms"]) == 1 and image["impure"] >= 0 for image in routing["images"])
    assert routing["line"]["at_zero_ms"]["middle"] > 0
    again = invoke(app, [*arguments, "--threads", "1"])
    assert "nothing was measured again" in again.output
    assert "another measurement" in str(invoke(app, arguments).exception)
    assert not leftovers()


def test_what_a_page_decides_is_compared_with_this_machine(folder, tmp_path, monkeypatch):
    artifact = read_artifact(folder)
    lr = next(item.lr for item in parity_inputs(SIZE, 2) if item.name == "coffee")
    with BrowserSession(artifact) as session:
        session.facts = {"device": "wasm", "adapter": None}
        runner = BrowserRunner(artifact, session=session)
        prepared = runner.prepare(lr)
        sr = np.zeros((1, 3, 64, 96), np.float32)
        found = BrowserResult(sr, 5, prepared.capacity, prepared.pure.copy())
        monkeypatch.setattr(session, "run", lambda lr, centres: found)
        assert runner(lr).impure_tokens == 5
        found.pure[0, 0] ^= True
        with pytest.raises(ArtifactError, match="mask differs from this machine's in 1 pixels"):
            runner(lr)
        found = found._replace(capacity=99, pure=None)
        with pytest.raises(ArtifactError, match="chose 99 slots"):
            runner(lr)
        found = BrowserResult(np.full_like(sr, np.nan), 5, prepared.capacity, None)
        with pytest.raises(ArtifactError, match="NaN or infinite"):
            runner(lr)


def test_a_closed_tab_continues_when_it_is_opened_again_and_others_are_turned_away(
    page_folder, tmp_path, browser, monkeypatch
):
    # On a busy machine the page asks seldom.
    monkeypatch.setattr(run_session, "FAREWELL", 60.0)
    out = tmp_path / "run"
    request = request_of(page_folder, out, LONG)
    context, other, result = browser.new_context(), browser.new_context(), []
    with BrowserSession(read_artifact(page_folder)) as session:
        # A wrong token.
        parts = urlsplit(session.url)
        assert other.request.get(f"http://{parts.netloc}/{'x' * 24}/").status == 404
        tab = context.new_page()
        tab.goto(session.url)
        session.wait_for_client(60)
        measuring = threading.Thread(target=lambda: result.append(measure_in_browser(request, session, quiet)))
        measuring.start()
        # A second browser.
        second = other.new_page()
        second.goto(session.url)
        second.get_by_text("for one browser only").wait_for(timeout=30_000)
        end = time.monotonic() + 60
        while not (out / JOURNAL).exists() or b'["q"' not in (out / JOURNAL).read_bytes():
            assert time.monotonic() < end
            tab.wait_for_timeout(50)
        tab.close()
        again = context.new_page()
        again.goto(session.url)
        while measuring.is_alive():
            assert time.monotonic() < end
            again.wait_for_timeout(50)
        closing = threading.Thread(target=session.close)
        closing.start()
        again.get_by_text("The measurement is complete").wait_for(timeout=60_000)
        while closing.is_alive():
            again.wait_for_timeout(50)
    (p,) = result
    count = p.subjects[0]["summary"]["count"]
    assert count >= LONG.queries
    assert "resumed" in {mark["kind"] for mark in p.data["marks"]}
    assert p.samples[0]["image"].tolist() == [query % p.images for query in range(count)]
    context.close()
    other.close()


def test_an_interrupted_run_continues_with_the_same_command_and_leaves_no_browser(page_folder, tmp_path):
    out = tmp_path / "run"
    arguments = ["ppexport", "profile", str(page_folder), "--on", "browser", "--headless", "--quick", "-o", str(out)]
    code = f"import sys; sys.argv = {arguments!r}; from ppexport.device.measure import PLANS, Plan\n"
    code += f"PLANS['quick'] = {LONG!r}; from ppexport.cli import run; run()"
    command = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not (out / JOURNAL).exists() or (out / JOURNAL).read_bytes().count(b'["q"') < 3:
        assert time.monotonic() < end
        assert command.poll() is None, command.communicate()
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    said = command.communicate(timeout=30)[1]
    assert command.returncode == 130, said
    assert "the same command continues" in said
    assert not leftovers()
    kept = (out / JOURNAL).read_bytes().splitlines()
    queries = sum(line.startswith(b'["q"') for line in kept)
    # Another browser may not continue it.
    request = request_of(page_folder, out, LONG)
    with BrowserSession(read_artifact(page_folder)) as session:
        session.facts = {
            "model": "Phone", "platform": "Android", "cores": 8, "brands": [], "user_agent": "", "ort": "1.30.0",
        }  # fmt: skip
        with pytest.raises(InputError, match="another browser or machine than Phone, an unknown browser"):
            measure_in_browser(request, session, quiet)
    with headless_session(read_artifact(page_folder)) as session:
        p = measure_in_browser(request, session, quiet)
    lines = (out / JOURNAL).read_bytes().splitlines()
    assert lines[: len(kept)] == kept
    assert p.subjects[0]["summary"]["count"] > queries
    assert p.subjects[0]["summary"]["count"] >= LONG.queries
    assert sum(line.startswith(b'["load"') for line in lines) == 1
    assert "resumed" in {mark["kind"] for mark in p.data["marks"]}


def test_a_browser_leaves_nothing_behind(monkeypatch):
    # The names of sockets are short.
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", name)
        with Headless("data:,x"):
            end = time.monotonic() + 20
            while not list(Path(name).glob("*/SingletonSocket")):
                assert time.monotonic() < end
                time.sleep(0.05)
        assert not list(Path(name).iterdir())


def test_a_browser_ends_with_the_program_that_started_it(tmp_path):
    code = (
        "import os, signal, time; from ppexport.backends.web.run_browser import Headless\n"
        "Headless('data:,x'); time.sleep(0.7); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    end = time.monotonic() + 20
    while [line for line in leftovers() if str(tmp_path) in line]:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_machine_without_a_browser_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PPEXPORT_BROWSER", "no-such-browser")
    with pytest.raises(InputError, match="names 'no-such-browser', which is no program"):
        Headless("data:,x")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no usable \x1b[31mdisplay' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PPEXPORT_BROWSER", str(broken))
    with Headless("data:,x") as browser:
        browser._child.wait(10)
        assert browser.problem() == f"{broken} ended with exit code 3: no usable display"
    monkeypatch.delenv("PPEXPORT_BROWSER")
    monkeypatch.setattr(run_browser, "find_browser", lambda: None)
    with pytest.raises(UnavailableError, match="--on browser and open the address in any browser"):
        Headless("data:,x")


def test_what_cannot_be_measured_in_a_browser_is_refused_before_anything_is(folder, tmp_path):
    def error(path, *arguments):
        done = invoke(app, ["profile", str(path), "-o", str(tmp_path / "x"), *map(str, arguments)])
        assert isinstance(done.exception, (InputError, ArtifactError)), done.output
        return str(done.exception)

    assert "is timed in a browser: use `ppexport profile` with --on browser" in error(folder)
    assert "is timed in a browser: use `ppexport profile` with --on browser" in error(
        folder, "--on", "ssh://board.invalid"
    )
    assert "--backend web` makes one" in error(write_page(tmp_path / "graph", backend="onnx"), "--on", "browser")
    for option in (["--lan"], ["--headless"], ["--adb", "x"], ["--against", tmp_path]):
        assert "are for --on browser" in error(folder, *option)
    for option in (["--cores", "1"], ["--clean"], ["--power-mode", "1"], ["--lock-clocks"]):
        assert "a browser has no options of a device" in error(folder, "--on", "browser", *option)
    assert "name one" in error(folder, "--on", "browser", "--lan", "--headless")
    assert "--lan-address is for --lan" in error(folder, "--on", "browser", "--lan-address", "10.0.0.1")
    assert "computes on wasm or webgpu" in error(folder, "--on", "browser", "--runtime", "browser:cuda")
    assert "one runtime at a time" in error(folder, "--on", "browser", "--runtime", "browser,browser:webgpu")
    assert "on this machine only" in error(folder, "--on", "browser", "--layers")
    assert "report.json cannot be read" in error(folder, "--on", "browser", "--against", tmp_path / "none")
    assert "not 'not-here'" in error(folder, "--on", "browser", "--lan", "--lan-address", "not-here")
    assert not (tmp_path / "x").exists()
    done = invoke(app, ["parity", str(folder), "--headless"])
    assert "are for --on browser" in str(done.exception)


def test_a_count_that_differs_ends_the_run_and_leaves_nothing(folder, tmp_path, monkeypatch):
    request = request_of(folder, tmp_path / "run")
    query = ["q", 0, 3, 5, 10, 10, 1, 1536, 7]
    with BrowserSession(read_artifact(folder)) as session:
        session.facts = {
            "model": "Phone", "platform": "Android", "cores": 8, "brands": ["Chrome 1"], "user_agent": "", "ort": "1",
        }  # fmt: skip
        monkeypatch.setattr(session, "latency", lambda images, plan, past, write, progress: write([query]))
        name = request.pictures[3].name
        with pytest.raises(ArtifactError, match=f"in picture {name} the browser counted 7 impure tokens"):
            measure_in_browser(request, session, quiet)
    assert not list((tmp_path / "run").iterdir())


def test_a_page_of_the_local_network_is_insecure_and_marked(page_folder, tmp_path):
    found = lan_addresses()
    if not found:
        pytest.skip("this machine has no address but its own")
    request = request_of(page_folder, tmp_path / "run")
    opened = BrowserSession(read_artifact(page_folder), address=found[0])
    with opened as session, Headless(session.url) as browser:
        session.alive = browser.problem
        session.wait_for_client(120)
        p = measure_in_browser(request, session, quiet)
    told = p.data["machine"]["browser"]
    assert (told["secure"], told["isolated"], told["threads"]) == (False, False, 1)
    kinds = {mark["kind"] for mark in p.data["marks"]}
    assert {"insecure", "timer"} <= kinds
    assert ("threads" in kinds) == (told["cores"] > 1)


@pytest.mark.slow
def test_webgpu_in_software_is_a_column_of_its_own(tmp_path_factory, tmp_path, monkeypatch):
    folder = small_page(tmp_path_factory)
    some = [item for item in parity_inputs((32, 32), 2) if item.name == "coffee"]
    monkeypatch.setattr(parity_run, "parity_inputs", lambda size, scale: some)
    with BrowserRunner(read_artifact(folder), "webgpu") as runner:
        report = parity_run.run_parity(small_network(), runner, tmp_path / "run", quiet)
        assert runner.session.facts["adapter"]["fallback"] is True
    assert report.passed
    assert report.pairs[1].other == "web-fp32-webgpu-fallback"
    assert report.pairs[1].worst.errors.psnr > 100
