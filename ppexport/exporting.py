"""What a long chain of large temporary tensors does to memory, and the way out."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from ppexport.backends.coreai.convert_asset import build_for_coreai
from ppexport.backends.coreml.apple import INTERFACES, SET_TARGET, check_coreai, check_coreml, check_installed
from ppexport.backends.coreml.convert import Options, build_for_coreml
from ppexport.backends.onnx import ort_format
from ppexport.backends.onnx.export_onnx import Shape, Step, build
from ppexport.backends.onnx.quantised import build_quantised, module_ranges, origin, placement
from ppexport.backends.tensorrt.export_tensorrt import activation_bytes, build_for_tensorrt
from ppexport.device.artifact import GROUP, MASKS, ONNX_FLAVOURS, Manifest, sha256_path, write_manifest
from ppexport.device.mask import padded_tokens
from ppexport.device.sizes import check_capacities, check_size
from ppexport.errors import InputError, present, require
from ppexport.folders import Run, artifact_target, check_same, new_folder, run_folder
from ppexport.networks.card import Card
from ppexport.networks.load import card_of
from ppexport.quantize.bundled import CALIBRATED, Quantisation, calibration_for, check_calibration, recipe_for
from ppexport.twin.twin import StaticTwin, make_twin

M_MMAP_THRESHOLD = -3
"""The number of the setting in glibc's malloc.h."""
LARGE = 1 << 20


def return_large_blocks() -> None:
    """Have glibc return every freed block of a MiB or more to the system at once, in this process, from now on.

    Left alone it keeps blocks of up to 32 MiB, and while a graph is traced small objects settle between them: exporting
    a 256x256 image then holds several times what its tensors need. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGE)


# What `export` may be asked for. Everything that can be refused is refused here, before torch is loaded.


BACKENDS = ("onnx", "tensorrt", "coreml", "coreai")
APPLE = ("coreml", "coreai")
PRECISIONS = ("fp32", *CALIBRATED)
SET_STEPS = {"onnx": 32, "tensorrt": 4, "coreml": 4, "coreai": 4}
"""Steps of a capacity set. Of ATD-light's multiply-adds a step of 32 is 0.7 %, and on one symbolic axis it costs
nothing; in a TensorRT engine every step is a profile, which is built, stored and loaded like an engine of its own, and
in a Core ML package or a Core AI asset a function."""
TARGET, INTERFACE = SET_TARGET, INTERFACES[0]
"""What a Core ML package is, unless something else is asked for."""
NEEDED = {
    "onnx": {"onnxsim": "export"},
    "tensorrt": {"onnxsim": "export"},
    "coreml": {"coremltools": "coreml"},
    "coreai": {"coreai_torch": "coreai"},
}
"""{backend: {module: the extra that installs it}}."""


@dataclass(frozen=True)
class Choices:
    """What an export will make."""

    out: Path
    size: tuple[int, int]
    flavour: str
    capacities: tuple[int, ...]
    mask: str
    quantisation: Quantisation | None


def check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raise InputError unless *value* is one of *known*."""
    if value not in known:
        raise InputError(f"{what} is one of {', '.join(known)}, not {value!r}")


def capacity_set(size: tuple[int, int], steps: int = SET_STEPS["onnx"]) -> list[int]:
    """At most *steps* even capacities for LR images of *size* (h, w), the last one full."""
    tokens = padded_tokens(check_size(size))
    return sorted({-(-tokens * i // (steps * GROUP)) * GROUP for i in range(1, steps + 1)})


def choose_shape(
    arch: str, size: tuple[int, int], capacities: Sequence[int] | None, mask: str | None, flavour: str
) -> tuple[tuple[int, ...], str]:
    """The capacities and the place of the mask of the graph to make. Raises InputError for an impossible request."""
    pure_pass = MASKS[arch] != ("none",)
    # Who chooses a capacity knows the mask: the flavour made for speed does not compute it again.
    from_host = flavour == "ort" and capacities is not None and len(check_capacities(capacities, size)) > 1
    mask = mask or (("input" if from_host else "graph") if pure_pass else "none")
    check_choice("mask", mask, MASKS[arch])
    tokens = padded_tokens(size)
    if capacities is None:
        return (tokens,), mask
    chosen = check_capacities(capacities, size)
    if not pure_pass and chosen != (tokens,):
        raise InputError(f"{arch} has no pure tokens, so every token needs a slot: leave the capacities out")
    return chosen, mask


def choose_flavour(backend: str, precision: str, flavour: str | None, pad_heads: bool) -> str:
    """The flavour of the graph to make. Raises InputError for an impossible request."""
    check_choice("backend", backend, BACKENDS)
    if backend in APPLE:
        if flavour not in (None, "portable"):
            raise InputError("flavours are for --backend onnx: leave it out")
        return "portable"
    check_choice("precision", precision, PRECISIONS)
    if backend == "tensorrt":
        if flavour not in (None, "tensorrt"):
            raise InputError("flavours are for --backend onnx: leave it out, and say --no-pad-heads for plain heads")
        return "tensorrt" if pad_heads else "portable"
    check_choice("flavour", flavour or "portable", ONNX_FLAVOURS)
    if precision != "fp32" and flavour == "ort":
        raise InputError(f"{precision} is written into flavour portable: leave --flavour out")
    return flavour or "portable"


def choose_quantisation(
    card: Card, backend: str, precision: str, calibration: str | Path | None, recipe: str | Path | None
) -> Quantisation | None:
    """What a calibration is needed for, None where nothing is. Raises InputError for files that would not be used.

    fp16 for TensorRT has fixed rules; with a calibration its audit comes on top.
    """
    activations = backend == "coreml" and precision == "w8a8"
    int8 = precision in ("int8", "mixed") or activations
    if recipe is not None and not int8:
        raise InputError("--recipe is for --precision int8 or mixed, or w8a8 of --backend coreml")
    if not activations and (backend in APPLE or precision == "fp32"):
        if calibration is not None:
            raise InputError(
                "--calibration is for --precision fp16, int8 or mixed of --backend onnx or tensorrt, and for w8a8 of "
                "coreml"
            )
        return None
    if backend == "tensorrt" and precision == "fp16" and calibration is None:
        return None
    measured = calibration_for(card, None if calibration is None else Path(calibration))
    check_calibration(measured, card)
    chosen, chosen_from = recipe_for(card, None if recipe is None else Path(recipe))
    if activations and chosen.weight_bits != 8:
        raise InputError(f"w8a8 of --backend coreml has weights of 8 bits, the recipe says {chosen.weight_bits}")
    return Quantisation(precision, measured, chosen, chosen_from)


def check_format(backend: str, precision: str, file_format: str) -> None:
    """Raise InputError unless a file of *file_format* can be written."""
    check_choice("format", file_format, ort_format.FORMATS)
    if file_format == "ort" and backend != "onnx":
        raise InputError("--format ort is for --backend onnx")
    if file_format == "ort" and precision not in ort_format.PRECISIONS:
        raise InputError(
            f"--format ort is for --precision {' or '.join(ort_format.PRECISIONS)}: in its own format ONNX Runtime "
            "writes fp16 back to fp32"
        )


def check_options(backend: str, pad_heads: bool, target: str, interface: str, keep: str | Path | None) -> None:
    """Raise InputError for an option that *backend* would not use."""
    wrong = {
        "--no-pad-heads is for --backend tensorrt": backend != "tensorrt" and not pad_heads,
        "--target is for --backend coreml": backend != "coreml" and target != TARGET,
        "--interface is for --backend coreml": backend != "coreml" and interface != INTERFACE,
        "--keep is for ONNX graphs: --backend onnx or tensorrt": backend in APPLE and keep is not None,
    }
    for message, given in wrong.items():
        if given:
            raise InputError(message)


def check_replaceable(out: Path, card: Card, backend: str, size: tuple[int, int]) -> None:
    """Raise InputError where *out* holds an artefact of another model, size or backend."""
    # What TensorRT builds engines from is ONNX.
    kind = backend if backend in APPLE else "onnx"
    way_out = "say --force to replace it, or name another folder"
    weights = present(card.weights, f"the weights of card {card.name}").sha256
    check_same(out, kind, card.name, card.arch, card.scale, weights, list(size), way_out)


def check_request(
    card: Card,
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
) -> Choices:
    """What the arguments of `export` mean for the network of *card*, whose weights are known.

    Raises PpexportError for everything that can be known to fail without the network itself.
    """
    flavour = choose_flavour(backend, precision, flavour, pad_heads)
    check_options(backend, pad_heads, target, interface, keep)
    check_format(backend, precision, file_format)
    size = check_size(size)
    out = artifact_target(out)
    if not force:
        check_replaceable(out, card, backend, size)
    if keep is not None and out in (Path(keep).resolve(), *Path(keep).resolve().parents):
        raise InputError("the intermediate graphs cannot be kept inside the artefact folder")
    chosen, where = choose_shape(card.arch, size, capacities, mask, flavour)
    if backend == "coreml":
        check_coreml(precision, target, interface, chosen)
        check_installed()
    if backend == "coreai":
        check_coreai(precision)
    for module, extra in NEEDED[backend].items():
        require(module, extra)
    return Choices(
        out, size, flavour, chosen, where, choose_quantisation(card, backend, precision, calibration, recipe)
    )


# Network -> artefact folder, whole or not at all.


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
