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
        typer.Option(
            "--record", help="also write the figures into latency.yaml and numerics.yaml of the bundled models"
        ),
    ] = False,
    json: Json = None,
) -> None:
    """Draw one HTML page from saved runs: parity, latency, time by layer, quality against time and size, pictures.

    The page is one file that loads nothing. It is drawn from the folders alone, so that runs of several machines fit
    on one page. --record needs a checkout of ppexport.
    """
    from ppexport.report.material import gather
    from ppexport.report.page import write_page
    from ppexport.report.records import record_latency, record_parity

    check_file_target(out)
    material = gather(folders)
    write_page(material, out)
    written = [*record_latency(material.profiles), *record_parity(material.parities)] if record else []
    counts = {"parity": len(material.parities), "profiles": len(material.profiles), "layers": len(material.layers)}
    size = out.stat().st_size
    emit_json(json, {"report": str(out), "bytes": size, **counts, "recorded": list(map(str, written))})
    console = people(json)
    console.print(f"{out}: {size / 1e6:.2f} MB, {counts['parity']} parity and {counts['profiles']} profile runs")
    for path in written:
        console.print(f"recorded in {path}")
