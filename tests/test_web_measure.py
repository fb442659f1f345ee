"""The measuring page in a browser, with the server that measures: what a phone does, and what disturbs it."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
from small_networks import SIZE
from web_pages import needs_runtime, small_page

from ppexport.backends.onnx.run_onnxruntime import OnnxRunner
from ppexport.backends.web import run_session
from ppexport.backends.web.run_session import BrowserSession
from ppexport.device.artifact import read_artifact
from ppexport.device.journal import Past
from ppexport.device.picture import psnr, to_input
from ppexport.errors import UnavailableError

pytest_plugins = ["web_fixtures"]
pytestmark = needs_runtime
PLAN = {"queries": 24, "seconds": 0.5, "warm_change": 0.02, "warm_windows": 2, "sensor_seconds": 0.2}
IMAGES = np.random.default_rng(1).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A capacity set, for which the page computes the mask."""
    return read_artifact(small_page(tmp_path_factory, size=SIZE, capacities=[128, 256], webgpu=False))


@pytest.fixture(autouse=True)
def _no_farewell(monkeypatch):
    """Tabs that are closed never hear how it ended."""
    monkeypatch.setattr(run_session, "FAREWELL", 0.3)


class Call(threading.Thread):
    """A call of the session in another thread, while this one serves the tab."""

    def __init__(self, call, *arguments):
        super().__init__(daemon=True)
        self.call, self.arguments, self.result, self.error = call, arguments, None, None
        self.start()

    def run(self):
        try:
            self.result = self.call(*self.arguments)
        except UnavailableError as error:
            self.error = error

    def wait(self, tab):
        for _ in range(600):
            if not self.is_alive():
                return self
            tab.wait_for_timeout(100)
        raise AssertionError(tab.inner_text("main"))


@contextmanager
def opened(browser, artifact, script="", **settings):
    """A session, and a tab as narrow as the narrowest phone that opens its address."""
    with BrowserSession(artifact, **settings) as session:
        context = browser.new_context(viewport={"width": 320, "height": 640})
        tab = context.new_page()
        tab.add_init_script(script)
        tab.goto(session.url)
        yield session, tab
        context.close()


def told(tab, text):
    """The page says *text* within a while."""
    tab.locator("main", has_text=text).wait_for(timeout=20_000)


def check_journal(records, begins=1):
    """The records of a complete measurement."""
    kinds = [record[0] for record in records]
    queries = [record for record in records if record[0] == "q"]
    assert kinds[:4] == ["begin", "c", "load", "first"]
    assert kinds[-2:] == ["c", "end"]
    assert (kinds.count("begin"), kinds.count("load"), kinds.count("warm")) == (begins, 1, begins)
    assert len(queries) >= PLAN["queries"]
    assert sum(record[4] for record in queries) >= PLAN["seconds"] * 1e9
    assert [record[2] for record in queries] == [number % len(IMAGES) for number in range(len(queries))]
    starts = [record[3] for record in queries]
    assert starts == sorted(starts)
    for _, subject, _, _, ns, cpu, host, capacity, impure in queries:
        assert subject == 0
        assert 0 < host < ns == cpu
        assert impure <= capacity in (128, 256)
    return [record[2] for record in records if record[0] == "c"]


class Disturbed:
    """A connection that fails in turns: nothing arrives; the answer is lost; what arrives is damaged; all is well."""

    def __init__(self):
        self.count = 0

    def __call__(self, route):
        kind, self.count = self.count % 4, self.count + 1
        if kind == 0:
            route.abort()
        elif kind == 1:
            route.fetch()
            route.abort()
        elif kind == 2:
            body = route.request.post_data_buffer
            route.continue_(post_data=bytes([body[0] ^ 1]) + body[1:])
        else:
            route.continue_()


def test_pictures_and_latencies_arrive_over_a_connection_that_fails(browser, artifact):
    lr, records = to_input(IMAGES[0]), []
    with opened(browser, artifact, threads=2) as (session, tab):
        disturbed = Disturbed()
        tab.route("**/chunk", disturbed)
        result = Call(session.run, lr).wait(tab).result
        measured = Call(session.latency, IMAGES, {**PLAN, "seconds": 3.0}, Past(1), records.extend).wait(tab)
        assert measured.error is None
        assert disturbed.count > 5
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320
        session.finish("All is measured.")
        told(tab, "All is measured.")
    assert session.facts["threads"] == 2
    with OnnxRunner(artifact, threads=1) as runner:
        prepared = runner.prepare(lr)
        expected = runner.run(prepared)
    assert psnr(result.sr, expected.sr, peak=1) >= 100
    assert np.array_equal(result.pure, prepared.pure)
    assert (result.impure, result.capacity) == (expected.impure_tokens, expected.capacity)
    readings = check_journal(records)
    assert all(reading["page.hidden"] == 0 for reading in readings)
    assert all(reading["heap.mb"] > 1 and reading["longest.gap.ms"] >= 0 for reading in readings)


def test_a_page_that_is_loaded_again_continues_its_measurement(browser, artifact):
    records, plan = [], {**PLAN, "seconds": 3.0}
    with opened(browser, artifact) as (session, tab):
        call = Call(session.latency, IMAGES, plan, Past(1), records.extend)
        for _ in range(300):
            if any(record[0] == "q" for record in list(records)):
                break
            tab.wait_for_timeout(50)
        assert call.is_alive()
        tab.reload()
        assert call.wait(tab).error is None
    check_journal(records, begins=2)


def test_a_page_out_of_sight_is_marked(browser, artifact):
    hidden = "Object.defineProperty(document, 'hidden', { get: () => true });"
    records = []
    with opened(browser, artifact, script=hidden) as (session, tab):
        assert Call(session.latency, IMAGES, PLAN, Past(1), records.extend).wait(tab).error is None
    assert all(reading["page.hidden"] == 1 for reading in check_journal(records))


def test_another_browser_is_refused_and_an_older_page_says_that_it_was_replaced(browser, artifact):
    with opened(browser, artifact) as (session, tab):
        assert Call(session.wait_for_client, 30).wait(tab).result["device"] == "wasm"
        other = browser.new_context().new_page()
        other.goto(session.url)
        told(other, "another browser is being measured")
        newer = tab.context.new_page()
        newer.goto(session.url)
        told(tab, "taken over by a newer page")
        told(newer, "waiting for the computer")
        other.context.close()


def test_a_page_that_cannot_go_on_says_why_on_both_sides(browser, artifact):
    with opened(browser, artifact, device="webgpu") as (session, tab):
        waiting = Call(session.wait_for_client, 30).wait(tab)
        assert "WebGPU is not available: the page was built without it" in str(waiting.error)
        told(tab, "WebGPU is not available")
