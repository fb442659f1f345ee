"""Measures in a browser that has opened a session's address: the same journal and result as of every device.

Every record is checked and written down as it comes, so that a phone that locks its screen, a page that is closed and a
server that is stopped lose a second. What the page says it counted is compared with what this machine counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppexport.backends.web.run_session import BrowserSession
from ppexport.backends.web.run_work import browser_name
from ppexport.device.capacities import smallest_capacity
from ppexport.device.job import IMAGES
from ppexport.device.journal import FORMAT, VERSION, Journal, Past, read_header, read_past
from ppexport.device.launch import Progress
from ppexport.device.machine import describe
from ppexport.errors import ArtifactError, InputError, present
from ppexport.files import sha256_text
from ppexport.profile.latency_run import save_crops
from ppexport.profile.received import RecordChecker, header_from
from ppexport.profile.remote import Request
from ppexport.profile.result import Profile, write_profile


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
        images = np.stack([picture.rgb for picture in request.pictures])
        taker = _Taker(request, journal)
        session.latency(images, request.wanted["plan"], past or Past(1), taker.take, progress)
    finally:
        journal.close()
        _forget_if_empty(request)
    return Profile(write_profile(request.folder, request.journal, [None]))


def _forget_if_empty(request: Request) -> None:
    """Remove journal and pictures of a run that measured nothing, so that another browser may be tried."""
    if not any(read_past(str(request.journal), 1).queries):
        request.journal.unlink()
        (request.folder / IMAGES).unlink()


class _Taker:
    """Writes down what comes, after a look at it."""

    def __init__(self, request: Request, journal: Journal) -> None:
        self._journal, self._checker = journal, RecordChecker(request.wanted, "the browser's journal")
        self._names = [picture.name for picture in request.pictures]
        m = request.artifact.manifest
        # A mask is the same integers everywhere; without one every image takes all slots that there are.
        self._expected = [(-1, max(m.capacities, default=0))] * len(self._names)
        if m.mask != "none":
            counts = [m.routed(m.pure(picture.rgb)) for picture in request.pictures]
            self._expected = [(count, smallest_capacity(m.capacities, count)) for count in counts]

    def take(self, records: Sequence[Sequence[Any]]) -> None:
        """Write *records* down. Raises TransferError for what was not asked for, ArtifactError for a wrong count."""
        checked = [self._checker.checked(record) for record in records]
        for record in checked:
            if record[0] == "q":
                self._compare(record[2], record[8], record[7])
        for record in checked:
            self._journal.write(*record)
        self._journal.sync()

    def _compare(self, image: int, impure: int, capacity: int) -> None:
        expected = self._expected[image]
        if (impure, capacity) != expected:
            raise ArtifactError(
                f"in picture {self._names[image]} the browser counted {impure} impure tokens and took {capacity} "
                f"slots, where this machine counts {expected[0]} and takes {expected[1]}: its times are of other work"
            )


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
