"""What ONNX Runtime's own kernels take for every part of the network: python tools/kernel_floors.py --help."""

from __future__ import annotations

import os

# Before torch is loaded: idle OpenMP threads that spin slow every other candidate.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path
from typing import Annotated

import typer
from floors.measuring import Wish, measure
from floors.tables import markdown, tables
from peers import report
from peers.comparing import open_card

from ppexport.cli.console import check_json, emit_json, fail, people, table
from ppexport.cli.options import parse_size
from ppexport.errors import PpexportError

ROOT = Path(__file__).resolve().parents[1]
SPEED = "SPEED.md"

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)


@app.command(epilog="Example: python tools/kernel_floors.py pp_atd_light_x2 --rounds 20 --json floors.json --write")
def kernel_floors(
    model: Annotated[str, typer.Argument(help="A bundled PP-ATD-light, or a folder with a card.yaml and its weights.")],
    size: Annotated[str, typer.Option(help="LR size HxW; the card's where it is left out.")] = "",
    work: Annotated[Path, typer.Option(help="Folder of exported graphs, used again.")] = ROOT / "runs" / "peers",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every formulation is timed twice in each.")] = 20,
    seconds: Annotated[float, typer.Option(min=0, help="After so many seconds no further round begins.")] = 900.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of every candidate.")] = 2,
    write: Annotated[bool, typer.Option("--write", help=f"Write into {SPEED} beside the card.")] = False,
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", callback=check_json, help="Write all times as JSON; - is stdout."),
    ] = None,
) -> None:
    """Measure the best stock kernel of every part of a model's dense network, and set the artefact beside their sum.

    Every part is written in one or more ways as a small graph; all ways of a part have to compute the same. They take
    turns with the dense artefact of flavour `ort` and with sgemm, whose rate gives the arithmetic bound.

    For clean numbers nothing else may run.
    """
    try:
        card, folder = open_card(model)
        speed = folder / SPEED if write else None
        if speed is not None:
            report.read_speed(speed, card.name, report.FLOORS)
        one = parse_size(size) if size else card.default_size
        console = people(json)
        floors = measure(Wish(model, one, work, rounds, seconds, threads), lambda line: console.print(line))
        for made in tables(floors):
            console.print(table(made.title, made.columns, made.rows))
        emit_json(json, floors.to_dict())
        if speed is not None:
            report.write_speed(speed, card.name, report.FLOORS, markdown(floors))
            console.print(f"written to {speed}")
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
