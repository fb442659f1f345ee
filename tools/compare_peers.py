"""Compare a model's artefacts with other ways to run it, in time: python tools/compare_peers.py --help."""

from __future__ import annotations

import os

# Before torch is loaded: idle OpenMP threads that spin slow every other candidate.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path
from typing import Annotated

import typer
from peers import report
from peers.comparing import Wish, compare, open_card
from peers.lineup import check_keys
from peers.machine import this_machine
from peers.pictures import busy_photo
from peers.plot import plot, require_matplotlib
from peers.result import Comparison
from peers.sizes import SIZES, measure_sizes, sizes_markdown, sizes_table

from ppexport.cli.console import check_json, emit_json, fail, people, progress_bar, table
from ppexport.cli.options import parse_size
from ppexport.device.artifact import ONNX_FLAVOURS
from ppexport.device.picture import to_input
from ppexport.errors import InputError, PpexportError
from ppexport.exporting import check_choice

ROOT = Path(__file__).resolve().parents[1]
SPEED, PICTURE = "SPEED.md", "speed.png"

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)


def split_keys(text: str | None) -> list[str]:
    """Keys separated by commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def run_sizes(
    model: str,
    sizes: list[tuple[int, int]],
    flavours: list[str],
    work: Path,
    threads: int,
    rounds: int,
    seconds: float,
    speed: Path | None,
    json: str | None,
) -> None:
    """`--scale-sizes`: measure, print, write."""
    console = people(json)
    card, _ = open_card(model)
    assert card.options is not None
    pictures = [to_input(busy_photo(size, card.options.model_dump())) for size in sizes]
    with progress_bar("rounds") as progress:
        rows = measure_sizes(
            work, model, sizes, flavours, pictures, threads, rounds, seconds, lambda line: console.print(line), progress
        )
    machine = this_machine()
    made = sizes_table(rows)
    console.print(table(made.title, made.columns, made.rows))
    emit_json(json, {"machine": machine.to_dict(), "threads": threads, "sizes": [row.to_dict() for row in rows]})
    if speed is not None:
        report.write_speed(speed, card.name, report.SIZES, sizes_markdown(rows, machine, threads))
        console.print(f"written to {speed}")


def deliver(result: Comparison, speed: Path | None, json: str | None) -> None:
    """Print and write *result*."""
    console = people(json)
    for made in report.tables(result):
        console.print(table(made.title, made.columns, made.rows))
    emit_json(json, result.to_dict())
    if speed is not None:
        plot(result, speed.with_name(PICTURE))
        report.write_speed(speed, result.model, report.RACE, report.markdown(result, PICTURE))
        console.print(f"written to {speed} and {speed.with_name(PICTURE)}")


@app.command(epilog="Example: python tools/compare_peers.py pp_atd_light_x2 --rounds 20 --memory --write")
def compare_peers(
    model: Annotated[str, typer.Argument(help="A bundled PP-ATD-light, or a folder with a card.yaml and its weights.")],
    size: Annotated[str, typer.Option(help="LR size HxW; with --scale-sizes several, separated by commas.")] = "",
    work: Annotated[Path, typer.Option(help="Folder of exported graphs, used again.")] = ROOT / "runs" / "peers",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every candidate is timed twice in each.")] = 20,
    seconds: Annotated[float, typer.Option(min=0, help="After so many seconds no further round begins.")] = 600.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of every candidate.")] = 2,
    only: Annotated[str | None, typer.Option(help="Candidates, separated by commas; the baseline always runs.")] = None,
    without: Annotated[str | None, typer.Option(help="Candidates to leave out, separated by commas.")] = None,
    pure_share: Annotated[float, typer.Option(min=0, max=1, help="Share of pure pixels, about.")] = 0.389,
    memory: Annotated[bool, typer.Option("--memory", help="Also the peak memory of every candidate.")] = False,
    scale_sizes: Annotated[
        bool, typer.Option("--scale-sizes", help="Instead: time and memory of our artefacts by size.")
    ] = False,
    flavours: Annotated[
        str, typer.Option(help="With --scale-sizes: flavours to measure, separated by commas.")
    ] = ",".join(ONNX_FLAVOURS),
    write: Annotated[bool, typer.Option("--write", help=f"Write {SPEED} and {PICTURE} beside the card.")] = False,
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", callback=check_json, help="Write all times as JSON; - is stdout."),
    ] = None,
) -> None:
    """Time a model's artefacts beside PyTorch, a plain ONNX export, OpenVINO, and the arithmetic alone.

    All candidates take turns, A B C C B A, with *threads* threads each, on one picture; each time a candidate runs
    twice, and the second run, with warm caches, is timed. Ratios are taken per round and given as a median with a
    bootstrap 95 % interval. What cannot run here has a row that says why. The first run exports about ten graphs and
    compiles (several minutes); --rounds 1 does only that much.

    For clean numbers nothing else may run. OpenVINO is optional: pip install openvino.
    """
    try:
        wanted = check_keys(split_keys(only), split_keys(without))
        card, folder = open_card(model)
        speed = folder / SPEED if write else None
        if speed is not None:
            report.read_speed(speed, card.name, report.SIZES if scale_sizes else report.RACE)
            require_matplotlib()
        # Compiling takes minutes; kept beside the graphs it takes half a minute the next time.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((work / "inductor").absolute()))
        sizes = [parse_size(part) for part in split_keys(size)]
        if scale_sizes:
            named = split_keys(flavours) or list(ONNX_FLAVOURS)
            for flavour in named:
                check_choice("flavour", flavour, ONNX_FLAVOURS)
            run_sizes(model, sorted(sizes or SIZES), named, work, threads, rounds, seconds, speed, json)
            return
        if len(sizes) > 1:
            raise InputError("one --size only, but with --scale-sizes")
        one = sizes[0] if sizes else card.default_size
        wish = Wish(model, one, work, wanted, pure_share, rounds, seconds, threads, memory)
        console = people(json)
        deliver(compare(wish, lambda line: console.print(line)), speed, json)
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
