"""What `export` may be asked for. Everything that can be refused is refused here, before torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ppexport.artifact import GROUP, MASKS, ONNX_FLAVOURS
from ppexport.backends.apple import INTERFACES, SET_TARGET, check_coreai, check_coreml, check_installed
from ppexport.backends.onnx import ort_format
from ppexport.cards import Card
from ppexport.errors import InputError, present, require
from ppexport.folders import artifact_target, check_same
from ppexport.mask import padded_tokens
from ppexport.quantize.bundled import CALIBRATED, Quantisation, calibration_for, check_calibration, recipe_for
from ppexport.sizes import check_capacities, check_size

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
