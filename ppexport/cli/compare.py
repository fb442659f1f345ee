"""`ppexport compare`: two measurements, or two artifacts in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppexport.cli.console import continues_from, emit_json, people, progress_bar, table
from ppexport.cli.options import Json, Load, Threads, Trust
from ppexport.errors import EXIT_GATE_FAILED, InputError

EXAMPLE = "Example: ppexport compare x2_64-profile x2_64_new-profile --limit 1.05"


def compare(
    context: typer.Context,
    first: Annotated[
        Path, typer.Argument(metavar="A", help="the folder of a profile run, a profile.json, or an artifact folder")
    ],
    second: Annotated[
        Path | None, typer.Argument(metavar="B", help="the same; left out if A holds two subjects")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="a factor: exit with 1 if B takes more than this times A's time and the whole interval lies above it",
        ),
    ] = None,
    figure: Annotated[str, typer.Option(help="the figure that --limit judges: p50, p90 or p99")] = "p90",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="for artifacts: folder of the run; A-against-B if left out")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="for artifacts: measure 64 queries and 6 s instead of 1,024 and 60 s")
    ] = False,
    load: Load = 0,
    threads: Threads = None,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """Compare B with A: ratios of the latencies with bootstrap 95 % intervals.

    Two runs are compared as they were measured. Two artifacts are measured now, in turns A B B A, so that a change of
    the machine's speed hardly matters. With --limit the exit code is a regression gate: it is 1 if the whole interval
    lies above the limit.
    """
    from ppexport.profile.comparison import compare_interleaved, compare_offline
    from ppexport.profile.result import PROFILE, Profile
    from ppexport.profile.statistics import PERCENTILES

    if figure not in PERCENTILES:
        raise InputError(f"--figure is one of {', '.join(PERCENTILES)}, not {figure!r}")
    console = people(json)
    given = [path / PROFILE if (path / PROFILE).is_file() else path for path in (first, second) if path is not None]
    folders = [path.is_dir() for path in given]
    if any(folders) and folders != [True, True]:
        raise InputError(
            "compare takes two profile runs (folders or profile.json), a run that holds two subjects, or two artifacts"
        )
    if any(folders):
        from ppexport.device.target import choose
        from ppexport.folders import run_folder
        from ppexport.profile.latency_run import RUN, measure, plan_of, prepare

        targets = [target for path in given for target in choose(path, None, threads, trust)]
        if targets[0] == targets[1]:
            raise InputError("both are the same artifact")
        folder = out or given[0].resolve().with_name(f"{given[0].resolve().name}-against-{given[1].resolve().name}")
        context.with_resource(run_folder(folder, RUN))
        job = prepare(targets, plan_of(quick, False, load, targets), folder, None)
        with continues_from(job.journal), progress_bar("queries") as progress:
            result = compare_interleaved(measure(job, progress, console.print))
    elif out is not None or quick or load or threads is not None or trust:
        raise InputError(
            "--out, --quick, --load, --threads and --trust are for two artifact folders, which are measured"
        )
    else:
        profiles = [Profile(path) for path in given]
        result = compare_interleaved(profiles[0]) if len(profiles) == 1 else compare_offline(*profiles)
    failed = limit is not None and result.ratios[figure].low > limit
    emit_json(json, {**result.to_dict(), "limit": limit, "figure": figure, "failed": failed})
    a, b = result.a.subject, result.b.subject
    rows = [
        [name, f"{a['summary'][f'{name}_ms']:.1f}", f"{b['summary'][f'{name}_ms']:.1f}",
         f"{ratio.middle:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"]
        for name, ratio in result.ratios.items()
    ]  # fmt: skip
    how = "measured in turns" if result.interleaved else "measured at different times"
    console.print(table(f"A: {a['name']}; B: {b['name']}; {how}", ["", "A ms", "B ms", "B / A", "95 %"], rows))
    for line in result.differences:
        console.print(f"differs: {line}")
    sides = {"the run": result.a} if result.interleaved else {"A": result.a, "B": result.b}
    for name, side in sides.items():
        for mark in side.profile.data["marks"]:
            console.print(f"mark of {name}: {mark['text']}")
    if limit is not None:
        verdict = "FAIL: slower than" if failed else "pass: not shown to be slower than"
        console.print(f"{verdict} {limit:g} times A at {figure}")
    if failed:
        raise typer.Exit(EXIT_GATE_FAILED)
