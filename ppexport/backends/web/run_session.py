"""A browser that is connected: the server's side of the protocol, and what a program here can ask it to do.

A program calls `run` and `latency`, which block; the page asks for work and sends results, in the server's threads. One
lock guards what both see. Standard library and NumPy only. Below the token's path:

    POST begin    {"client": "" or the secret of an earlier answer, "facts"} -> {"client", "attempt", "device",
                  "threads"}: the first client is bound, every other one refused. The same client may come again, after
                  its page was loaded anew: its requests of earlier attempts are refused from then on.
    POST facts    {"client", "attempt", "engine"}: what computes, once it is open
    POST next     {"client", "attempt"} -> {"kind": "wait"}, "done" or "failed" with a "message", or a job:
                  {"kind": "run", "id", "lr": NAME, "centres": [[r, g, b], ...] where there are any}
                  {"kind": "latency", "id", "images": NAME, "count", "plan", "past", "next": number of a chunk}
    GET  NAME     the input of a job, for X-Client: float32 (1, 3, h, w), or uint8 (count, h, w, 3)
    POST chunk    a part of a result, with X-Client, X-Attempt, X-Job, X-Number (0, 1, ...), X-Last (0, 1) and X-Sha256
                  -> {"next": number}; a wrong hash or number: an error with "next", from which the client sends again.
                  Of a run: a JSON line {"impure", "capacity", "ms", "pure"}, then the picture in float32. Of latencies:
                  whole lines of a journal (`ppexport.device.journal`).
    POST trouble  {"client", "attempt", "message"}: the page cannot go on

Numbers are little-endian. Everything that comes is checked: types, ranges, lengths, hashes; texts are made printable.
"""

from __future__ import annotations

import hmac
import re
import secrets
import threading
import time
from collections.abc import Mapping
from hashlib import sha256
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np

from ppexport.backends.web.run_client import TAKEN_OVER, Client
from ppexport.backends.web.run_files import PageFiles, Reply, Request, refuse, reply_json
from ppexport.backends.web.run_server import LOOPBACK, Server
from ppexport.backends.web.run_work import (
    BrowserResult,
    LatencyWork,
    Refused,
    RunWork,
    Work,
    parse_json,
    plain_text,
)
from ppexport.device.artifact import Artifact
from ppexport.device.journal import Past
from ppexport.errors import PpexportError, UnavailableError, printable

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no numpy.typing.
    from numpy.typing import NDArray

    from ppexport.backends.web.run_work import Records

CLIENT = "measure.html"
"""The page that asks for work."""
POLL_SECONDS = 20.0
MAX_JSON, MAX_CHUNK = 1 << 16, 4 << 20
MOST_DAMAGED = 50
"""Chunks in a row that arrive damaged before a run is given up."""
SILENCE = 600.0
"""Seconds without a word from a browser that is computing: phones lock their screens."""
FAREWELL = 5.0
"""Seconds to wait, at the end, until the page has been told."""
NOTICED = 20.0
"""Seconds without a word after which people should look at the phone; a page asks or sends more often."""


class BrowserSession:
    """A page of an artifact on a server of its own, and the browser that opens it. A context manager.

    Attributes:
        url: what to open.
        facts: what the browser says of itself and of what computes in it, once it is connected.
        here: whether the browser is known to run on this machine.
        alive: returns why nothing can come any more, such as a browser that was started here and ended; else None.
        notice: receives sentences for people.
    """

    def __init__(
        self,
        artifact: Artifact,
        device: str = "wasm",
        threads: Optional[int] = None,
        address: str = LOOPBACK,
        port: int = 0,
        silence: float = SILENCE,
        notice: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Serve the page of *artifact*.

        Args:
            artifact: made with a page.
            device: "wasm" or "webgpu", or "auto" for what the page finds best.
            threads: of the runtime; None lets the page choose.
            address: where to listen, an IPv4 address of this machine.
            port: where to listen; 0 takes a free one.
            silence: seconds without a word from a browser that is computing, after which it is given up.
            notice: see above.

        Raises:
            ArtifactError: the artifact has no page.
            InputError: nothing can listen there.
        """
        self.artifact, self.notice = artifact, notice
        self.facts: dict[str, Any] = {}
        self.alive: Callable[[], Optional[str]] = lambda: None
        self.here = False
        self._silence = silence
        self._changed = threading.Condition()
        self._client = Client(device, threads or 0)
        self._numbers = 0
        self._work: Optional[Work] = None
        self._trouble: Optional[PpexportError] = None
        self._ended: Optional[dict[str, str]] = None
        self._told = False
        posts = {**dict.fromkeys(("begin", "facts", "next", "trouble"), MAX_JSON), "chunk": MAX_CHUNK}
        files = PageFiles(artifact, CLIENT)
        self._server = Server(files, secrets.token_urlsafe(18), address, port, posts, self._answer)
        self.url, self.port = self._server.url, self._server.port

    # What a program here calls.

    def wait_for_client(self, timeout: Optional[float] = None) -> dict[str, Any]:
        """Wait until a browser has opened the model; returns its facts.

        Raises UnavailableError where none comes within *timeout* seconds, or it cannot go on.
        """
        self._wait(lambda: bool(self.facts), "opens the model", timeout)
        return self.facts

    def run(self, lr: NDArray[np.float32], centres: Optional[Any] = None) -> BrowserResult:
        """Super-resolve float32 (1, 3, h, w) in the browser; *centres* (K, 3) are those of adaptive colours.

        Raises UnavailableError where the browser is gone or cannot go on, ArtifactError for a result that is none.
        """
        chosen = None if centres is None else [[int(level) for level in centre] for centre in centres]
        data = np.ascontiguousarray(lr, "<f4").tobytes()
        work = RunWork(self._number(), data, chosen, self.artifact.manifest)
        self._do(work)
        return work.result

    def latency(
        self,
        images: NDArray[np.uint8],
        plan: Mapping[str, Any],
        past: Past,
        write: Records,
        progress: Callable[[int, int], object] = lambda done, wanted: None,
    ) -> None:
        """Measure latencies in the browser.

        Args:
            images: (count, h, w, 3), over which queries cycle.
            plan: the fields of `ppexport.device.measure.Plan`.
            past: what the journal holds already.
            write: see `Records`; called in another thread, one call at a time.
            progress: receives (queries so far, queries at least), likewise.

        Raises:
            PpexportError, OSError: what *write* raised.
            UnavailableError: the browser is gone or cannot go on.
            JournalError: it sent what no journal of ours holds.
        """
        self._do(LatencyWork(self._number(), images, plan, past, write, progress))

    def finish(self, message: str, failed: bool = False) -> None:
        """Tell the page *message*, for people, and that there is no more work; only the first call counts."""
        with self._changed:
            if self._ended is None:
                self._ended = {"kind": "failed" if failed else "done", "message": printable(message)}
                self._changed.notify_all()

    def close(self) -> None:
        """Wait a moment until the page has heard the end, and stop the server."""
        self.finish("The measurement is complete. You can close this page.")
        deadline = time.monotonic() + FAREWELL
        try:
            with self._changed:
                listening = self._client.bound and time.monotonic() - self._client.heard < NOTICED
                while listening and not self._told and time.monotonic() < deadline and self.alive() is None:
                    self._changed.wait(0.1)
        finally:
            self._server.close()

    def __enter__(self) -> BrowserSession:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if isinstance(error, (PpexportError, OSError)):
            self.finish(str(error), failed=True)
        elif error is not None:
            again = "The same command continues it, and shows a new address."
            self.finish(f"The computer ended the measurement. {again}", failed=True)
        self.close()

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _do(self, work: Work) -> None:
        """Have the page do *work*. Raises PpexportError, and OSError of a journal that cannot be written."""
        with self._changed:
            self._work = work
            self._changed.notify_all()
        try:
            self._wait(lambda: work.done or work.error is not None, "computes", None)
            if work.error is not None:
                raise work.error
        finally:
            with self._changed:
                self._work = None

    def _wait(self, ready: Callable[[], bool], what: str, timeout: Optional[float]) -> None:
        """Wait until *ready*. Raises UnavailableError where that cannot be, or takes more than *timeout* seconds."""
        begun, noticed = time.monotonic(), False
        with self._changed:
            while not ready():
                if self._trouble is not None:
                    raise self._trouble
                ended = self.alive()
                if ended is not None:
                    raise UnavailableError(ended)
                now = time.monotonic()
                if timeout is not None and now - begun > timeout:
                    raise UnavailableError(f"no browser {what} within {timeout:.0f} s")
                silent = now - max(self._client.heard, begun) if self._client.bound else 0.0
                if silent > self._silence:
                    raise UnavailableError(
                        f"the browser was silent for {silent:.0f} s, so it was given up: what was measured is kept, "
                        "the same command continues"
                    )
                if silent > 3 * NOTICED and not noticed and not self.here:
                    noticed = True
                    self.notice(
                        f"the browser has been silent for {silent:.0f} s: keep its page open and in front, and the "
                        "screen on"
                    )
                # Short, so that Ctrl-C and a browser that ended are noticed everywhere.
                self._changed.wait(0.25)

    # What the page calls, in the server's threads.

    def _answer(self, request: Request) -> Reply:
        try:
            if request.method == "GET":
                return self._input(request)
            with self._changed:
                if request.name == "chunk":
                    return self._chunk(request)
                data = parse_json(request.body)
                if request.name == "begin":
                    return self._begin(data)
                self._client.check(data.get("client"), data.get("attempt"))
                if request.name == "facts":
                    return self._open(data)
                if request.name == "trouble":
                    said = plain_text(data.get("message")) or "it gave no reason"
                    self._fail(UnavailableError(f"the browser cannot go on: {said}"))
                    return reply_json({})
                request.stay(POLL_SECONDS)
                return self._next()
        except Refused as refused:
            return refused.reply

    def _fail(self, error: PpexportError) -> None:
        self._trouble = self._trouble or error
        self._changed.notify_all()

    def _begin(self, data: Mapping[str, Any]) -> Reply:
        told = self._client.begin(data)
        if self._client.attempt > 1:
            self.notice("the browser's page was loaded again")
        # An earlier page waits for work in vain.
        self._changed.notify_all()
        return reply_json(told)

    def _open(self, data: Mapping[str, Any]) -> Reply:
        try:
            self._client.open(data.get("engine"))
        except UnavailableError as error:
            self._fail(error)
        self.facts = self._client.facts
        self._changed.notify_all()
        return reply_json({})

    def _next(self) -> Reply:
        """Work, or the end; waits a while for either."""
        attempt, deadline = self._client.attempt, time.monotonic() + POLL_SECONDS
        if self._client.opened != attempt:
            raise Refused(409, "say first what computes")
        while True:
            if attempt != self._client.attempt:
                raise Refused(409, TAKEN_OVER)
            if self._ended is not None:
                self._told = True
                self._changed.notify_all()
                return reply_json(self._ended)
            work = self._work
            if work is not None and not work.done and work.error is None:
                return reply_json(work.message())
            left = deadline - time.monotonic()
            if left <= 0:
                return reply_json({"kind": "wait"})
            self._changed.wait(left)

    def _input(self, request: Request) -> Reply:
        with self._changed:
            work = self._work
            if not self._client.is_it(request.headers.get("x-client")) or work is None or request.name != work.input:
                return refuse(404, "there is nothing here")
            self._client.heard = time.monotonic()
            return Reply(200, work.data)

    def _chunk(self, request: Request) -> Reply:
        found = {name: request.headers.get(f"x-{name}", "") for name in ("attempt", "job", "number")}
        digits = all(re.fullmatch("[0-9]{1,9}", value) for value in found.values())
        last, digest = request.headers.get("x-last"), request.headers.get("x-sha256", "")
        if not digits or last not in ("0", "1") or not re.fullmatch("[0-9a-f]{64}", digest):
            raise Refused(400, "the headers of a chunk are not complete")
        attempt, job, number = (int(found[name]) for name in ("attempt", "job", "number"))
        self._client.check(request.headers.get("x-client"), attempt)
        work = self._work
        if work is None or work.id != job or work.done or work.error is not None:
            raise Refused(409, "this job is over", next=0, over=True)
        if number != work.next:
            raise Refused(409, f"chunk {work.next} is expected, not {number}", next=work.next)
        if not hmac.compare_digest(sha256(request.body).hexdigest(), digest):
            work.damaged += 1
            if work.damaged > MOST_DAMAGED:
                work.error = UnavailableError("what the browser sends arrives damaged again and again")
                self._changed.notify_all()
            raise Refused(400, "the chunk arrived damaged", next=work.next)
        try:
            work.received += len(request.body)
            work.take(request.body, last == "1")
        except Exception as error:  # whatever it is, somebody waits for it
            work.error = error
            raise Refused(400, printable(str(error)), next=work.next) from None
        finally:
            self._changed.notify_all()
        work.damaged = 0
        work.next += 1
        return reply_json({"next": work.next})
