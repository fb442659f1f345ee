"""What commands share that have something done on a device, and measurements: on one device, and on all of a lab.

Those of a lab are measured at the same time, each for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from ppexport.cli.console import table
from ppexport.errors import EXIT_GATE_FAILED, EXIT_INTERRUPTED, InputError, PpexportError, counted
from ppexport.files import system_sentence

if TYPE_CHECKING:
    from ppexport.profile.lab import Device, Lab
    from ppexport.profile.remote import ProfileWork, Settings
    from ppexport.profile.result import Profile
    from ppexport.remote.detached import DetachedWork, Telling
    from ppexport.remote.ssh import SshOptions


@contextmanager
def following(what: str) -> Iterator[Telling]:
    """Tells people on standard error what happens: sentences, and a line that says what is being done now."""
    from ppexport.remote.detached import Telling

    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    with console.status(what) as status:
        yield Telling(console.print, lambda doing: status.update(escape(f"{what}: {doing}")))


@contextmanager
def taken_up_later(work: DetachedWork[Any]) -> Iterator[None]:
    """After Ctrl-C in the block: says what continues, and ends the program."""
    try:
        yield
    except KeyboardInterrupt:
        continues = f"the {work.noun} continues on {work.transport.name}; " if work.running else ""
        work.telling.notice(f"interrupted: {continues}the same command again takes it up, --clean ends and removes it")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@dataclass(frozen=True)
class RemoteRun:
    """A measurement on a device, as `ppexport profile --on` asks for it."""

    artifact: Path
    runtime: str | None
    threads: int | None
    trust: bool
    quick: bool
    sustained: bool
    load: int
    """Busy neighbours."""
    folder: Path
    """Of the result."""
    images: Path | None
    address: str
    options: SshOptions
    settings: Settings
    perf_binary: Path | None
    """Measures in place of our agent."""
    timeout: float | None

    @contextmanager
    def connected(self, telling: Telling) -> Iterator[ProfileWork]:
        """The measurement, connected with its device until the block ends. Raises PpexportError."""
        from ppexport.device.target import choose
        from ppexport.folders import run_folder
        from ppexport.profile.latency_run import RUN, plan_of
        from ppexport.profile.perf_binary import PerfBinary
        from ppexport.profile.remote import RemoteProfile, prepare_remote
        from ppexport.remote.ssh import open_device

        threads = self.threads or len(self.settings.cores) or None
        targets = choose(self.artifact, self.runtime, threads, self.trust)
        plan = plan_of(self.quick, self.sustained, self.load, targets)
        request = prepare_remote(targets, plan, self.folder, self.images, self.address, self.settings)
        with run_folder(self.folder, RUN), open_device(self.address, self.options) as device:
            if self.perf_binary is None:
                yield RemoteProfile(device, request, telling)
            else:
                yield PerfBinary(device, request, self.perf_binary, telling)

    def measure(self) -> Profile:
        """Measure, and show what happens. Raises PpexportError."""
        with following("profile") as telling, self.connected(telling) as work, taken_up_later(work):
            return work.run(self.timeout)

    def clean(self) -> list[str]:
        """Stop and remove every measurement of the artifact on the device; returns what was done."""
        from ppexport.device.artifact import read_artifact
        from ppexport.profile.remote import job_prefix
        from ppexport.remote.detached import remove_jobs
        from ppexport.remote.ssh import open_device

        whole = read_artifact(self.artifact)
        with open_device(self.address, self.options) as device:
            return remove_jobs(device, job_prefix(whole))


class Stopped(Exception):
    """The user ended the command; what runs on the devices continues."""


@dataclass(frozen=True)
class Outcome:
    """What came of one device; of a run that lacks a sensor, both."""

    result: Profile | None
    error: PpexportError | None


def run_of(device: Device, common: RemoteRun) -> RemoteRun:
    """The measurement on *device*, which is *common* but for what its entry in the lab file says."""
    return replace(
        common,
        artifact=device.artifact or common.artifact,
        runtime=device.runtime or common.runtime,
        threads=device.threads or common.threads,
        folder=common.folder / device.name,
        address=device.address,
        options=replace(common.options, identity=device.identity or common.options.identity),
        settings=device.settings,
        perf_binary=device.perf_binary,
    )


def measure_one(device: Device, run: RemoteRun, telling: Telling) -> Outcome:
    """Measure on one device; its failure is its own."""
    result = None
    try:
        with run.connected(telling) as work:
            result = work.run(run.timeout)
        shown = {name.partition(".")[0] for name in result.data["sensors"]}
        missing = [kind for kind in device.sensors if kind not in shown]
        if missing:
            raise InputError(f"the run shows no {' and no '.join(missing)}, which the lab file asks for")
    except PpexportError as error:
        return Outcome(result, error)
    except OSError as error:
        return Outcome(result, InputError(system_sentence(error)))
    return Outcome(result, None)


def measure_lab(lab: Lab, common: RemoteRun) -> dict[str, Outcome]:
    """Measure on all devices at the same time, on those of one machine one after the other; {name: outcome}."""
    from ppexport.remote.detached import Telling

    stop, doing, lock = threading.Event(), dict[str, str](), threading.Lock()
    done: dict[str, Outcome] = {}
    with following("profile") as people:

        def work(device: Device) -> None:
            name = device.name

            def notice(text: str) -> None:
                people.notice(f"{name}: {text}")

            def stage(text: str) -> None:
                if stop.is_set():
                    raise Stopped
                with lock:
                    if doing.get(name) != text:
                        doing[name] = text
                        people.stage("; ".join(f"{device}: {now}" for device, now in sorted(doing.items())))

            outcome = done[name] = measure_one(device, run_of(device, common), Telling(notice, stage))
            with lock:
                doing.pop(name, None)
            notice("done" if outcome.error is None else str(outcome.error))

        groups = lab.groups()
        with ThreadPoolExecutor(len(groups)) as pool:
            try:
                for future in [pool.submit(lambda group: [*map(work, group)], group) for group in groups]:
                    future.result()
            except KeyboardInterrupt:
                stop.set()
                people.notice("interrupted: what runs on the devices continues, the same command again collects it")
                raise typer.Exit(EXIT_INTERRUPTED) from None
    return {device.name: done[device.name] for device in lab.devices}


def exit_code(outcomes: dict[str, Outcome]) -> int:
    """0 where every device was measured; that of the failures where they have one; 1 for different ones."""
    codes = {outcome.error.exit_code for outcome in outcomes.values() if outcome.error is not None}
    return 0 if not codes else codes.pop() if len(codes) == 1 else EXIT_GATE_FAILED


def show_lab(outcomes: dict[str, Outcome], console: Console) -> None:
    """Print a line for every runtime on every device."""
    rows = []
    for name, outcome in outcomes.items():
        if outcome.result is None:
            rows.append([name, "", "", "", "", "", "failed"])
            continue
        marks = "failed" if outcome.error is not None else counted(len(outcome.result.data["marks"]), "mark")
        for subject in outcome.result.subjects:
            s = subject["summary"]
            times = [f"{s[f'{p}_ms']:.1f}" for p in ("p50", "p90", "p99")]
            energy = "" if s.get("energy") is None else f"{s['energy']['joules_per_image']:.3f}"
            rows.append([name, subject["name"], *times, energy, marks])
    columns = ["device", "what", "p50, ms", "p90, ms", "p99, ms", "J per image", ""]
    console.print(table("latency by device", columns, rows, numbers=2))


def lab_json(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """The results and errors of a lab as `--json` writes them."""
    return {
        "devices": {
            name: {
                "error": None if outcome.error is None else str(outcome.error),
                "result": None if outcome.result is None else outcome.result.to_dict(),
            }
            for name, outcome in outcomes.items()
        }
    }


def clean_lab(lab: Lab, common: RemoteRun) -> dict[str, list[str]]:
    """Stop and remove the measurements on all devices; {name: what was done}."""
    found: dict[str, list[str]] = {}
    for device in lab.devices:
        try:
            found[device.name] = run_of(device, common).clean()
        except PpexportError as error:
            found[device.name] = [str(error)]
    return found
