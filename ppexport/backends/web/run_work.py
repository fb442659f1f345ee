"""What a measuring page is asked to do and sends back, and what it says of itself: all of it checked.

Texts are made printable, numbers have their types and ranges, lengths are exact. Standard library and NumPy only.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

import numpy as np

from ppexport.backends.web.run_files import reply_json
from ppexport.device.artifact import Manifest
from ppexport.device.journal import JournalError, Past, lines_of
from ppexport.errors import ArtifactError, printable

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no numpy.typing, and Python 3.8, where `dict[...]` fails.
    from numpy.typing import NDArray

    Records = Callable[[Sequence[Sequence[Any]]], object]
    """Receives the records of a journal that came in one chunk."""

MAX_TEXT = 300
MAX_JOURNAL = 1 << 28
"""Bytes of a journal: about two million queries."""
FIRST = 1 << 12
"""Bytes of the line before a picture, at most, beside the mask in it."""
DEVICES = ("wasm", "webgpu")
TICK = 1000
"""Nanoseconds by which a query may begin before the one before it ended: no query takes 0 of a clock that is coarse."""
CLOCKS = 0.01
"""Share by which two clocks may differ."""
LATE = 1.0
"""Seconds that a clock may lead besides."""


class Refused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, error: str, **more: Any) -> None:
        super().__init__(error)
        self.reply = reply_json({"error": error, **more}, status)


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in *body*. Raises Refused for anything else, and for what Python alone takes for a number."""
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise Refused(400, "this is not a JSON object")
    return data


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


# What a browser says of itself. Every field is made anew.


def plain_text(value: object) -> str:
    """A text that a page sent, one printable and short line; "" for anything else."""
    # JSON may hold halves of characters, which no file and no terminal takes.
    text = value[: 2 * MAX_TEXT].encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""
    return " ".join(printable(text).split())[:MAX_TEXT]


def _number(value: object) -> Optional[float]:
    plain = type(value) in (int, float) and 0 <= value < 1e12  # type: ignore[operator]
    return float(value) if plain else None  # type: ignore[arg-type]


def _count(value: object) -> Optional[int]:
    number = _number(value)
    return None if number is None or number != int(number) else int(number)


def _brands(value: object) -> list[str]:
    """Names with versions, of which a browser invents one so that nobody relies on the list."""
    found = []
    for entry in value[:8] if isinstance(value, list) else ():
        if isinstance(entry, dict):
            entry = f"{plain_text(entry.get('brand'))} {plain_text(entry.get('version'))}"
        name = plain_text(entry)
        if name and not re.search(r"not.{0,3}a.{0,3}brand", name, re.IGNORECASE):
            found.append(name)
    return found


def _adapter(value: object) -> Optional[dict[str, Any]]:
    if not isinstance(value, dict):
        return None
    names = ("vendor", "architecture", "device", "description")
    return {**{name: plain_text(value.get(name)) for name in names}, "fallback": value.get("fallback") is True}


def browser_facts(value: object) -> dict[str, Any]:
    """What a page says of its browser -> what is kept of it; what is not known is "", None or False."""
    data = value if isinstance(value, dict) else {}
    step = _number(data.get("timerStepMs"))
    return {
        "user_agent": plain_text(data.get("userAgent")),
        "brands": _brands(data.get("brands")),
        "platform": plain_text(data.get("platform")),
        "model": plain_text(data.get("model")),
        "mobile": data.get("mobile") is True,
        "cores": _count(data.get("cores")),
        "memory_gb": _number(data.get("memoryGB")),
        "secure": data.get("secure") is True,
        "isolated": data.get("isolated") is True,
        "timer_step_ms": None if step is None else round(step, 6),
    }


AGENTS = {
    "Firefox|FxiOS": "Firefox",
    "SamsungBrowser": "Samsung Internet",
    "Edg|EdgA|EdgiOS": "Edge",
    "OPR": "Opera",
    "Chrome|HeadlessChrome|CriOS": "Chrome",
    "Version": "Safari",
}
"""{what a browser writes before its version in the user agent: its name}. Those that also write another's come first.
Over plain http a page learns no brands."""


def browser_name(facts: Mapping[str, Any]) -> str:
    """What people call the browser of these `browser_facts`, such as "Chrome 142"."""
    # Browsers that share an engine name it first or last, and themselves besides.
    brands = [brand.replace("Google ", "") for brand in facts["brands"]]
    own = [brand for brand in brands if not brand.startswith("Chromium")]
    if brands:
        return str((own or brands)[0])
    agent = facts["user_agent"]
    for token, name in AGENTS.items():
        found = re.search(rf"(?:{token})/([0-9]{{1,4}})", agent)
        if found:
            return f"{name} {found[1]}"
    return "an unknown browser"


def engine_facts(value: object) -> dict[str, Any]:
    """What a page says of what computes in it -> what is kept of it. Raises Refused where it names no device."""
    data = value if isinstance(value, dict) else {}
    if data.get("device") not in DEVICES:
        raise Refused(400, f"an engine computes on {' or '.join(DEVICES)}")
    return {
        "device": data["device"],
        "threads": _count(data.get("threads")) or 1,
        "adapter": _adapter(data.get("adapter")),
        "ort": plain_text(data.get("ort")),
    }


class BrowserResult(NamedTuple):
    """What a browser computed of one image."""

    sr: NDArray[np.float32]
    """(1, 3, h * scale, w * scale); its numbers are whatever they are."""
    impure: int
    """Tokens that took slots."""
    capacity: int
    """Slots that it chose."""
    pure: Optional[NDArray[np.bool_]]
    """The mask (H', W') that its host code computed; None where it needed none."""


class Work(ABC):
    """A job, and what came of it so far."""

    def __init__(self, number: int, data: bytes) -> None:
        self.id, self.input, self.data = number, f"input-{number}", data
        self.next = 0
        """The number of the next chunk."""
        self.received = 0
        self.damaged = 0
        self.done = False
        self.error: Optional[Exception] = None

    @abstractmethod
    def message(self) -> dict[str, Any]:
        """What the page is told, whenever it asks for work; it may have lost what it had."""

    @abstractmethod
    def take(self, body: bytes, last: bool) -> None:
        """Take the next chunk. Raises PpexportError for what no page of ours sends, which ends the run."""


class RunWork(Work):
    """One image."""

    result: BrowserResult

    def __init__(self, number: int, data: bytes, centres: Optional[Sequence[Any]], manifest: Manifest) -> None:
        super().__init__(number, data)
        self._centres, self._manifest = centres, manifest
        self._parts: list[bytes] = []
        height, width = manifest.size
        self._shape = (1, 3, height * manifest.scale, width * manifest.scale)
        self._bytes = 4 * int(np.prod(self._shape))
        self._tokens = manifest.tokens

    def message(self) -> dict[str, Any]:
        """A page that asks again computes again."""
        self.next, self.received, self._parts = 0, 0, []
        told = {"kind": "run", "id": self.id, "lr": self.input}
        return told if self._centres is None else {**told, "centres": self._centres}

    def take(self, body: bytes, last: bool) -> None:
        """Take a part of the picture."""
        if self.received > self._bytes + FIRST + self._tokens:
            raise ArtifactError("the browser sent more than one picture")
        self._parts.append(body)
        if last:
            self.result = self._read(b"".join(self._parts))
            self.done, self._parts = True, []

    def _read(self, content: bytes) -> BrowserResult:
        line, _, picture = content.partition(b"\n")
        try:
            said = parse_json(line)
        except Refused:
            said = {}
        impure, capacity, capacities = said.get("impure"), said.get("capacity"), self._manifest.capacities or [0]
        if len(picture) != self._bytes:
            raise ArtifactError(f"the browser sent a picture of {len(picture)} bytes, expected {self._bytes}")
        if type(impure) is not int or not 0 <= impure <= self._tokens or capacity not in capacities:
            raise ArtifactError("the browser sent a picture without its tokens and slots")
        sr = np.frombuffer(picture, "<f4").astype(np.float32).reshape(self._shape)
        return BrowserResult(sr, impure, int(capacity), self._mask(said.get("pure")))

    def _mask(self, packed: object) -> Optional[NDArray[np.bool_]]:
        if packed is None:
            return None
        try:
            bits = base64.b64decode(packed, validate=True) if isinstance(packed, str) else b""
        except (binascii.Error, ValueError):
            bits = b""
        padded = self._manifest.layout.padded((self._manifest.size[0], self._manifest.size[1]))
        if len(bits) != -(-self._tokens // 8):
            raise ArtifactError(f"the browser sent a mask of {len(bits)} bytes, expected {-(-self._tokens // 8)}")
        return np.unpackbits(np.frombuffer(bits, np.uint8))[: self._tokens].astype(np.bool_).reshape(padded)


def _clocks() -> tuple[float, float]:
    """Seconds of the clock that nobody sets, and of the one that continues while this machine sleeps."""
    return time.monotonic(), time.time()


class LatencyWork(Work):
    """A journal of latencies, which continues wherever it was interrupted.

    It has to be one of what was asked for: queries one after the other and of the images in turns, as many and for as
    long as the plan says, and no longer than it took here.
    """

    def __init__(
        self,
        number: int,
        images: NDArray[np.uint8],
        plan: Mapping[str, Any],
        past: Past,
        write: Records,
        progress: Callable[[int, int], object],
    ) -> None:
        super().__init__(number, images.tobytes())
        self._count, self._plan, self._past, self._write, self._progress = len(images), plan, past, write, progress
        self._begun, self._from = _clocks(), past.end
        self._fresh = True

    def message(self) -> dict[str, Any]:
        """A page that asks again continues where the journal ends."""
        past, self._fresh = self._past, True
        kept = {"queries": past.queries[0], "ns": past.ns[0], "end": past.end, "loaded": past.loaded[0]}
        told = {"kind": "latency", "id": self.id, "images": self.input, "count": self._count}
        return {**told, "plan": dict(self._plan), "past": kept, "next": self.next}

    def take(self, body: bytes, last: bool) -> None:
        """Take whole lines of the journal."""
        if body and not body.endswith(b"\n"):
            raise JournalError("the browser sent a part of a line of its journal")
        if self.received > MAX_JOURNAL:
            raise JournalError(f"the browser sent more than {MAX_JOURNAL} bytes")
        records = list(lines_of(io.BytesIO(body), "the browser's journal"))
        copy = deepcopy(self._past)
        for record in records:
            if copy.complete:
                raise JournalError("the browser's journal goes on after its end")
            self._check(record, copy)
            copy.add(record, "the browser's journal")
        self._check_times(copy)
        if copy.complete != last:
            raise JournalError("the browser's journal has no end" if last else "the browser's journal ends too early")
        # Whoever writes them down looks at them more closely, and may refuse.
        self._write(records)
        self._past, self.done = copy, last
        self._progress(copy.queries[0], max(int(self._plan["queries"]), copy.queries[0]))

    def _check(self, record: Sequence[Any], past: Past) -> None:
        """Raise JournalError unless *record* can follow the *past*."""
        kind, whose = record[0], "the browser's journal"
        if self._fresh and kind != "begin":
            raise JournalError(f"{whose} does not begin with its beginning")
        self._fresh = False
        if kind == "q":
            image, t, ns, cpu, host = record[2:7]
            if image != past.queries[0] % self._count:
                raise JournalError(f"{whose} has a query of image {image} out of turn")
            if t < past.end - TICK or not 0 <= host <= ns or cpu != ns:
                raise JournalError(f"{whose} has a query that overlaps with another, or whose parts are longer")
        elif kind == "c" and record[1] < past.end - TICK:
            raise JournalError(f"{whose} goes back in time")
        elif kind == "end":
            enough = past.queries[0] >= self._plan["queries"] and past.ns[0] >= self._plan["seconds"] * 1e9
            if not enough or not past.loaded[0]:
                raise JournalError(f"{whose} ends before all was measured")

    def _check_times(self, past: Past) -> None:
        """Raise JournalError where more time passed in the browser than here."""
        theirs = (past.end - self._from) / 1e9
        ours = max(now - begun for now, begun in zip(_clocks(), self._begun))
        if theirs > ours * (1 + CLOCKS) + LATE:
            raise JournalError(f"the browser claims {theirs:.1f} s of queries within {ours:.1f} s: its clock is wrong")
