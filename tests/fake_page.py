"""The folder of a page that was never exported, and a client in place of a browser, which speaks its protocol."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from ppexport.device.artifact import Manifest, read_artifact, write_manifest
from ppexport.device.capacities import smallest_capacity
from ppexport.files import sha256_file

FACTS = {
    "userAgent": "Fake/1.0 (Phone)", "brands": [{"brand": "Fake", "version": "1"}], "platform": "Android",
    "model": "Phone 9", "mobile": True, "cores": 8, "memoryGB": 8, "secure": True, "isolated": True,
    "timerStepMs": 0.005,
}  # fmt: skip
ENGINE = {"device": "wasm", "threads": 4, "adapter": None, "ort": "1.30.0", "loadMs": 12.5}


def write_page(folder: Path, **changed) -> Path:
    """The artifact of a page in *folder*, with a model that holds nothing."""
    folder.mkdir()
    texts = {"model.onnx": "\x08\x0a", "index.html": "<p>index</p>", "measure.html": "<p>measure</p>", "page.mjs": "//"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    fields = {
        "backend": "web", "name": "small", "arch": "pp_atd_light", "scale": 2, "size": [20, 24], "precision": "fp32",
        "options": {"colors": 8, "window": 4, "csmf": True}, "flavour": "portable", "capacities": [256, 512, 1024],
        "mask": "graph", "tokens": 1024, "weights": {"file": "x", "sha256": "0" * 64}, "card_sha256": "0" * 64,
        "licence": "none", "created": "2026-01-01", "files": {name: sha256_file(folder / name) for name in texts},
    }  # fmt: skip
    write_manifest(folder, Manifest(**{**fields, **changed}))
    return folder


@dataclass
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class FakePage:
    """A browser that opened *url*."""

    url: str
    secret: str = ""
    attempt: int = 0
    facts: dict = field(default_factory=lambda: dict(FACTS))
    engine: dict = field(default_factory=lambda: dict(ENGINE))

    def ask(self, method: str, name: str, body: bytes | None = None, headers=None, host=None, origin=None) -> Answer:
        """One request; a *name* that begins with a slash is a whole path."""
        parts = urlsplit(self.url)
        path = name if name.startswith("/") else parts.path + name
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True)
            sent = {"Host": host or parts.netloc}
            if body is not None:
                sent |= {"Content-Length": str(len(body)), "Origin": origin or f"http://{parts.netloc}"}
            for key, value in {**sent, **(headers or {})}.items():
                connection.putheader(key, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def post(self, name: str, **data) -> Answer:
        return self.ask("POST", name, json.dumps({"client": self.secret, "attempt": self.attempt, **data}).encode())

    def begin(self) -> Answer:
        answer = self.post("begin", facts=self.facts)
        if answer.status == 200:
            self.secret, self.attempt = answer.json["client"], answer.json["attempt"]
        return answer

    def open(self) -> FakePage:
        """Connected, with an engine."""
        assert self.begin().status == 200
        assert self.post("facts", engine=self.engine).status == 200
        return self

    def next(self) -> dict:
        return self.post("next").json

    def work(self) -> dict:
        """The next answer that is not to wait."""
        while True:
            told = self.next()
            if told["kind"] != "wait":
                return told

    def input(self, name: str) -> bytes:
        answer = self.ask("GET", name, headers={"X-Client": self.secret})
        assert answer.status == 200
        return answer.body

    def chunk(self, job: dict, number: int, body: bytes, last: bool = False, **changed) -> Answer:
        headers = {
            "X-Client": self.secret, "X-Attempt": self.attempt, "X-Job": job["id"], "X-Number": number,
            "X-Last": int(last), "X-Sha256": sha256(body).hexdigest(), **changed,
        }  # fmt: skip
        return self.ask("POST", "chunk", body, {name.replace("_", "-"): str(value) for name, value in headers.items()})

    def picture(self, artifact, job: dict, factor: float = 1.0) -> bytes:
        """What a page sends of a run: here every pixel is repeated."""
        m = artifact.manifest
        lr = np.frombuffer(self.input(job["lr"]), "<f4").reshape(1, 3, *m.size)
        pure = m.pure(np.ascontiguousarray(lr[0].transpose(1, 2, 0)), job.get("centres"))
        impure = m.routed(pure)
        packed = base64.b64encode(np.packbits(pure).tobytes()).decode()
        line = {"impure": impure, "capacity": smallest_capacity(m.capacities, impure), "ms": 1.5, "pure": packed}
        sr = np.repeat(np.repeat(lr, m.scale, 2), m.scale, 3) * np.float32(factor)
        return json.dumps(line).encode() + b"\n" + sr.astype("<f4").tobytes()


def lines(*records) -> bytes:
    """Records of a journal."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def measure(page: FakePage, artifact, job: dict, until: int | None = None) -> dict:
    """Do a job of latencies as a page does; with *until* it goes away after so many queries."""
    m, (h, w) = artifact.manifest, artifact.size
    images = np.frombuffer(page.input(job["images"]), np.uint8).reshape(job["count"], h, w, 3)
    impure = [m.routed(m.pure(rgb)) for rgb in images]
    past, number = job["past"], job["next"]
    t = past["end"]
    begun = [["begin", {"t": t, "now": 5, "wall": 7, "boot": None, "memory": None}], ["c", t, {"page.hidden": 0}]]
    if not past["loaded"]:
        begun += [["load", 0, 3_000_000], ["first", 0, 2_000_000]]
    number = page.chunk(job, number, lines(*begun, ["warm", 0, 16, True])).json["next"]
    for query in range(past["queries"], job["plan"]["queries"]):
        if query == until:
            return {"kind": "gone"}
        image = query % len(images)
        slots = smallest_capacity(m.capacities, impure[image])
        record = ["q", 0, image, t, 1_000_000 + image, 1_000_000 + image, 1000, slots, impure[image]]
        t += 1_100_000
        number = page.chunk(job, number, lines(record)).json["next"]
    reading = ["c", t, {"page.hidden": 0, "heap.mb": 12.5, "longest.gap.ms": 4.0}]
    answer = page.chunk(job, number, lines(reading, ["end", {"t": t, "memory": None}]), last=True)
    assert answer.status == 200
    return page.work()


class Serving(threading.Thread):
    """A page in a thread of its own that does whatever work it gets, and ends with the run."""

    def __init__(self, url: str, folder: Path, **how) -> None:
        super().__init__(daemon=True)
        self.page, self.artifact, self.how = FakePage(url), read_artifact(folder), how
        self.told: dict = {}

    def run(self) -> None:
        told = self.page.open().work()
        while told["kind"] in ("run", "latency"):
            if told["kind"] == "latency":
                told = measure(self.page, self.artifact, told, **self.how)
            else:
                assert self.page.chunk(told, 0, self.page.picture(self.artifact, told), True).status == 200
                told = self.page.work()
        self.told = told
