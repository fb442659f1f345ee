"""Network -> artefact folder, whole or not at all."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from ppexport.artifact import Manifest, sha256_path, write_manifest
from ppexport.backends.coreai.build import build_for_coreai
from ppexport.backends.coreml.build import Options, build_for_coreml
from ppexport.backends.onnx import ort_format
from ppexport.backends.onnx.build import Shape, Step, build
from ppexport.backends.tensorrt.build import activation_bytes, build_for_tensorrt
from ppexport.cards import Card
from ppexport.errors import present
from ppexport.export_options import APPLE, INTERFACE, TARGET, check_replaceable, check_request
from ppexport.folders import Run, new_folder, run_folder
from ppexport.networks.load import card_of
from ppexport.quantize.build import build_quantised, origin, placement
from ppexport.quantize.layer_inputs import module_ranges
from ppexport.twin.build import StaticTwin, make_twin

PACKAGES = (
    "ppexport",
    "torch",
    "onnx",
    "onnxsim",
    "onnxruntime",
    "coremltools",
    "coreai-core",
    "coreai-torch",
    "numpy",
)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of *packages* that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def package_versions() -> dict[str, str]:
    """Versions of what an export depends on."""
    return {"python": platform.python_version(), **installed_versions(PACKAGES)}


def describe(
    twin: StaticTwin,
    card: Card,
    backend: str,
    precision: str,
    shape: Shape,
    files: dict[str, str],
    engine: dict[str, Any],
) -> Manifest:
    """The manifest of an artefact made from *twin*, whose *backend* is "onnx", "coreml" or "coreai"."""
    weights = present(card.weights, f"the weights of card {card.name}")
    return Manifest(
        backend=backend,
        name=card.name,
        arch=card.arch,
        options=card.options.model_dump() if card.options else {},
        scale=twin.scale,
        size=list(twin.size),
        precision=precision,
        flavour=twin.flavour,
        capacities=list(shape.capacities),
        mask=shape.mask,
        tokens=twin.tokens,
        files=files,
        weights=weights.model_dump(),
        card_sha256=card.hash(),
        licence=card.licence,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=package_versions(),
        engine=engine,
        gates={name: gate.model_dump(exclude_none=True) for name, gate in card.gates.items()},
    )


GRAPHS = Run("set of intermediate graphs", ("1-traced.onnx", "2-simplified.onnx", "3-fp32.onnx"), Path.is_dir)


def export(
    network: nn.Module,
    *,
    backend: str,
    size: tuple[int, int],
    out: str | Path,
    precision: str = "fp32",
    capacities: Sequence[int] | None = None,
    mask: str | None = None,
    flavour: str | None = None,
    pad_heads: bool = True,
    target: str = TARGET,
    interface: str = INTERFACE,
    file_format: str = "onnx",
    calibration: str | Path | None = None,
    recipe: str | Path | None = None,
    keep: str | Path | None = None,
    force: bool = False,
    step: Step = lambda stage: None,
) -> Path:
    """Export *network* for LR images of *size* (h, w), before padding, into the artefact folder *out*.

    *backend* is "onnx", or "tensorrt": ONNX as well, from which `ppexport build` makes an engine, with *precision*
    "fp32" or "fp16", and heads padded to 16 channels unless *pad_heads* is False. *capacities* None is full capacity,
    exact for every image; several, ascending multiples of 128 such as `capacity_set(size)`, are a capacity set: the
    runner takes the smallest that holds an image. Beyond the largest, surplus tokens are treated as pure. *mask*
    "graph" computes the Pure-Pass mask inside, "input" makes it a second input; None is "input" for a capacity set of
    the flavour "ort", else "graph". *flavour* "ort" is for ONNX Runtime on a CPU, 1.23 or newer, else "portable".
    *backend* "coreml" is a package for *target* "iOS16" to "iOS18", with *precision* "fp32", "fp16", "w8" or, by a
    calibration and from "iOS17" on, "w8a8", whose *interface* is of "tensor"s or "image"s; "coreai" an asset of "fp32"
    or "fp16". For ONNX and TensorRT *precision* may also be "fp16", "int8" or "mixed" by a *calibration*, a file that
    `ppexport calibrate` wrote, or the bundled model's own; *recipe* says what becomes int8. *file_format* "ort" also
    converts the ONNX file to what ONNX Runtime Mobile reads, which is then the artefact's model. *keep* receives
    intermediate ONNX graphs, *step* receives every stage. An older artefact in *out* is replaced; *force* True replaces
    also one of another model, size or backend. Returns *out*. Raises InputError, TwinError or
    ExportError, UnavailableError where a package is missing or too new; *out* is then as it was.
    """
    card = card_of(network)
    made = check_request(
        card,
        backend=backend,
        size=size,
        out=out,
        precision=precision,
        capacities=capacities,
        mask=mask,
        flavour=flavour,
        pad_heads=pad_heads,
        target=target,
        interface=interface,
        file_format=file_format,
        calibration=calibration,
        recipe=recipe,
        keep=keep,
        force=force,
    )
    out, wish = made.out, made.quantisation
    shape = Shape(made.capacities, made.mask)
    kept = Path(keep) if keep else None
    # What TensorRT builds engines from is ONNX.
    kind = backend if backend in APPLE else "onnx"
    with new_folder(out) as folder, run_folder(kept, GRAPHS) if kept else nullcontext():
        if not force:
            check_replaceable(out, card, backend, made.size)
        step("building the twin")
        twin = make_twin(network, made.size, shape.capacities[-1], made.flavour)
        engine: dict[str, Any] = {}
        if backend == "coreml":
            options = Options(precision, target, interface, shape.mask)
            if wish is not None:
                options.check(shape.capacities)
                step("finding the ranges")
                options = replace(options, ranges=module_ranges(network, wish.calibration, wish.recipe))
            name = build_for_coreml(twin, card, folder, shape.capacities, options, step)
            engine = {"target": target, "interface": interface}
            if wish is not None:
                engine["quantisation"] = {**origin(wish), "int8": {**placement(wish), "layers": len(options.ranges)}}
        elif wish is not None:
            name, said = build_quantised(twin, card, folder, shape, kept, step, wish)
            engine = {"quantisation": said}
            if backend == "tensorrt":
                engine["activation_bytes"] = activation_bytes(folder / name, shape)
        elif backend == "tensorrt":
            name = build_for_tensorrt(twin, card, folder, shape, kept, step, precision)
            engine = {"activation_bytes": activation_bytes(folder / name, shape)}
        elif backend == "coreai":
            name = build_for_coreai(twin, card, folder, shape.capacities, shape.mask, step, precision)
        else:
            name = build(twin, card, folder, shape, kept, step)
        names = [name]
        if file_format == "ort":
            step("converting to ONNX Runtime's format")
            model, required = ort_format.convert(folder / name)
            names = [model.name, name, required.name]
        files = {name: sha256_path(folder / name) for name in names}
        write_manifest(folder, describe(twin, card, kind, precision, shape, files, engine))
    return out
