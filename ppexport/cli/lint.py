"""`ppexport lint`: what an edge runtime would refuse or get wrong, and what of a package leaves the Neural Engine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppexport.cli.console import emit_json, people
from ppexport.cli.options import Json
from ppexport.errors import EXIT_GATE_FAILED, InputError, counted, require

if TYPE_CHECKING:
    from rich.console import Console

    from ppexport.backends.lint_report import Finding, LintReport

EXAMPLE = "Example: ppexport lint x2_64, or model.onnx, model.tflite or model.mlpackage in its place"
ONNX, PACKAGE, ASSET, LITERT = ".onnx", ".mlpackage", ".aimodel", ".tflite"
SHOWN = 6
"""Kinds of modules that are named; the JSON has every module."""


def lint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="any .onnx or .tflite file or .mlpackage, or an artifact folder")
    ],
    length: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=N", help="give the symbolic axis AXIS of an .onnx file the length N; may be repeated"
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Report what is wrong with an ONNX model, a LiteRT file or a Core ML package on the devices that it is for.

    Of an ONNX model: what ONNX Runtime 1.15, TensorRT 10.3, OpenVINO or Core ML of iOS 16 refuses, gets wrong or runs
    slowly, and which counts, labels and other numbers are wrong in fp16, which is all that a Snapdragon NPU computes
    in. Of a LiteRT file: what its GPU accelerator refuses, computes wrong, or cannot compute in fp16. Of a Core ML
    package: which operations are known to leave the Neural Engine, which modules they come from, and how often the
    computation crosses to another unit.

    The exit code is 1 if there is an error; warnings, and what is said of a Core ML package, leave it at 0. A child
    process reads .onnx and .tflite files, with a limit of time and, on Linux, of memory.
    """
    symbols = {}
    for text in length or []:
        axis, _, number = text.rpartition("=")
        if not axis or not re.fullmatch(r"[1-9][0-9]{0,8}", number):
            raise InputError(f"--length is AXIS=N, such as batch=1, not {text!r}")
        symbols[axis] = int(number)
    if file.is_dir() and file.suffix.lower() != PACKAGE:
        from ppexport.backends.onnx.run_external import graph_bytes
        from ppexport.device.artifact import read_artifact

        artifact = read_artifact(file)
        file = artifact.graph_file
        if file.suffix.lower() == ONNX:
            graph_bytes(artifact)  # refuses a graph that names other files
    suffix = file.suffix.lower()
    if symbols and suffix in (PACKAGE, ASSET, LITERT):
        raise InputError(f"--length is for .onnx files: the shapes of a {suffix} are fixed")
    if suffix == PACKAGE:
        _lint_package(file, json)
    elif suffix == ASSET:
        raise InputError(f"{file} is a Core AI asset: nothing is known of where its operations run")
    elif suffix == LITERT:
        _lint_litert(file, json)
    elif suffix != ONNX and file.is_file():
        raise InputError(
            f"{file} is nothing that lint reads: {ONNX} and {LITERT} files, {PACKAGE} packages, and artifact folders "
            "with one of them"
        )
    else:
        _lint_onnx(file, symbols, json)


def _lint_package(path: Path, json: str | None) -> None:
    """Print where the operations of a package may run; this is information, so it never fails."""
    from ppexport.backends.coreml.package import read_package
    from ppexport.backends.coreml.placement import place

    package = read_package(path)
    # A package keeps its functions in no order: by capacity.
    names = sorted(package.functions, key=lambda name: (len(name), name))
    reports = [place(package.functions[name]) for name in names]
    emit_json(json, {"package": str(path), "functions": [report.to_dict() for report in reports]})
    console = people(json)
    for report in reports:
        console.print(
            f"{report.function}: {len(report.leaving)} of {report.operations} operations leave the Neural Engine, "
            f"{report.crossings} crossings"
        )
        if not report.leaving:
            continue
        console.print("    why: " + ", ".join(f"{reason} {count}" for reason, count in report.reasons.items()))
        console.print(f"    from: {_modules_text(report.modules)}")
    console.print("By what developers have measured; nothing here has run on a device.")


def kinds_of_modules(modules: Mapping[str, int]) -> list[tuple[str, int]]:
    """{module: operations} summed over the layers, of which a twin has many alike: layers.*.conv; the most first."""
    kinds: Counter[str] = Counter()
    for module, count in modules.items():
        kinds[re.sub(r"\b\d+\b", "*", module)] += count
    return kinds.most_common()


def _modules_text(modules: Mapping[str, int]) -> str:
    """The kinds of *modules* that have the most operations."""
    shown = kinds_of_modules(modules)
    where = ", ".join(f"{kind or 'the network itself'} {count}" for kind, count in shown[:SHOWN])
    return where + (f", and {len(shown) - SHOWN} more kinds of modules" if len(shown) > SHOWN else "")


def _lint_onnx(file: Path, symbols: dict[str, int], json: str | None) -> None:
    """Print what a runtime would object to. Ends with exit code 1 for errors."""
    require("onnx", "export")
    from ppexport.backends.onnx.lint.linting import lint_model

    report = lint_model(file, symbols=symbols)
    emit_json(json, report.to_dict())
    console = people(json)
    for f in report.findings:
        where = ", ".join(filter(None, (f.op, f"module {f.module}" if f.module else None, f.node)))
        console.print(f"{f.severity.value} {f.rule}{f' ({where})' if where else ''}: {f.message}")
        console.print(f"    way out: {f.way_out}")
    _conclude(file, report, console)


def _lint_litert(file: Path, json: str | None) -> None:
    """Print what LiteRT's GPU accelerator would object to, what is alike once. Ends with exit code 1 for errors."""
    from ppexport.backends.litert.lint.lint_tflite import lint_tflite

    report = lint_tflite(file)
    emit_json(json, report.to_dict())
    console = people(json)
    alike: dict[tuple[str, str, str, str], list[Finding]] = {}
    for f in report.findings:
        key = (f.severity.value, f.rule, f.message, f.way_out)
        alike.setdefault(key, []).append(f)
    said = ""
    for (severity, rule, message, way_out), findings in alike.items():
        if rule != said:
            console.print(f"{severity} {rule}, way out: {way_out}")
            said = rule
        modules = Counter(f.module for f in findings if f.module is not None)
        where = f", in {_modules_text(modules)}" if modules else ""
        console.print(f"    {message}: {counted(len(findings), 'time')}{where}")
    _conclude(file, report, console)


def _conclude(file: Path, report: LintReport, console: Console) -> None:
    """Print how much was found. Ends with exit code 1 for errors."""
    counts = ", ".join(counted(count, severity.value) for severity, count in report.counts.items())
    nodes, megabytes = report.facts["nodes"], report.facts["file_bytes"] / 1e6
    console.print(f"{file}: {counts}; {nodes} nodes, {megabytes:.2f} MB")
    if not report.ok:
        raise typer.Exit(EXIT_GATE_FAILED)
