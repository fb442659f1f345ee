"""A page's artifact in a browser: one of this machine without a window, or whichever opens a session's address."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Callable, Optional

import numpy as np

from ppexport.backends.web.run_session import BrowserSession
from ppexport.backends.web.run_work import DEVICES
from ppexport.device.artifact import Artifact
from ppexport.device.runner import Prepared, Result, Runner, check_threads
from ppexport.device.target import Runtime, Target
from ppexport.errors import ArtifactError, InputError, UnavailableError, printable

if TYPE_CHECKING:
    # Devices have NumPy 1.17, which has no numpy.typing.
    from numpy.typing import NDArray

    from ppexport.device.runner import Image

WASM, WEBGPU = DEVICES
NAMED = "PPEXPORT_BROWSER"
"""The environment variable that names a browser."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
)  # fmt: skip
"""Where browsers are that no PATH leads to."""
FLAGS = (
    "--headless=new", "--no-first-run", "--no-default-browser-check", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip
"""No window, and nothing that a new profile would load from elsewhere."""
SOFTWARE_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
"""WebGPU computed by the processor, where it was asked for: a machine without a window may have no GPU."""
BOUND = ("sh", "-c", 'exec "$0" "$@" --remote-debugging-pipe 3<&0 4> /dev/null')
"""Starts a browser that ends when its input does: that is where its pipe for debuggers comes from."""
START_SECONDS = 180.0
"""A browser has to start, and to load and compile 14 MB of WebAssembly, on a busy machine."""
END_SECONDS = 5.0
MAX_MESSAGES = 1 << 14
IGNORED = re.compile(rb"dbus|vaapi|gpu|vulkan|sandbox_linux|GetVSync|DevTools|cert_issuer|blink\.mojom", re.IGNORECASE)
"""In lines that every Chromium without a desktop writes."""


def find_browser() -> Optional[str]:
    """A Chromium or Chrome of this machine, None where there is none. Raises InputError where the named one is none."""
    named = os.environ.get(NAMED)
    if named:
        found = shutil.which(named)
        if found is None:
            raise InputError(f"{NAMED} names {named!r}, which is no program")
        return found
    known = (shutil.which(name) for name in BROWSERS)
    return next((path for path in (*known, *PLACES) if path and os.path.exists(path)), None)


class Headless:
    """A browser of this machine without a window, with a profile of its own. A context manager."""

    def __init__(self, url: str, software_gpu: bool = False) -> None:
        """Open *url*; WebGPU in software where *software_gpu*. Raises UnavailableError where no browser starts."""
        program = find_browser()
        if program is None:
            raise UnavailableError(
                f"no Chromium or Chrome is installed here: install one (`apt install chromium`), name it in {NAMED}, "
                "or use --on browser and open the address in any browser"
            )
        self.program = program
        self._folder = Path(tempfile.mkdtemp(prefix="ppexport-browser-"))
        self._said = self._folder / "messages"
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        flags = [*FLAGS, *(("--no-sandbox",) if root else ()), *(SOFTWARE_GPU if software_gpu else ())]
        command = [program, *flags, f"--user-data-dir={self._folder / 'profile'}", url]
        posix = os.name == "posix"
        try:
            with open(self._said, "wb") as messages:
                self._child = subprocess.Popen(
                    [*BOUND, *command] if posix else command,
                    # The end of this process closes it, however that ends, and the browser ends as well.
                    stdin=subprocess.PIPE if posix else subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=messages,
                    # Its own group, which ends as a whole; Ctrl-C is for this program.
                    start_new_session=True,
                )
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise UnavailableError(f"{program} cannot be started: {error.strerror}") from None

    def problem(self) -> Optional[str]:
        """Why the browser has ended, None while it runs."""
        code = self._child.poll()
        if code is None:
            return None
        try:
            lines = [line.strip() for line in self._said.read_bytes()[-MAX_MESSAGES:].splitlines()]
        except OSError:
            # Closed: with its profile what it said is gone.
            return f"{self.program} was ended"
        told = [line for line in lines if line and not IGNORED.search(line)] or [line for line in lines if line]
        why = printable(told[-1])[-300:] if told else "it said nothing"
        return f"{self.program} ended with exit code {code}: {why}"

    def close(self) -> None:
        """End every process of the browser, and remove its profile."""
        try:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(END_SECONDS)
        finally:
            # Also its children that do not listen, and after Ctrl-C.
            self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            self._child.wait()
            if self._child.stdin is not None:
                self._child.stdin.close()
            for _ in range(20):
                shutil.rmtree(self._folder, ignore_errors=True)
                if not self._folder.exists():
                    break
                # What was ended just now still writes.
                time.sleep(0.1)

    def _signal(self, number: int) -> None:
        """Send a signal to all processes of the browser."""
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._child.pid, number)
            else:
                self._child.terminate()

    def __enter__(self) -> Headless:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


@contextmanager
def headless_session(
    artifact: Artifact,
    device: str = WASM,
    threads: Optional[int] = None,
    notice: Callable[[str], object] = lambda text: None,
) -> Iterator[BrowserSession]:
    """A session with a browser of this machine that has no window, connected; both end with the block.

    Raises UnavailableError where there is no browser, or it does not open the page.
    """
    # Its end is noticed, so that it may be silent for as long as a GPU takes that the processor imitates.
    opened = BrowserSession(artifact, device, threads, silence=math.inf, notice=notice)
    with opened as session, Headless(session.url, software_gpu=device == WEBGPU) as browser:
        session.alive, session.here = browser.problem, True
        session.wait_for_client(START_SECONDS)
        yield session


class _Tile(Prepared):
    """An image with what its page has to know, and what is compared with it."""

    centers: Optional[NDArray[np.int32]] = None


class BrowserRunner(Runner):
    """An artifact in a browser. What the page's own code decides is compared with this machine: mask and capacity."""

    calibrates = True

    def __init__(
        self,
        artifact: Artifact,
        device: str = WASM,
        threads: Optional[int] = None,
        session: Optional[BrowserSession] = None,
    ) -> None:
        """Open *artifact* in a browser of this machine without a window, or in that of a connected *session*.

        Args:
            artifact: made with a page.
            device: "wasm" or "webgpu"; of a session that of the session.
            threads: of the runtime; None lets the page choose.
            session: stays open when the runner is closed.

        Raises:
            ArtifactError: the artifact has no page.
            UnavailableError: no browser, or it does not open the page.
        """
        super().__init__(artifact)
        self._own = ExitStack()
        if session is None:
            session = self._own.enter_context(headless_session(artifact, device, check_threads(threads)))
        self.session = session
        facts = session.facts
        if facts["device"] != WASM:
            # In names of columns: what the processor computes in a GPU's place is not that GPU.
            self.variant = (
                f"{facts['device']}-fallback" if (facts["adapter"] or {}).get("fallback") else facts["device"]
            )

    def prepare(self, lr: Image, centers: Optional[NDArray[np.int32]] = None) -> Prepared:
        """As every runner; the centres go with the image."""
        tile = _Tile(*super().prepare(lr, centers))
        tile.centers = centers
        return tile

    def _run(self, prepared: Prepared) -> Result:
        found = self.session.run(prepared.lr, getattr(prepared, "centers", None))
        if found.capacity != prepared.capacity:
            raise ArtifactError(
                f"{self.artifact.path}: the page chose {found.capacity} slots where this machine chooses "
                f"{prepared.capacity}: export it again"
            )
        if found.pure is not None and prepared.pure is not None and (found.pure != prepared.pure).any():
            differ = np.count_nonzero(found.pure != prepared.pure)
            raise ArtifactError(
                f"{self.artifact.path}: the page's mask differs from this machine's in {differ} pixels: export it again"
            )
        return Result(found.sr, found.impure, found.capacity)

    def _close(self) -> None:
        self._own.close()


def open_target(artifact: Artifact, target: Target) -> BrowserRunner:
    """*artifact* in a browser of this machine without a window, on the target's device."""
    return BrowserRunner(artifact, target.device, target.threads)


def installed_devices() -> list[str]:
    """What a browser of this machine computes on without a window; nothing where there is none."""
    return [WASM] if find_browser() else []


def find_device(text: str) -> str:
    """The device that a user calls *text*. Raises InputError for one that no browser has."""
    if text.lower() not in DEVICES:
        raise InputError(f"a browser computes on {' or '.join(DEVICES)}, not on {text!r}")
    return text.lower()


RUNTIME = Runtime(
    "browser", "web", ("onnxruntime-web",), WASM, open_target, installed_devices, find_device, place="browser"
)
