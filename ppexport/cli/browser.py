"""What commands share that have something computed in a browser, or show a page: how a browser gets the address."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console

from ppexport.cli.console import continues_from, progress_bar, progress_bars
from ppexport.errors import InputError, how_to_install

if TYPE_CHECKING:
    from ppexport.backends.web.run_browser import BrowserRunner
    from ppexport.backends.web.run_session import BrowserSession
    from ppexport.cli.devices import RemoteRun
    from ppexport.device.artifact import Artifact
    from ppexport.parity.run import ParityReport
    from ppexport.profile.result import Profile

PLACE = "browser"
"""As `--on` takes it."""
EXPOSED = (
    "while this command runs, everybody in this network who has the address can load the page and the model; it is "
    "plain http, so others in the network may read along"
)
Lan = Annotated[
    bool, typer.Option("--lan", help="show the page in the local network, for a phone; it says what that exposes")
]
LanAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="with --lan: listen on this address of the machine, such as 192.168.1.5"),
]
Adb = Annotated[
    str | None,
    typer.Option(
        metavar="SERIAL",
        help="open the page on this Android phone, through adb: it then gets threads and WebGPU (untested on hardware)",
    ),
]
Headless = Annotated[bool, typer.Option("--headless", help="in a browser of this machine without a window")]


def notice(text: str) -> None:
    """One sentence on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(text)


@dataclass(frozen=True)
class Connection:
    """How a browser is connected; without any of these somebody opens the address on this machine."""

    lan: bool = False
    lan_address: str | None = None
    adb: str | None = None
    headless: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for ways that exclude each other."""
        if self.lan_address is not None and not self.lan:
            raise InputError("--lan-address is for --lan")
        if sum((self.lan, self.adb is not None, self.headless)) > 1:
            raise InputError("--lan, --adb and --headless are three ways to a browser: name one")

    def __bool__(self) -> bool:
        """Whether any way was named."""
        return self != Connection()

    @contextmanager
    def session(
        self, artifact: Artifact, device: str, threads: int | None, timeout: float | None = None
    ) -> Iterator[BrowserSession]:
        """A session whose browser is connected.

        *timeout* is how many seconds to wait for a browser, and for a word of one that computes; without it as long as
        it takes for one to come. Raises PpexportError.
        """
        from ppexport.backends.web.run_browser import headless_session
        from ppexport.backends.web.run_server import LOOPBACK
        from ppexport.backends.web.run_session import SILENCE, BrowserSession
        from ppexport.backends.web.run_work import browser_name

        if self.headless:
            with headless_session(artifact, device, threads, notice) as session:
                yield session
            return
        with ExitStack() as stack:
            address = listening_address(self.lan_address) if self.lan else LOOPBACK
            # What leads a phone to this machine lasts until the page has heard the end.
            ways = stack.enter_context(ExitStack())
            session = stack.enter_context(
                BrowserSession(artifact, device, threads, address, silence=timeout or SILENCE, notice=notice)
            )
            if self.adb is not None:
                _open_on(self.adb, session, ways)
            else:
                show_address(session.url, "to have it compute", lan=self.lan)
            facts = session.wait_for_client(timeout)
            computes = facts["device"] if facts["device"] != "wasm" else f"wasm, threads: {facts['threads']}"
            where = facts["model"] or facts["platform"] or "a device"
            notice(f"connected: {browser_name(facts)} on {where} ({computes}); keep its page open and in front")
            yield session


def listening_address(named: str | None) -> str:
    """The address for the local network; says which where there are several. Raises PpexportError."""
    from ppexport.remote.lan import choose_address

    address, others = choose_address(named)
    if others and named is None:
        notice(
            f"this machine has several addresses: {address} is used; name {' or '.join(others)} with --lan-address if "
            "the phone cannot reach it"
        )
    return address


def show_address(url: str, purpose: str, *, lan: bool) -> None:
    """Say which address to open for a *purpose*; with *lan* what it exposes, as a QR code where somebody sees it."""
    place = "on a device in the same network" if lan else "in a browser of this machine"
    notice(f"open this address {place} {purpose}: {url}")
    if not lan:
        return
    notice(EXPOSED)
    if not sys.stderr.isatty():
        return
    if find_spec("segno") is None:
        notice(f"segno, which draws the address as a QR code, is not installed: {how_to_install('web')}")
        return
    import segno

    drawn = StringIO()
    segno.make(url, error="l").terminal(out=drawn, compact=True)
    for row in drawn.getvalue().splitlines():
        # White on black whatever the terminal's colours are, since not every camera reads an inverted code.
        sys.stderr.write(f"\x1b[97;40m{row}\x1b[0m\n")


def _open_on(serial: str, session: BrowserSession, ways: ExitStack) -> None:
    """Open the session's page on the phone *serial*, whose port leads here until *ways* end. Raises PpexportError."""
    from ppexport.remote.adb import AdbTransport
    from ppexport.remote.address import parse_address

    phone = AdbTransport(parse_address(f"adb://{serial}"))  # type: ignore[arg-type]
    ways.enter_context(phone.reversed(session.port))
    phone.open_page(session.url)
    notice(f"the page was opened on {phone.name}; if its screen shows no browser, open {session.url} there")


class Measured(NamedTuple):
    """What was found in a browser."""

    result: Profile
    routing: list[dict[str, Any]]
    """Time against pure share, where it was asked for."""
    report: ParityReport | None
    """The comparison with a saved run, where one was named."""


def measure(run: RemoteRun, way: Connection, routing: bool, against: Path | None) -> Measured:
    """Measure in a browser; with *routing* also time against pure share, and the inputs of the parity run *against*.

    Raises PpexportError.
    """
    from ppexport.backends.web.run_browser import BrowserRunner
    from ppexport.device.target import choose
    from ppexport.folders import run_folder
    from ppexport.parity.against import read_run, run_against
    from ppexport.profile.browser import measure_in_browser, routing_in_browser
    from ppexport.profile.latency_run import RUN, plan_of
    from ppexport.profile.remote import Settings, prepare_remote

    targets = choose(run.artifact, run.runtime, run.threads, run.trust)
    if len(targets) > 1:
        raise InputError("a browser is timed with one runtime at a time: name one --runtime")
    plan = plan_of(run.quick, run.sustained, run.load, targets)
    request = prepare_remote(targets, plan, run.folder, run.images, PLACE, Settings())
    if against is not None:
        read_run(against, request.artifact.manifest)
    with run_folder(run.folder, RUN), continues_from(request.journal):
        result = request.result()
        if result is not None:
            notice(f"{run.folder} holds this run already, complete: nothing was measured again")
            if against is None and not routing:
                return Measured(result, [], None)
        (target,) = targets
        with way.session(request.artifact, target.device, target.threads, run.timeout) as session:
            if result is None:
                notice(
                    "the browser opens the model and runs it until its times settle, which the bar does not count; the "
                    "page says how far it is"
                )
                with progress_bar("queries") as progress:
                    result = measure_in_browser(request, session, progress)
            found = []
            if routing:
                with progress_bar("time against pure share") as progress:
                    found.append(routing_in_browser(request, session, result, run.images, progress))
            if against is None:
                return Measured(result, found, None)
            with progress_bars() as moves, BrowserRunner(request.artifact, session=session) as runner:
                return Measured(result, found, run_against(runner, against, moves))


@contextmanager
def opened_in_browser(path: Path, runtime: str | None, way: Connection) -> Iterator[BrowserRunner]:
    """A runner of the page in *path* in a browser that is connected; *runtime* as `choose` takes it.

    Raises PpexportError.
    """
    from ppexport.backends.web.run_browser import BrowserRunner
    from ppexport.device.artifact import read_artifact
    from ppexport.device.target import choose
    from ppexport.profile.latency_run import check_place

    (target, *more) = targets = choose(path, runtime, None, False)
    check_place(targets, PLACE)
    if more:
        raise InputError("parity runs in one runtime at a time: name one --runtime")
    artifact = read_artifact(path)
    with way.session(artifact, target.device, target.threads) as session:
        yield BrowserRunner(artifact, session=session)
