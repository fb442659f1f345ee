"""Measures in a browser that has opened a session's address: the same journal and result as of every device.

Every record is checked and written down as it comes, so that a phone that locks its screen, a page that is closed and a
server that is stopped lose a second. What the page says it counted is compared with what this machine counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ppexport.backends.web.run_session import BrowserSession
from ppexport.backends.web.run_work import browser_name
from ppexport.device.artifact import Manifest
from ppexport.device.capacities import smallest_capacity
from ppexport.device.job import IMAGES
from ppexport.device.journal import FORMAT, VERSION, Journal, Past, read_header, read_past
from ppexport.device.launch import Progress
from ppexport.device.machine import describe
from ppexport.device.measure import PLANS
from ppexport.errors import ArtifactError, InputError, present
from ppexport.files import finite, sha256_text, write_text
from ppexport.profile.content import PLACES, ROUNDS, line
from ppexport.profile.latency_run import Crop, crops_of, save_crops
from ppexport.profile.received import RecordChecker, header_from
from ppexport.profile.remote import Request
from ppexport.profile.result import Profile, beginning, write_profile

SENSORS = frozenset({"own", "wall", "boot", "page.hidden", "longest.gap.ms", "heap.mb"})
"""What a page can read. Names of other sensors, such as watts, would become figures that no browser knows."""


def measure_in_browser(request: Request, session: BrowserSession, progress: Progress) -> Profile:
    """Measure *request*, or what is missing of it, in the connected browser of *session*, and write its result.

    Raises PpexportError: InputError where the folder holds a run of another browser, ArtifactError where the page
    counts otherwise than this machine, and as `BrowserSession.latency`. What was measured is kept.
    """
    header = _header(request, session)
    request.folder.mkdir(parents=True, exist_ok=True)
    past = request.past()
    if past is None:
        save_crops(request.folder / IMAGES, request.pictures)
    elif present(read_header(str(request.journal)), "the journal's header")["identity"] != header["identity"]:
        raise InputError(
            f"{request.folder} holds a run of another browser or machine than {header['machine']['cpu']}: continue it "
            "there, or name another folder with -o"
        )
    journal = Journal(str(request.journal))
    try:
        if past is None:
            journal.write("header", header)
        counted = _Counted(request.artifact.manifest, request.pictures)

        def take(records: Sequence[Sequence[Any]]) -> None:
            for record in counted.checked(records):
                journal.write(*record)
            journal.sync()

        images = np.stack([picture.rgb for picture in request.pictures])
        # A run that ended before its result was written has nothing left to measure.
        if past is None or not past.complete:
            session.latency(images, request.wanted["plan"], past or Past(1), take, progress)
    finally:
        journal.close()
        _forget_if_empty(request)
    return Profile(write_profile(request.folder, request.journal, [None]))


def _forget_if_empty(request: Request) -> None:
    """Remove journal and pictures of a run that measured nothing, so that another browser may be tried."""
    if not any(read_past(str(request.journal), 1).queries):
        request.journal.unlink()
        (request.folder / IMAGES).unlink()


class _Counted:
    """Checks the records of a measurement of *pictures*, and what the page counted in each."""

    def __init__(self, m: Manifest, pictures: Sequence[Crop]) -> None:
        wanted = {"subjects": [m.name], "images": pictures}
        self._checker = RecordChecker(wanted, "the browser's journal", SENSORS)
        self._names = [picture.name for picture in pictures]
        # A mask is the same integers everywhere; without one every image takes all slots that there are.
        self._expected = [(-1, max(m.capacities, default=0))] * len(pictures)
        if m.mask != "none":
            counts = [m.routed(m.pure(picture.rgb)) for picture in pictures]
            self._expected = [(count, smallest_capacity(m.capacities, count)) for count in counts]

    def checked(self, records: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """*records* made anew. Raises TransferError for what was not asked for, ArtifactError for a wrong count."""
        made = [self._checker.checked(record) for record in records]
        for record in made:
            if record[0] == "q":
                self._compare(record[2], record[8], record[7])
        return made

    def _compare(self, image: int, impure: int, capacity: int) -> None:
        expected = self._expected[image]
        if (impure, capacity) != expected:
            raise ArtifactError(
                f"in picture {self._names[image]} the browser counted {impure} impure tokens and took {capacity} "
                f"slots, where this machine counts {expected[0]} and takes {expected[1]}: its times are of other work"
            )


def routing_in_browser(
    request: Request, session: BrowserSession, result: Profile, images: Path | None, progress: Progress
) -> dict[str, Any]:
    """Write time against pure share, on many crops of the pictures in *images*, into `routing.json`; returns it.

    It is as `ppexport.profile.content` describes it, but for capacities, which a page always chooses itself, and for
    the order: the crops take turns. Raises PpexportError as `measure_in_browser`.
    """
    m = request.artifact.manifest
    if not m.options:
        raise InputError(f"{request.artifact.path} has no Pure-Pass, so its time follows no mask: leave --routing out")
    crops = crops_of(m, images, PLACES)
    counted = _Counted(m, crops)
    found: list[dict[str, Any]] = [{"name": c.name, "pure_share": c.pure_share, "ms": []} for c in crops]

    def take(records: Sequence[Sequence[Any]]) -> None:
        for record in counted.checked(records):
            if record[0] == "q":
                _, _, image, _, ns, _, _, capacity, impure = record
                found[image]["ms"].append(ns / 1e6)
                found[image] |= {"impure": impure, "capacity": capacity}

    plan = replace(PLANS["quick"], queries=ROUNDS[request.wanted["plan"]["name"]] * len(crops), seconds=0.0)
    session.latency(np.stack([c.rgb for c in crops]), vars(replace(plan, warm_windows=1)), Past(1), take, progress)
    (subject,) = result.subjects
    measured = {"images": found, "capacities": [], "line": line(found)}
    data = {**beginning("routing", subject, result.data["machine"]), **measured}
    write_text(request.folder / "routing.json", json.dumps(finite(data), allow_nan=False) + "\n")
    return data


def _header(request: Request, session: BrowserSession) -> dict[str, Any]:
    """The journal's header, of what was asked for and what the browser says of itself."""
    facts, name = session.facts, browser_name(session.facts)
    place = facts["model"] or facts["platform"] or "an unknown device"
    told: Mapping[str, Any] = {"system": facts["platform"], "board": facts["model"], "cores": facts["cores"]}
    if session.here:
        # What Python computes with says nothing of a browser.
        told = {name: value for name, value in describe().items() if name not in ("python", "environment")}
        place = told["cpu"]
    machine = {**told, "cpu": f"{place}, {name}", "usable_cores": facts["cores"]}
    # The step of its clock is measured anew by every page.
    same = {key: value for key, value in facts.items() if key != "timer_step_ms"}
    identity = sha256_text(request.digest + json.dumps(same, sort_keys=True))
    versions = {"runtime_versions": {"onnxruntime-web": facts["ort"]}}
    subjects = [{**subject, **versions} for subject in request.wanted["subjects"]]
    sent = {"format": FORMAT, "version": VERSION, "identity": identity, "subjects": subjects, "machine": machine}
    header = header_from(sent, request.wanted, request.digest, None)
    header["machine"]["browser"] = facts
    return header
