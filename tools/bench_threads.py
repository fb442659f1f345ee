"""Runtimes, threads and options beside busy neighbours, to choose defaults by: tools/bench_threads.py --help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppexport.cli.console import fail, progress_bars
from ppexport.device.machine import cpu_name, versions
from ppexport.device.neighbours import MOST
from ppexport.device.target import Target, runtimes
from ppexport.errors import PpexportError
from ppexport.profile.statistics import Interval
from ppexport.profile.tune import race, settings_of


def markdown(targets: list[Target], found: dict[int, list[tuple[Interval, Interval]]]) -> str:
    """A table with a row for every setting; *found* is {busy neighbours: what `race` returns}.

    A setting loses, at a load, what it takes more than the fastest there; the last column is the most of all loads.
    """
    heads = [f"{what}, {load} busy" for load in found for what in ("ms (95 %)", "of the first (95 %)")]
    lines = [f"| {' | '.join(['setting', *heads, 'loses at most'])} |", "|---" * (len(heads) + 2) + "|"]
    for i, target in enumerate(targets):
        cells = [", ".join(filter(None, (target.name, target.setting or "default")))]
        loss = 0.0
        for figures in found.values():
            ms, ratio = figures[i]
            cells += [f"{f.middle:.{d}f} ({f.low:.{d}f}-{f.high:.{d}f})" for f, d in ((ms, 1), (ratio, 2))]
            loss = max(loss, ratio.middle / min(other.middle for _, other in figures) - 1)
        lines.append(f"| {' | '.join(cells)} | {100 * loss:.0f} % |")
    return "\n".join(lines)


def bench(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Time every setting for this long at each load.")
    ] = 10.0,
    load: Annotated[
        list[int] | None,
        typer.Option(min=0, max=MOST, help="Busy neighbours; may be repeated; 0, 1 and 2 if left out."),
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="This runtime only; all that are installed if left out.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads, at most.")] = None,
) -> None:
    """Measure all settings that `ppexport tune` tries, in turns, beside 0, 1 and 2 busy neighbours.

    Prints one Markdown table. Parity is not looked at, and nothing is remembered.
    """
    try:
        targets = [t for t in settings_of(artifact, threads, False) if runtime in (None, t.runtime)]
        with progress_bars() as progress:
            found = {
                n: race(targets, seconds, n, lambda what, *steps, n=n: progress(f"{what}, {n} busy", *steps))
                for n in load or (0, 1, 2)
            }
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None
    packages = sorted({package for t in targets for package in runtimes()[t.runtime].packages})
    said = ", ".join(f"{name} {version}" for name, version in versions(packages).items())
    print(f"{artifact.name}; {cpu_name('/')}; {said}; {seconds:g} s a setting and load, in turns\n")
    print(markdown(targets, found))


if __name__ == "__main__":
    typer.run(bench)
