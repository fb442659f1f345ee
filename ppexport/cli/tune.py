"""`ppexport tune`: the fastest runtime, number of threads and options of an artifact on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppexport.cli.console import emit_json, fail, people, progress_bars, table
from ppexport.cli.options import Checkpoint, Json, Load, Trust
from ppexport.device.runner import check_threads
from ppexport.errors import EXIT_GATE_FAILED, EXIT_INTERRUPTED, InputError, UnavailableError, counted

if TYPE_CHECKING:
    from rich.console import Console

    from ppexport.device.artifact import Artifact
    from ppexport.profile.statistics import Interval
    from ppexport.profile.tune import Setting, Tuned

EXAMPLE = "Example: ppexport tune x2_64 x2_64_ort, and again with --load 1 beside a busy neighbour"


def tune(
    artifacts: Annotated[
        list[Path],
        typer.Argument(metavar="ARTIFACT", help="artifact folders of one model and size, such as several flavours"),
    ],
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, metavar="S", help="time every setting for so many seconds, at least")
    ] = 3.0,
    threads: Annotated[
        int | None,
        typer.Option(
            callback=lambda threads: check_threads(threads),
            help="try no more threads than this; as many as there are physical cores if left out",
        ),
    ] = None,
    load: Load = 0,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="a saved parity run of the model, for machines without torch; ARTIFACT-parity if left out, which is "
            "made where it is missing",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    show: Annotated[bool, typer.Option("--show", help="measure nothing: say what is remembered")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="measure nothing: forget what is remembered")] = False,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """Find the fastest runtime, number of threads and options for an artifact on this machine, and remember them.

    All runtimes that are installed here and run the artifact take turns, with several numbers of threads and options,
    while the machine is as busy as it is now. What is shown to be faster than the default is remembered for this
    artifact on this machine, once its pictures have passed parity in the same way; `upscale`, and open_artifact with
    runtime="auto", use it from then on. --runtime and --threads win over it. The exit code is 1 where nothing passes.
    """
    from ppexport.backends.choices import choice_file, make_folder
    from ppexport.device.artifact import read_artifact
    from ppexport.files import check_file_target
    from ppexport.profile.latency_run import check_load
    from ppexport.profile.tune import best_of, settings_of
    from ppexport.profile.tune import tune as tune_one

    console, opened = people(json), [read_artifact(path) for path in artifacts]
    if show and forget:
        raise InputError("--show and --forget are different things to do: name one")
    if show or forget:
        emit_json(json, [_remembered(artifact, forget, console) for artifact in opened])
        return
    check_load(load)
    _check_same(opened)
    for artifact in opened:
        # What can be refused is refused before minutes of work.
        settings_of(artifact.path, threads, trust)
        make_folder(choice_file(artifact).parent)
        check_file_target(choice_file(artifact))
    try:
        with progress_bars() as progress:
            references = [_reference(artifact, against, checkpoint, trust, progress) for artifact in opened]
            tuned = [
                tune_one(artifact.path, reference, seconds, load, threads, trust, progress)
                for artifact, reference in zip(opened, references, strict=True)
            ]
            best = best_of(tuned, seconds, load, progress) if len(tuned) > 1 else []
    except KeyboardInterrupt:
        people("-").print("interrupted: nothing new is remembered")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    emit_json(json, _to_dict(tuned, best, seconds, load))
    _print(tuned, best, load, console)
    # Last: a disk that is full then loses nothing that was measured.
    kept = [one.keep(load) for one in tuned]
    for one, file in zip(tuned, kept, strict=True):
        if file is None:
            fail(f"{one.artifact.path}: nothing passes parity here, so nothing is remembered of it any more")
        else:
            console.print(f"remembered: {file}")
    if None in kept:
        raise typer.Exit(EXIT_GATE_FAILED)


def _check_same(opened: list[Artifact]) -> None:
    """Raise InputError for artifacts that do not do the same work, or are the same one."""
    from ppexport.backends.choices import artifact_hash

    kinds = {(a.manifest.weights["sha256"], a.size, a.scale) for a in opened}
    if len(kinds) > 1:
        raise InputError("artifacts that are tuned together are of one model, size and scale: tune the others alone")
    if len({artifact_hash(a) for a in opened}) < len(opened):
        raise InputError("an artifact is named twice, or is a copy of another one, with which it shares its choice")


def _reference(artifact: Artifact, against: Path | None, checkpoint: Path | None, trust: bool, progress: Any) -> Path:
    """The parity run that settings of *artifact* are judged by: *against*, the one beside the artifact, or a new one.

    Raises InputError for one that is of something else or did not pass, UnavailableError where torch is missing.
    """
    from ppexport.backends.backend import open_artifact
    from ppexport.parity.against import read_saved
    from ppexport.parity.run import REPORT, run_parity

    place = artifact.path.resolve()
    folder = against or place.with_name(f"{place.name}-parity")
    if against is None and not (folder / REPORT).exists():
        if find_spec("torch") is None:
            raise UnavailableError(
                "nothing is chosen that parity has not passed here, and torch is not installed: run `ppexport parity` "
                "on a machine with torch, copy its folder, and name it with --against RUN"
            )
        from ppexport.parity.references import reference_network

        with open_artifact(artifact.path, trust=trust) as runner:
            run_parity(reference_network(artifact, checkpoint), runner, folder, progress)
    if not read_saved(folder, artifact).passed:
        raise InputError(f"the parity run in {folder} did not pass: `ppexport parity` shows why, and nothing is chosen")
    return folder


def _remembered(artifact: Artifact, forget: bool, console: Console) -> dict[str, Any]:
    """Print, and return for JSON, what is remembered of *artifact*, or that it is not any more."""
    from ppexport.backends import choices

    if forget:
        had = choices.forget(artifact)
        console.print(f"{artifact.path}: {'forgotten' if had else 'nothing was remembered'}")
        return {"artifact": str(artifact.path), "forgotten": had}
    choice = choices.recall(artifact)
    if choice is None:
        console.print(f"{artifact.path}: nothing is remembered, the default is used")
        return {"artifact": str(artifact.path), "choice": None}
    target = choice.target
    console.print(f"{artifact.path}: {target.name}, {target.setting or 'as it is by default'}; chosen {choice.created}")
    chosen = {"runtime": target.name, "threads": target.threads, "options": dict(target.options)}
    return {
        "artifact": str(artifact.path),
        "choice": {**chosen, "created": choice.created, "measured": dict(choice.measured)},
    }


def _to_dict(tuned: list[Tuned], best: list[tuple[Tuned, Interval]], seconds: float, load: int) -> dict[str, Any]:
    """All that was found, for JSON."""
    from ppexport.backends.choices import artifact_hash, installed, this_machine

    return {
        "format": "ppexport-tune",
        "version": 1,
        "machine": this_machine(),
        "seconds": seconds,
        "load": load,
        "artifacts": [
            {
                "artifact": str(one.artifact.path),
                "sha256": artifact_hash(one.artifact),
                "parity_run": str(one.reference),
                "versions": {s.target.runtime: installed(s.target.runtime) for s in one.settings},
                "settings": [setting.to_dict() for setting in one.settings],
            }
            for one in tuned
        ],
        "best": [{"artifact": str(one.artifact.path), "ratio": vars(ratio)} for one, ratio in best],
    }


def _called(setting: Setting) -> str:
    """What people call *setting*."""
    return f"{setting.target.name}, {setting.target.setting or 'default'}"


def _figure(found: Interval | None, digits: int) -> str:
    """The middle of an interval with its ends."""
    if found is None:
        return ""
    low, middle, high = (f"{value:.{digits}f}" for value in (found.low, found.middle, found.high))
    return f"{middle} ({low}-{high})"


def _print(tuned: list[Tuned], best: list[tuple[Tuned, Interval]], load: int, console: Console) -> None:
    """Print the table, why something is no choice, and the best of all."""
    rows = [
        [
            one.artifact.path.name,
            # A line for each option: side by side they would be cut anywhere.
            _called(setting).replace(", ", ",\n").replace(",\n", ", ", 1),
            _figure(setting.ms, 1),
            _figure(setting.ratio, 2),
            {None: "", True: "pass", False: "FAIL"}[setting.passed] + "\nchosen" * setting.chosen,
        ]
        for one in tuned
        for setting in one.settings
    ]
    beside = f", beside {counted(load, 'busy neighbour')}" if load else ""
    columns, alone = ["artifact", "setting", "ms (95 %)", "of the default", "parity"], len(tuned) == 1
    title = f"{tuned[0].artifact.path.name if alone else 'artifacts'} in turns{beside}"
    console.print(table(title, columns[alone:], [row[alone:] for row in rows], numbers=2 - alone))
    for one in tuned:
        for setting in one.settings:
            if setting.reason:
                console.print(f"{one.artifact.path.name} in {_called(setting)}: {setting.reason}")
    for one, ratio in best:
        if one.chosen is not None:
            first = "best of all: " if one is best[0][0] else ""
            of = f"{_figure(ratio, 2)} of the choice for {tuned[0].artifact.path.name}"
            console.print(f"{first}{one.artifact.path.name} in {_called(one.chosen)}: {of}")
