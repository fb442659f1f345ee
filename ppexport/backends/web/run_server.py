"""A small HTTP server for a page and for a browser that measures: one list of files, one secret path, strict limits.

Standard library only. Nobody is trusted who connects:

* Everything lies below one path, a random token, which is compared in constant time; anything else is "not found". A
  server without a token is for this machine alone, and listens on the loopback address.
* `Host` must be the address that was printed, so that another site's name cannot be pointed here, and what is posted
  must come from the page itself (`Origin`). No other site may read or embed anything: there are no CORS headers.
* A connection carries one request. How many there are, how often they come, how large they are and how long they take
  is limited, for all and for every address, so that a slow or a mad client is a closed connection and nothing else.
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, Callable, Optional

from ppexport.backends.web.run_files import NOT_FOUND, PageFiles, Reply, Request, refuse
from ppexport.errors import InputError

LOGGER = logging.getLogger("ppexport")
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'"
)
"""What a page of ours may load and where it may send: this server and nothing else. The pages hold it as well."""
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    # Together these isolate the page, without which a browser gives it one thread and a coarse clock.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Connection": "close",
}
MAX_HEAD = 1 << 15
"""Bytes of a request line and its headers."""
MAX_CONNECTIONS, MAX_FROM_ONE = 64, 24
"""Connections at a time, of all and of one address; a browser opens about six."""
RATE, BURST = 40.0, 200.0
"""Requests a second of one address, and how many may come at once; a page has about twenty files."""
MAX_ADDRESSES = 1024
"""Addresses whose rate is remembered."""
HEAD_SECONDS = 10.0
BYTES_PER_SECOND = 50_000
"""A body may come and go as slowly as this."""
GRACE = 1.0
"""Seconds that answers which are under way have at the end of a server."""
LOOPBACK = "127.0.0.1"


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves the files of a page and, below the same path, what `answer` knows; runs in threads until `close`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    # Under Windows the option would let another program take the port over.
    allow_reuse_address = os.name == "posix"

    def __init__(
        self,
        files: PageFiles,
        token: str,
        address: str = LOOPBACK,
        port: int = 0,
        posts: Optional[Mapping[str, int]] = None,
        answer: Optional[Callable[[Request], Reply]] = None,
    ) -> None:
        """Listen on *address*, an IPv4 address of this machine.

        Args:
            files: what is served.
            token: the secret part of the path; "" for none, on the loopback address only.
            address: where to listen.
            port: where to listen; 0 takes a free one.
            posts: {name: most bytes of the body} of what may be posted.
            answer: answers what is posted, and what is asked for and is no file.

        Raises:
            InputError: nothing can listen there.
        """
        if not token and address != LOOPBACK:
            raise InputError("a page without a secret path is served on this machine only")
        self.files, self.posts, self.answer = files, posts or {}, answer
        self._token = token
        self._deadlines: dict[socket.socket, float] = {}
        self._from: Counter[str] = Counter()
        self._credit: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._answering: set[Handler] = set()
        try:
            super().__init__((address, port), Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"nothing can listen on {address}:{port} ({getattr(error, 'strerror', None) or error}): name another "
                "port, or an address of this machine"
            ) from None
        self.port = int(self.server_address[1])
        names = (address, "localhost") if address == LOOPBACK else (address,)
        suffixes = (f":{self.port}", "") if self.port == 80 else (f":{self.port}",)
        self.hosts = frozenset(name + suffix for name in names for suffix in suffixes)
        self.url = f"http://{address}:{self.port}/{token}/" if token else f"http://{address}:{self.port}/"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, let answers that are under way arrive, and cut whatever is still connected."""
        self.shutdown()
        self.server_close()
        deadline = time.monotonic() + GRACE
        while self._answering and time.monotonic() < deadline:
            time.sleep(0.01)
        with self._lock:
            for connection in self._deadlines:
                _cut(connection)

    def is_below(self, path: str) -> Optional[str]:
        """What *path* names below the token, None where the token is not there; compared in constant time."""
        if not self._token:
            return path[1:] if path.startswith("/") else None
        given, slash, name = path[1:].partition("/")
        equal = hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode("ascii"))
        return name if equal and slash and path.startswith("/") else None

    def allow(self, connection: socket.socket, seconds: float) -> None:
        """Let *connection* live for another number of *seconds*, from now on."""
        with self._lock:
            if connection in self._deadlines:
                self._deadlines[connection] = time.monotonic() + seconds

    @contextmanager
    def answering(self, handler: Handler) -> Iterator[None]:
        """The time from a request that *handler* has read to its answer, for which `close` waits."""
        self._answering.add(handler)
        try:
            yield
        finally:
            self._answering.discard(handler)

    # What socketserver calls.

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection is taken: neither too many are open, nor did too many come."""
        host, now = str(client_address[0]), time.monotonic()
        with self._lock:
            if len(self._credit) > MAX_ADDRESSES:
                self._credit.clear()
            credit, then = self._credit.get(host, (BURST, now))
            credit = min(BURST, credit + RATE * (now - then))
            taken = credit >= 1 and len(self._deadlines) < MAX_CONNECTIONS and self._from[host] < MAX_FROM_ONE
            self._credit[host] = (credit - 1 if taken else credit, now)
            if taken:
                self._deadlines[request] = now + HEAD_SECONDS
                self._from[host] += 1
        return taken

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, in its own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            host = str(client_address[0])
            with self._lock:
                self._deadlines.pop(request, None)
                self._from[host] -= 1
                if not self._from[host]:
                    del self._from[host]

    def service_actions(self) -> None:
        """Cut the connections whose time is up; called several times a second."""
        now = time.monotonic()
        with self._lock:
            for connection, deadline in self._deadlines.items():
                if now > deadline:
                    _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or a request that no program of ours sends: of interest to developers only."""
        LOGGER.debug("a request of %s failed", client_address, exc_info=True)


def _cut(connection: socket.socket) -> None:
    """Wake whoever waits for *connection*, with an error; its own thread closes it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Head:
    """A stream whose lines may not have more than `MAX_HEAD` bytes together."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._left = inner, MAX_HEAD

    def readline(self, limit: int = -1) -> bytes:
        """The next line."""
        line: bytes = self._inner.readline(min(self._left + 1, limit if limit >= 0 else MAX_HEAD))
        self._left -= len(line)
        if self._left < 0:
            raise ConnectionAbortedError("the headers are too long")
        return line


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def handle(self) -> None:
        """Read the request, check it, answer it."""
        self._body = body = self.rfile
        self.rfile = _Head(body)  # type: ignore[assignment]
        self.handle_one_request()
        # A client that still sends would lose the answer when its connection is reset.
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.server.allow(self.connection, 2.0)
            while body.read1(1 << 16):
                pass

    def do_GET(self) -> None:
        """Answer a request for a file, or for what only this run has."""
        self._answer()

    def do_POST(self) -> None:
        """Answer what is posted."""
        self._answer()

    def _answer(self) -> None:
        with self.server.answering(self):
            self.send_reply(self._checked())

    def _checked(self) -> Reply:
        """The answer, after everything that can be checked without knowing what is asked for."""
        server, headers = self.server, {name.lower(): value for name, value in self.headers.items()}
        name = server.is_below(self.path.partition("?")[0])
        if name is None:
            return NOT_FOUND
        host = headers.get("host", "")
        if host not in server.hosts:
            return refuse(403, "this address is not the one that was printed: type it as it was printed")
        if self.command == "GET":
            found = server.files.get(name)
            if found is not None:
                return found
            if server.answer is None:
                return NOT_FOUND
            return server.answer(Request("GET", name, headers, b"", self._stay))
        limit = server.posts.get(name)
        if limit is None or server.answer is None:
            return NOT_FOUND
        if headers.get("origin") != f"http://{host}":
            return refuse(403, "only the page itself may send something here")
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or not (length.isascii() and length.isdigit() and len(length) < 12):
            return refuse(411, "what is sent needs its length")
        if int(length) > limit:
            return refuse(413, f"no more than {limit} bytes may be sent here")
        self._stay(int(length) / BYTES_PER_SECOND)
        body = self._body.read(int(length))
        if len(body) != int(length):
            raise ConnectionAbortedError("less was sent than was announced")
        return server.answer(Request("POST", name, headers, body, self._stay))

    def _stay(self, seconds: float) -> None:
        self.server.allow(self.connection, HEAD_SECONDS + seconds)

    def send_reply(self, reply: Reply) -> None:
        """Send *reply* with the headers that everything has."""
        self._stay(len(reply.body) / BYTES_PER_SECOND)
        self.close_connection = True
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.kind, "Content-Length": str(len(reply.body)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def send_error(self, code: int, message: Optional[str] = None, explain: Optional[str] = None) -> None:
        """Answer a request that is none, or has a method that nobody needs."""
        self.send_reply(refuse(code, "this server does not understand the request"))

    def version_string(self) -> str:
        """What the header `Server` says: no versions."""
        return "ppexport"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: an address holds the token."""
