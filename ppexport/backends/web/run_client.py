"""Which browser a session is bound to: the first that comes, by a secret of its own, in the newest page that it opened.

Standard library only.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Mapping
from typing import Any

from ppexport.backends.web.run_work import Refused, browser_facts, engine_facts
from ppexport.errors import UnavailableError

TAKEN_OVER = "this measurement was taken over by a newer page of this browser"


class Client:
    """One browser, or none yet.

    Attributes:
        bound: whether a browser has come.
        attempt: how many pages it has opened; only the newest one counts.
        opened: the newest attempt in which the model was opened.
        facts: what the browser says of itself and of what computes in it, once it has opened the model.
        heard: when it was heard of, in seconds of `time.monotonic`.
    """

    def __init__(self, device: str, threads: int) -> None:
        """*device* and *threads* are what it is to compute with, "auto" and 0 for what it finds best."""
        self._device, self._threads = device, threads
        self._secret = ""
        self._says: dict[str, Any] = {}
        self.attempt = self.opened = 0
        self.facts: dict[str, Any] = {}
        self.heard = time.monotonic()

    @property
    def bound(self) -> bool:
        """See above."""
        return bool(self._secret)

    def is_it(self, secret: object) -> bool:
        """Whether *secret* is that of the bound browser; compared in constant time."""
        known = isinstance(secret, str) and self.bound
        return known and hmac.compare_digest(str(secret).encode("utf-8", "replace"), self._secret.encode("ascii"))

    def check(self, secret: object, attempt: object) -> None:
        """Raise Refused unless this is the bound browser, in its newest page."""
        if not self.is_it(secret):
            raise Refused(409, "another browser is being measured under this address")
        if attempt != self.attempt or isinstance(attempt, bool):
            raise Refused(409, TAKEN_OVER)
        self.heard = time.monotonic()

    def begin(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Bind a browser, or let the bound one begin again in a new page; returns what it is told. Raises Refused."""
        if self.bound and not self.is_it(data.get("client")):
            raise Refused(409, "another browser is being measured under this address, which is for one browser only")
        # A new one also for a browser that still has the secret of an earlier run.
        self._secret = self._secret or secrets.token_urlsafe(18)
        self.attempt += 1
        self.heard = time.monotonic()
        self._says = browser_facts(data.get("facts"))
        told = {"client": self._secret, "attempt": self.attempt}
        return {**told, "device": self._device, "threads": self._threads}

    def open(self, engine: object) -> None:
        """Take what a page says of its *engine*.

        Raises Refused where that is nothing, UnavailableError where it is not what was asked for, or not what it was.
        """
        found = {**self._says, **engine_facts(engine)}
        if self._device not in ("auto", found["device"]):
            raise UnavailableError(f"the browser computes on {found['device']}, not on {self._device}")
        # The step of the clock is measured anew by every page.
        differs = [name for name in found if self.facts and found[name] != self.facts[name] and name != "timer_step_ms"]
        if differs:
            raise UnavailableError(f"the browser came back as another one, with other {', '.join(differs)}")
        self.facts, self.opened = self.facts or found, self.attempt
