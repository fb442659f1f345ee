"""`ppexport profile --devices`: all devices of a lab at the same time, each for itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ppexport.cli.console import table
from ppexport.cli.devices import following
from ppexport.cli.profile_remote import There, clean_there, work_there
from ppexport.errors import EXIT_GATE_FAILED, EXIT_INTERRUPTED, InputError, PpexportError, counted
from ppexport.files import system_sentence

if TYPE_CHECKING:
    from rich.console import Console

    from ppexport.device.measure import Plan
    from ppexport.device.target import Target
    from ppexport.profile.lab import Device, Lab
    from ppexport.profile.result import Profile
    from ppexport.remote.detached import Telling


class Stopped(Exception):
    """The user ended the command; what runs on the devices continues."""


@dataclass(frozen=True)
class Task:
    """What all devices are asked for."""

    artifact: Path
    plan: Callable[[Sequence[Target]], Plan]
    folder: Path
    images: Path | None
    runtime: str | None
    threads: int | None
    trust: bool
    there: There
    """Of which address, settings and program are a device's own."""

    def of(self, device: Device) -> There:
        """How *device* is reached and set."""
        options = self.there.options
        return replace(
            self.there,
            address=device.address,
            settings=device.settings(),
            options=options if device.identity is None else replace(options, identity=Path(device.identity)),
            perf_binary=None if device.perf_binary is None else Path(device.perf_binary),
        )


@dataclass(frozen=True)
class Outcome:
    """What came of one device."""

    result: Profile | None
    error: PpexportError | None
    """Of a result that lacks a sensor both are there."""


def measure_one(device: Device, task: Task, telling: Telling) -> Outcome:
    """Measure on one device; its failure is its own."""
    from ppexport.device.target import choose

    result = None
    try:
        settings = device.settings()
        threads = device.threads or task.threads or len(settings.cores) or None
        artifact = task.artifact if device.artifact is None else Path(device.artifact)
        targets = choose(artifact, device.runtime or task.runtime, threads, task.trust)
        there, folder = task.of(device), task.folder / device.name
        with work_there(there, targets, task.plan(targets), folder, task.images, telling) as work:
            result = work.run(there.timeout)
        missing = device.missing(result.data["sensors"])
        if missing:
            raise InputError(f"the run shows no {' and no '.join(missing)}, which the lab file asks for")
    except PpexportError as error:
        return Outcome(result, error)
    except OSError as error:
        return Outcome(result, InputError(system_sentence(error)))
    return Outcome(result, None)


def measure_lab(lab: Lab, task: Task) -> dict[str, Outcome]:
    """Measure on all devices at the same time, on those of one machine one after the other; {name: outcome}."""
    from ppexport.remote.detached import Telling

    stop, doing, lock = threading.Event(), dict[str, str](), threading.Lock()
    done: dict[str, Outcome] = {}
    with following("profile") as people:

        def tell(name: str, text: str) -> None:
            if stop.is_set():
                raise Stopped
            with lock:
                if doing.get(name) != text:
                    doing[name] = text
                    people.stage("; ".join(f"{device}: {now}" for device, now in sorted(doing.items())))

        def work(group: list[Device]) -> None:
            for device in group:
                name = device.name
                notice = _prefixed(people.notice, name)
                done[name] = measure_one(device, task, Telling(notice, lambda text, name=name: tell(name, text)))  # type: ignore[misc]
                with lock:
                    doing.pop(name, None)
                error = done[name].error
                notice("done" if error is None else str(error))

        groups = lab.groups()
        with ThreadPoolExecutor(len(groups)) as pool:
            try:
                for future in [pool.submit(work, group) for group in groups]:
                    future.result()
            except KeyboardInterrupt:
                stop.set()
                people.notice("interrupted: what runs on the devices continues, the same command again collects it")
                raise typer.Exit(EXIT_INTERRUPTED) from None
    return {device.name: done[device.name] for device in lab.devices}


def _prefixed(notice: Callable[[str], object], name: str) -> Callable[[str], object]:
    return lambda text: notice(f"{name}: {text}")


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
        for subject in outcome.result.subjects:
            s = subject["summary"]
            energy = s.get("energy")
            rows.append(
                [
                    name,
                    subject["name"],
                    *(f"{s[f'{p}_ms']:.1f}" for p in ("p50", "p90", "p99")),
                    "" if energy is None else f"{energy['joules_per_image']:.3f}",
                    "failed" if outcome.error is not None else counted(len(outcome.result.data["marks"]), "mark"),
                ]
            )
    columns = ["device", "what", "p50, ms", "p90, ms", "p99, ms", "J per image", ""]
    console.print(table("latency by device", columns, rows, numbers=2))


def lab_json(outcomes: dict[str, Outcome], without_samples: Callable[[Profile], dict[str, Any]]) -> dict[str, Any]:
    """The results and errors of a lab as `--json` writes them."""
    return {
        "devices": {
            name: {
                "error": None if outcome.error is None else str(outcome.error),
                "result": None if outcome.result is None else without_samples(outcome.result),
            }
            for name, outcome in outcomes.items()
        }
    }


def clean_lab(lab: Lab, task: Task) -> dict[str, list[str]]:
    """Stop and remove the measurements on all devices; {name: what was done}."""
    found: dict[str, list[str]] = {}
    for device in lab.devices:
        try:
            artifact = task.artifact if device.artifact is None else Path(device.artifact)
            found[device.name] = clean_there(task.of(device), artifact)
        except PpexportError as error:
            found[device.name] = [str(error)]
    return found
