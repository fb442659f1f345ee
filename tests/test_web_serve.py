"""The server that a browser measures through: what it does for its page, and what it refuses to anybody else."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from urllib.parse import urlsplit

import numpy as np
import pytest
from fake_page import ENGINE, FACTS, FakePage, Serving, lines, measure, write_page
from onnx import TensorProto, helper
from profiles import subject
from typer.testing import CliRunner

from ppexport.backends.web import run_server, run_session
from ppexport.backends.web.run_files import PageFiles
from ppexport.backends.web.run_server import POLICY, Server
from ppexport.backends.web.run_session import BrowserSession
from ppexport.backends.web.run_work import browser_facts, browser_name, engine_facts
from ppexport.cli import app
from ppexport.cli import browser as cli_browser
from ppexport.cli.browser import Connection, show_address
from ppexport.device.artifact import read_artifact, write_manifest
from ppexport.device.journal import Past
from ppexport.errors import ArtifactError, InputError, PpexportError, UnavailableError
from ppexport.files import sha256_file
from ppexport.profile.statistics import browser_marks, stalled_marks
from ppexport.remote import lan
from ppexport.remote.lan import choose_address, lan_addresses

pytest_plugins = ["adb_fixtures"]
PLAN = {"queries": 12, "seconds": 0.0, "warm_change": 0.02, "warm_windows": 2, "sensor_seconds": 1.0}


@pytest.fixture(autouse=True)
def _no_farewell(monkeypatch):
    """Most of these clients never ask how it ended."""
    monkeypatch.setattr(run_session, "FAREWELL", 0.3)


@pytest.fixture
def folder(tmp_path):
    return write_page(tmp_path / "page")


@pytest.fixture
def session(folder):
    with BrowserSession(read_artifact(folder)) as session:
        yield session


@pytest.fixture
def page(session):
    return FakePage(session.url)


def picture(seed=0, size=(20, 24)):
    return (np.random.default_rng(seed).integers(0, 256, (1, 3, *size)) / 255).astype(np.float32)


class Running(threading.Thread):
    """A call in a thread of its own, and what came of it."""

    def __init__(self, call, *arguments):
        super().__init__(daemon=True)
        self.call, self.arguments, self.result, self.error = call, arguments, None, None
        self.start()

    def run(self):
        try:
            self.result = self.call(*self.arguments)
        except PpexportError as error:
            self.error = error

    def done(self):
        self.join(30)
        assert not self.is_alive()
        return self


def latency(session, past=None, plan=PLAN, write=None):
    """A job of latencies on two pictures; returns the thread and the records that were written."""
    records = []
    images = np.zeros((2, 20, 24, 3), np.uint8)
    return Running(session.latency, images, plan, past or Past(1), write or records.extend), records


def test_only_the_page_s_files_are_served_below_the_token(session, page, folder):
    shown = page.ask("GET", "")
    assert (shown.status, shown.body) == (200, b"<p>measure</p>")
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert shown.headers["content-security-policy"] == f"{POLICY}; frame-ancestors 'none'"
    assert shown.headers["cross-origin-embedder-policy"] == "require-corp"
    assert not [name for name in shown.headers if name.startswith("access-control")]
    assert page.ask("GET", "page.mjs").headers["content-type"] == "text/javascript; charset=utf-8"
    assert page.ask("GET", "manifest.json").json["backend"] == "web"
    (folder.parent / "secret").write_text("x")
    token = urlsplit(session.url).path.strip("/")
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    for path in (
        "/", "/index.html", f"/{token}", f"/{wrong}/", f"/{token}/x", "//", f"/{token}/../secret",
        f"/{token}/%2e%2e/secret", f"/{token}//etc/passwd", f"/{token}/..%2fsecret", "/favicon.ico",
    ):  # fmt: skip
        answer = page.ask("GET", path)
        assert answer.status == 404, path
        assert answer.json == {"error": "there is nothing here"}
    assert page.ask("PUT", "index.html", b"").status == 501
    assert page.ask("POST", "index.html", b"{}").status == 404


def test_a_forged_host_and_a_foreign_page_are_refused(session, page):
    port = urlsplit(session.url).port
    assert page.ask("GET", "", host=f"localhost:{port}").status == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example"):
        assert page.ask("GET", "", host=host).status == 403
    body = json.dumps({"client": "", "facts": FACTS}).encode()
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert page.ask("POST", "begin", body, origin=origin).status == 403
    assert page.begin().status == 200


def test_a_run_is_sent_back_whole(session, page):
    lr = picture()
    run = Running(session.run, lr)
    job = page.open().work()
    body = page.picture(session.artifact, job)
    assert session.facts["model"] == "Phone 9"
    assert session.facts["threads"] == 4
    # A damaged part, one that skips, one that comes twice: the page hears from where to send again.
    halves = body[:1000], body[1000:]
    damaged = page.chunk(job, 0, halves[0][:-1], X_Sha256=sha256(halves[0]).hexdigest())
    assert (damaged.status, damaged.json["next"]) == (400, 0)
    skipped = page.chunk(job, 1, halves[1])
    assert (skipped.status, skipped.json["next"]) == (409, 0)
    assert page.chunk(job, 0, halves[0]).json == {"next": 1}
    repeated = page.chunk(job, 0, halves[0])
    assert (repeated.status, repeated.json["next"]) == (409, 1)
    assert page.chunk(job, 1, halves[1], last=True).json == {"next": 2}
    found = run.done().result
    assert np.array_equal(found.sr[:, :, ::2, ::2], lr)
    assert np.array_equal(found.pure, session.artifact.manifest.pure(lr[0].transpose(1, 2, 0)))
    assert found.impure <= found.capacity
    over = page.chunk(job, 2, b"", last=True)
    assert (over.status, over.json["over"]) == (409, True)


def test_centres_go_with_the_picture(session, page):
    run = Running(session.run, picture(), np.arange(6).reshape(2, 3))
    assert page.open().work()["centres"] == [[0, 1, 2], [3, 4, 5]]
    assert page.post("trouble", message="gone \x1b[31maway").status == 200
    assert str(run.done().error) == "the browser cannot go on: gone away"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda body: body[:-4], "a picture of"),
        (lambda body: body + b"1234", "a picture of"),
        (lambda body: body + bytes(1 << 16), "more than one picture"),
        (lambda body: b"{}\n" + body.partition(b"\n")[2], "without its tokens"),
        (lambda body: b"no JSON\n" + body.partition(b"\n")[2], "without its tokens"),
        (lambda body: body.replace(b'"capacity": ', b'"capacity": 1'), "without its tokens"),
        (lambda body: body.replace(b'"impure": ', b'"impure": -'), "without its tokens"),
        (lambda body: body.replace(b'"impure": ', b'"impure": 1e400, "x": '), "without its tokens"),
        (lambda body: body.replace(b'"pure": "', b'"pure": "AAAA'), "a mask of"),
        (lambda body: body.replace(b'"pure": "', b'"pure": "?'), "a mask of"),
    ],
)
def test_a_result_that_is_none_ends_the_run(session, page, spoil, why):
    run = Running(session.run, picture())
    job = page.open().work()
    refused = page.chunk(job, 0, spoil(page.picture(session.artifact, job)), last=True)
    assert refused.status == 400
    assert isinstance(run.done().error, ArtifactError)
    assert why in str(run.error)


def test_the_second_browser_is_refused_and_an_older_page_hands_over(session, page):
    page.open()
    second = FakePage(session.url)
    assert second.begin().status == 409
    assert "one browser only" in second.begin().json["error"]
    assert second.post("next").status == 409
    run = Running(session.run, picture())
    job = page.work()
    assert second.ask("GET", job["lr"], headers={"X-Client": "x"}).status == 404
    # The page is loaded again in the middle of a job: it gets the job again, and the old page nothing any more.
    newer = FakePage(session.url, page.secret).open()
    assert newer.attempt == 2
    assert "taken over" in page.post("next").json["error"]
    assert page.chunk(job, 0, page.picture(session.artifact, job), last=True).status == 409
    again = newer.work()
    assert again == job
    assert newer.chunk(again, 0, newer.picture(session.artifact, again), last=True).status == 200
    assert run.done().error is None


def test_a_browser_that_comes_back_as_another_one_ends_the_run(session, page):
    page.open()
    run = Running(session.run, picture())
    other = FakePage(session.url, page.secret, engine={"device": "wasm", "threads": 1})
    other.open()
    assert "other threads" in str(run.done().error)


def test_what_is_too_much_is_refused(session, page, monkeypatch):
    page.open()
    assert page.ask("POST", "next", bytes(70_000)).status == 413
    for body in (b"", b"[]", b"{", b'{"a": NaN}', b"[" * 60_000, b"\xff{}"):
        assert page.ask("POST", "next", body).status == 400
    assert page.ask("POST", "next", b"", {"Content-Length": "x"}).status == 411
    # More is announced than sent: the server waits for its time, and meanwhile answers everybody else.
    parts = urlsplit(session.url)
    monkeypatch.setattr(run_server, "HEAD_SECONDS", 0.5)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as slow:
        head = f"POST {parts.path}next HTTP/1.1\r\nHost: {parts.netloc}\r\nOrigin: http://{parts.netloc}\r\n"
        slow.sendall(f"{head}Content-Length: 10\r\n\r\n123".encode())
        assert page.ask("GET", "").status == 200
        begun = time.monotonic()
        assert slow.recv(100) == b""
        assert time.monotonic() - begun < 10
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as long, suppress(ConnectionError):
        long.sendall(b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000)
        assert long.recv(100) == b""
    assert page.ask("GET", "", headers={f"X-{number}": "y" for number in range(200)}).status == 431
    assert page.ask("GET", "").status == 200


def test_too_many_connections_and_too_many_requests_are_closed(session, page, monkeypatch):
    monkeypatch.setattr(run_server, "MAX_FROM_ONE", 3)
    parts = urlsplit(session.url)
    idle = [socket.create_connection((parts.hostname, parts.port), timeout=20) for _ in range(3)]
    time.sleep(0.1)
    with pytest.raises((ConnectionError, OSError)):
        page.ask("GET", "")
    for connection in idle:
        connection.close()
    time.sleep(0.3)
    monkeypatch.setattr(run_server, "RATE", 0.0)
    monkeypatch.setattr(run_server, "BURST", 5.0)
    assert [page.ask("GET", "").status for _ in range(4)] == [200] * 4
    assert page.ask("GET", "").status == 200
    with pytest.raises((ConnectionError, OSError)):
        page.ask("GET", "")


def test_a_latency_run_is_written_down_as_it_comes(session, page):
    run, records = latency(session)
    job = page.open().work()
    assert (job["count"], job["next"], job["past"]["queries"]) == (2, 0, 0)
    assert job["plan"] == PLAN
    Running(measure, page, session.artifact, job)
    assert run.done().error is None
    kinds = [record[0] for record in records]
    assert kinds.count("q") == 12
    assert (kinds[0], kinds[-1]) == ("begin", "end")


def test_a_page_that_is_loaded_again_continues_the_journal(session, page):
    run, records = latency(session)
    job = page.open().work()
    assert measure(page, session.artifact, job, until=5) == {"kind": "gone"}
    newer = FakePage(session.url, page.secret).open()
    again = newer.work()
    assert again["past"]["queries"] == 5
    assert again["past"]["loaded"] is True
    assert again["past"]["end"] > 0
    assert again["next"] == 6
    Running(measure, newer, session.artifact, again)
    assert run.done().error is None
    kinds = [record[0] for record in records]
    assert (kinds.count("q"), kinds.count("load"), kinds.count("begin")) == (12, 1, 2)


QUERY = ["q", 0, 0, 5, 10, 10, 1, 256, 3]


BEGIN, END = ["begin", {"t": 0}], ["end", {"t": 90}]
LOADED = [["load", 0, 3], ["first", 0, 2], ["warm", 0, 16, True]]


def query(number, t=None, ns=10, image=None, cpu=None, host=1):
    t = 10 * number if t is None else t
    return ["q", 0, number % 2 if image is None else image, t, ns, ns if cpu is None else cpu, host, 256, 3]


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([*LOADED, BEGIN, query(0), END], "not begin with its beginning"),
        ([BEGIN, *LOADED, query(0), END], "ends before all was measured"),
        ([BEGIN, query(0), query(1), END], "ends before all was measured"),
        ([BEGIN, *LOADED, query(0), query(1, image=0), END], "out of turn"),
        ([BEGIN, *LOADED, query(0, t=9000), query(1), END], "overlaps"),
        ([BEGIN, *LOADED, query(0, t=9000), ["c", 5, {}], query(1, t=10_000), END], "goes back in time"),
        ([BEGIN, *LOADED, query(0), query(1, host=11), END], "parts are longer"),
        ([BEGIN, *LOADED, query(0), query(1, cpu=0), END], "parts are longer"),
        ([BEGIN, *LOADED, query(0), query(1, ns=5 * 10**9), END], "its clock is wrong"),
        ([BEGIN, *LOADED, query(0, ns=(1 << 62) - 1), query(1, t=(1 << 62) - 1), END], "its clock is wrong"),
    ],
)
def test_a_journal_of_another_measurement_than_was_asked_for_ends_the_run(session, page, records, why):
    run, written = latency(session, plan={**PLAN, "queries": 2})
    job = page.open().work()
    assert page.chunk(job, 0, lines(*records), last=True).status == 400
    assert isinstance(run.done().error, InputError)
    assert why in str(run.error)
    assert written == []


def test_a_journal_of_what_was_asked_for_is_taken(session, page):
    run, written = latency(session, plan={**PLAN, "queries": 2})
    job = page.open().work()
    # A coarse clock may see no time pass.
    records = [BEGIN, *LOADED, query(0, t=5, ns=1), query(1, t=5, ns=1), END]
    assert page.chunk(job, 0, lines(*records), last=True).status == 200
    assert run.done().error is None
    assert written == records


@pytest.mark.parametrize(
    "body",
    [
        b'["q",0,0,5,10,10,1,256,3]',
        lines(QUERY)[:-1] + b" garbage\n",
        b'["q",0,0,5,NaN,10,1,256,3]\n',
        b'["q",0,0,5,-10,10,1,256,3]\n',
        b'["q",0,0,5,1e9,10,1,256,3]\n',
        b'["q",3,0,5,10,10,1,256,3]\n',
        b'["q",0,0,5,10,10,1,256,3,4]\n',
        b'["q",0,0,5,4611686018427387904,10,1,256,3]\n',
        b'["c",5,{"x":Infinity}]\n',
        b'["rm","-rf"]\n',
        b'{"q":1}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        lines(["end", {"t": 5}]),
        lines(["end", {"t": 5}], QUERY),
    ],
)
def test_a_journal_with_anything_else_in_it_ends_the_run(session, page, body):
    run, records = latency(session)
    job = page.open().work()
    assert page.chunk(job, 0, lines(["begin", {"t": 0}])).status == 200
    assert page.chunk(job, 1, body).status == 400
    assert isinstance(run.done().error, InputError)
    assert records == [["begin", {"t": 0}]]


def test_the_page_hears_the_end(folder, monkeypatch):
    monkeypatch.setattr(run_session, "FAREWELL", 20.0)
    with BrowserSession(read_artifact(folder)) as session:
        serving = Serving(session.url, folder)
        serving.start()
        assert session.wait_for_client(20)["user_agent"] == "Fake/1.0 (Phone)"
        assert session.run(picture()).sr.shape == (1, 3, 40, 48)
    serving.join(10)
    assert serving.told["kind"] == "done"
    with pytest.raises(ConnectionError):
        FakePage(session.url).ask("GET", "")


def test_the_page_hears_the_end_though_its_answer_takes_a_while(folder, monkeypatch):
    send = run_server.Handler.send_reply

    def late(handler, reply):
        if b'"done"' in reply.body:
            time.sleep(0.4)
        send(handler, reply)

    monkeypatch.setattr(run_server.Handler, "send_reply", late)
    monkeypatch.setattr(run_session, "FAREWELL", 20.0)
    with BrowserSession(read_artifact(folder)) as session:
        asking = Running(FakePage(session.url).open().work)
    assert asking.done().result["kind"] == "done"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(InputError("no\x1b[0m"), "no"), (KeyboardInterrupt(), "The computer ended the measurement")],
)
def test_the_page_hears_of_a_failure_and_of_an_interruption(folder, error, sentence, monkeypatch):
    monkeypatch.setattr(run_session, "FAREWELL", 20.0)
    asking = []

    def fail():
        with BrowserSession(read_artifact(folder)) as session:
            page = FakePage(session.url).open()
            asking.append(Running(page.work))
            raise error

    with pytest.raises(type(error)):
        fail()
    told = asking[0].done().result
    assert told["kind"] == "failed"
    assert told["message"].startswith(sentence)


def test_a_browser_that_vanishes_is_given_up(folder):
    said = []
    with BrowserSession(read_artifact(folder), silence=0.6, notice=said.append) as session:
        with pytest.raises(UnavailableError, match="no browser opens the model within 0 s"):
            session.wait_for_client(0.3)
        FakePage(session.url).open()
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match="silent .* the same command continues"):
            session.run(picture())
        assert time.monotonic() - begun < 5
        session.alive = lambda: "the browser of this machine ended"
        with pytest.raises(UnavailableError, match="of this machine ended"):
            session.run(picture())


def test_a_browser_that_computes_elsewhere_than_asked_ends_the_run(folder):
    with BrowserSession(read_artifact(folder), "webgpu", 2) as session:
        page = FakePage(session.url)
        assert {"device": "webgpu", "threads": 2}.items() <= page.begin().json.items()
        assert page.post("facts", engine={"device": "abacus"}).status == 400
        page.post("facts", engine=page.engine)
        with pytest.raises(UnavailableError, match="computes on wasm, not on webgpu"):
            session.wait_for_client(5)


def test_what_a_browser_says_of_itself_is_made_harmless(folder):
    with BrowserSession(read_artifact(folder)) as session:
        facts = {
            "userAgent": "A\x1b]0;title\x07" + "b" * 5000,
            "brands": [{"brand": "Not(A:Brand", "version": "8"}, 5, "C 1"],
            "platform": ["x"], "model": {"a": 1}, "mobile": "yes", "cores": -1, "memoryGB": 1e300, "secure": 1,
            "timerStepMs": "x", "more": "x",
        }  # fmt: skip
        adapter = {"vendor": "v\x00", "fallback": True, "limits": [1] * 100}
        engine = {"device": "wasm", "threads": 1.5, "adapter": adapter, "ort": 3}
        FakePage(session.url, facts=facts, engine=engine).open()
        found = session.wait_for_client(5)
        assert len(found["user_agent"]) == 300
        assert found["user_agent"].startswith("Ab")
        assert found["brands"] == ["C 1"]
        assert (found["platform"], found["model"], found["cores"], found["memory_gb"]) == ("", "", None, None)
        assert (found["mobile"], found["secure"], found["timer_step_ms"], found["threads"]) == (False, False, None, 1)
        assert found["adapter"]["vendor"] == "v"
        assert found["adapter"]["fallback"] is True
        assert "more" not in found


def test_what_a_browser_says_is_one_line_that_can_be_written(folder):
    with BrowserSession(read_artifact(folder)) as session:
        facts = {**FACTS, "model": "Phone\nERROR: everything\r\n\tis lost", "platform": "And\ud800roid"}
        FakePage(session.url, facts=facts).open()
        found = session.wait_for_client(5)
        assert (found["model"], found["platform"]) == ("Phone ERROR: everything is lost", "And?roid")


def test_a_page_without_a_secret_path_is_for_this_machine_only(folder):
    artifact = read_artifact(folder)
    with pytest.raises(InputError, match="on this machine only"):
        Server(PageFiles(artifact, "index.html"), "", "0.0.0.0")
    server = Server(PageFiles(artifact, "index.html"), "")
    try:
        page = FakePage(server.url)
        assert page.ask("GET", "/").body == b"<p>index</p>"
        assert page.ask("GET", "/measure.html").status == 200
        assert page.ask("GET", "/../secret").status == 404
        assert page.ask("POST", "/begin", b"{}").status == 404
        assert page.ask("GET", "/", host="evil.example").status == 403
        # A file that is changed under the server is not served.
        (folder / "page.mjs").write_text("evil")
        assert page.ask("GET", "/page.mjs").status == 500
        with pytest.raises(InputError, match="nothing can listen"):
            Server(PageFiles(artifact, "index.html"), "x", "127.0.0.1", server.port)
    finally:
        server.close()
    with pytest.raises(ArtifactError, match="--backend web"):
        PageFiles(artifact, "other.html")


def test_a_page_whose_model_names_other_files_is_not_served(tmp_path):
    named = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    named.ClearField("float_data")
    named.data_location = TensorProto.EXTERNAL
    named.external_data.add(key="location", value="secret")
    graph = helper.make_graph([], "g", [], [], [named])
    folder = write_page(tmp_path / "page")
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    manifest = read_artifact(write_page(tmp_path / "other")).manifest
    files = {**manifest.files, "model.onnx": sha256_file(folder / "model.onnx")}
    write_manifest(folder, replace(manifest, files=files))
    with pytest.raises(ArtifactError, match="kept in another file"):
        BrowserSession(read_artifact(folder))
    assert "kept in another file" in str(CliRunner().invoke(app, ["serve", str(folder)]).exception)


# What people see, and how a browser gets the address.


@pytest.mark.parametrize(
    ("agent", "brands", "name"),
    [
        ("", [{"brand": "Chromium", "version": "156"}, {"brand": "Google Chrome", "version": "156"}], "Chrome 156"),
        ("", [{"brand": "Chromium", "version": "156"}], "Chromium 156"),
        ("Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0", None, "Firefox 140"),
        ("Mozilla/5.0 (iPhone) AppleWebKit/605.1.15 Version/19.1 Mobile/15E148 Safari/604.1", [], "Safari 19"),
        ("Mozilla/5.0 (iPhone) CriOS/150.0.0.0 Mobile/15E148 Safari/604.1", [], "Chrome 150"),
        ("Mozilla/5.0 (Linux; Android 10; K) Chrome/142.0.0.0 Mobile Safari/537.36", [], "Chrome 142"),
        ("Mozilla/5.0 (Linux; Android 10; K) Chrome/142.0.0.0 Mobile Safari/537.36 EdgA/142.0.0.0", [], "Edge 142"),
        ("Mozilla/5.0 (Linux) SamsungBrowser/29.0 Chrome/136.0.0.0 Mobile Safari/537.36", [], "Samsung Internet 29"),
        ("curl", [], "an unknown browser"),
    ],
)
def test_browsers_are_called_as_people_call_them(agent, brands, name):
    assert browser_name(browser_facts({"userAgent": agent, "brands": brands})) == name


def marks(engine=None, facts=None, sensors=None, threads=None):
    browser = {**browser_facts({**FACTS, **(facts or {})}), **engine_facts({**ENGINE, **(engine or {})})}
    return {mark["kind"]: mark["text"] for mark in browser_marks(browser, sensors or {}, subject(threads=threads))}


def test_what_disturbs_a_run_in_a_browser_leaves_a_mark():
    assert marks() == {}
    assert marks(threads=4) == {}
    assert marks(engine={"threads": 1}) == {"threads": "the browser computed in 1 thread of 8 cores"}
    assert marks(threads=8)["threads"] == "the browser computed in 4 threads of 8 that were asked for"
    assert marks(engine={"threads": 1}, threads=1) == {}
    assert marks(facts={"timerStepMs": 0.1})["timer"] == "the browser's clock moves in steps of 0.1 ms"
    assert "plain http" in marks(facts={"secure": False})["insecure"]
    adapter = {"vendor": "google", "architecture": "swiftshader", "fallback": True}
    assert "(google swiftshader)" in marks(engine={"device": "webgpu", "adapter": adapter, "threads": 1})["fallback"]
    found = marks(sensors={"page.hidden": [0, 1, None, 1], "longest.gap.ms": [3.0, 2500.0]})
    assert "at 2 of 4 readings" in found["hidden"]
    assert "up to 2.5 s" in found["gap"]
    ns = np.full(50, 10_000_000)
    assert not list(stalled_marks("x", {"ns": ns}))
    ns[7] = 4_000_000_000
    (stalled,) = stalled_marks("x", {"ns": ns})
    assert stalled["text"] == "x: 1 query took over 10 times the median, up to 4.0 s"


def test_the_address_for_the_local_network_is_one_of_this_machine(monkeypatch):
    known = lan_addresses()
    assert all(not address.startswith("127.") for address in known)
    monkeypatch.setattr(lan, "lan_addresses", lambda: ["192.168.1.5", "10.0.0.2"])
    assert choose_address(None) == ("192.168.1.5", ["10.0.0.2"])
    assert choose_address("10.0.0.2") == ("10.0.0.2", ["192.168.1.5"])
    for named in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "host", "10.0.0"):
        with pytest.raises(InputError, match="address of this machine"):
            choose_address(named)
    monkeypatch.setattr(lan, "lan_addresses", list)
    with pytest.raises(UnavailableError, match="no address in a local network"):
        choose_address(None)


def test_a_terminal_gets_a_qr_code_and_what_is_exposed(monkeypatch, capsys):
    show_address("http://127.0.0.1:1/x/", "to measure", lan=False)
    assert (
        capsys.readouterr().err == "open this address in a browser of this machine to measure: http://127.0.0.1:1/x/\n"
    )
    show_address("http://192.168.1.5:1/x/", "to measure", lan=True)
    said = capsys.readouterr().err
    assert "everybody in this network who has the address" in said
    assert said.count("\n") == 2
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    show_address("http://192.168.1.5:1/x/", "to measure", lan=True)
    assert capsys.readouterr().err.count("\n") > 12
    monkeypatch.setattr(cli_browser, "find_spec", lambda name: None)
    show_address("http://192.168.1.5:1/x/", "to measure", lan=True)
    assert "segno, which draws the address as a QR code, is not installed" in capsys.readouterr().err


def test_serve_hosts_a_page_until_it_is_interrupted(folder):
    code = "from ppexport.cli import run; run()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(folder), "--json", str(folder.parent / "url.json")],
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        line = command.stderr.readline()
        url = line.rpartition(" ")[2].strip()
        assert url.startswith("http://127.0.0.1:")
        assert json.loads((folder.parent / "url.json").read_text()) == {"url": url}
        page = FakePage(url)
        shown = page.ask("GET", "/")
        assert (shown.status, shown.body) == (200, b"<p>index</p>")
        assert shown.headers["cross-origin-opener-policy"] == "same-origin"
        command.send_signal(signal.SIGINT)
        assert command.wait(20) == 0
    done = CliRunner().invoke(app, ["serve", str(folder), "--lan-address", "10.0.0.1"])
    assert "--lan-address is for --lan" in str(done.exception)
    (folder / "index.html").unlink()
    assert isinstance(CliRunner().invoke(app, ["serve", str(folder)]).exception, ArtifactError)


def test_a_phone_behind_adb_opens_the_page_as_its_own(folder, phone, monkeypatch):
    am = phone / "phone-bin" / "am"
    am.write_text(f'#!/bin/sh\nfor url; do :; done; echo "$url" > {phone}/url\n')
    am.chmod(0o755)

    def browse():
        while not (phone / "url").exists() or not (phone / "url").read_text():
            time.sleep(0.02)
        Serving((phone / "url").read_text().strip(), folder).run()

    threading.Thread(target=browse, daemon=True).start()
    with Connection(adb="SERIAL1").session(read_artifact(folder), "wasm", None) as session:
        assert session.facts["model"] == "Phone 9"
        assert session.run(picture()).capacity
    arguments = (phone / "arguments").read_text()
    assert f"tcp:{session.port}\ntcp:{session.port}\n" in arguments
    assert arguments.endswith(f"--remove\ntcp:{session.port}\n")
