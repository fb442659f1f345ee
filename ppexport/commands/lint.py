"""`ppexport lint`: what an edge runtime would object to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppexport.commands.options import Json
from ppexport.console import emit_json, people
from ppexport.errors import EXIT_GATE_FAILED, require

EXAMPLE = "Example: ppexport lint model.onnx"


def lint(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="any ONNX file, or an artefact folder")],
    json: Json = None,
) -> None:
    """What in an ONNX file would fail or run slowly on ONNX Runtime 1.15, TensorRT 10.3 or Core ML of iOS 16."""
    require("onnx", "export")
    from ppexport.backends.onnx.lint import lint_model

    if file.is_dir():
        from ppexport.artifact import read_artifact

        file = read_artifact(file).model_file
    report = lint_model(file)
    emit_json(json, report.to_dict())
    console = people(json)
    for f in report.findings:
        where = ", ".join(filter(None, (f.op, f"module {f.module}" if f.module else None, f.node)))
        console.print(f"{f.severity.value} {f.rule}{f' ({where})' if where else ''}: {f.message}")
        console.print(f"    way out: {f.way_out}")
    counts = ", ".join(f"{count} {severity.value}s" for severity, count in report.counts.items())
    facts = report.facts
    console.print(f"{file}: {counts}; {facts.nodes} nodes, {facts.file_bytes / 1e6:.2f} MB")
    if not report.ok:
        raise typer.Exit(EXIT_GATE_FAILED)
