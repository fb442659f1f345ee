"""`ppexport report`: runs -> one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppexport.cli.console import emit_json, people
from ppexport.cli.options import Json
from ppexport.files import check_file_target

EXAMPLE = "Example: ppexport report x2_64-parity x2_64-profile -o report.html"


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="folders of `parity` and `profile` runs")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the page to write")] = Path("report.html"),
    record: Annotated[
        bool,
        typer.Option("--record", help="also write figures to the models' latency.yaml and numerics.yaml (checkout)"),
    ] = False,
    json: Json = None,
) -> None:
    """Draw one HTML page from saved runs: parity, latency, time by layer, quality against time and size, pictures.

    The page is one file, loads nothing, and draws from the folders alone: runs of several machines fit on one page.
    """
    from ppexport.report.material import gather
    from ppexport.report.page import write_page

    check_file_target(out)
    material = gather(folders)
    written: list[Path] = []
    write_page(material, out)
    if record:
        from ppexport.report.latency_yaml import record as write_latency
        from ppexport.report.numerics_yaml import record as write_parity

        written = [*write_latency(material.profiles), *write_parity(material.parities)]
    counts = {"parity": len(material.parities), "profiles": len(material.profiles), "layers": len(material.layers)}
    emit_json(json, {"report": str(out), "bytes": out.stat().st_size, **counts, "recorded": list(map(str, written))})
    console = people(json)
    console.print(
        f"{out}: {out.stat().st_size / 1e6:.2f} MB, {counts['parity']} parity and {counts['profiles']} profile runs"
    )
    for path in written:
        console.print(f"recorded in {path}")
