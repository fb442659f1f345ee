"""Network + backend -> artifact folder, whole or not at all."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppexport.backends.backend import Backend, BuildJob, Built, Request, backends, find_backend
from ppexport.backends.options import parse_options
from ppexport.device.artifact import Manifest, layout_fields, sha256_path, write_manifest
from ppexport.device.capacities import check_capacities, check_size
from ppexport.device.machine import versions
from ppexport.errors import InputError, present, require
from ppexport.folders import Run, artifact_target, check_same, new_folder, run_folder
from ppexport.networks.architecture import Architecture, find_architecture
from ppexport.networks.card import Card
from ppexport.quantize.recipe import Quantisation, calibration_for, check_calibration, recipe_for

if TYPE_CHECKING:
    from torch import nn

DEFAULT_PRECISION = "fp32"
PACKAGES = (
    "ppexport", "torch", "onnx", "onnxsim", "onnxruntime", "coremltools", "coreai-core", "coreai-torch", "litert-torch",
    "ai-edge-litert", "ai-edge-quantizer", "executorch", "onnxruntime-qnn", "numpy",
)  # fmt: skip
GRAPHS = Run("set of intermediate graphs", ("1-traced.onnx", "2-simplified.onnx", "3-fp32.onnx"), Path.is_dir)
WAY_OUT = "say --force to replace it, or name another folder"


def check_choice(what: str, value: str, known: Iterable[str], hint: str = "") -> None:
    """Raise InputError, which ends with *hint*, unless *value* is one of *known*."""
    if value not in (names := tuple(known)):
        raise InputError(f"{what} is one of {', '.join(names)}, not {value!r}{hint}")


def choose_capacities(
    architecture: Architecture, size: tuple[int, int], capacities: Sequence[int] | None
) -> tuple[int, ...]:
    """The capacities of the graph to make: full where none are given, () for a network without slots."""
    layout = architecture.layout
    if not layout.group:
        if capacities is not None:
            raise InputError(f"{architecture.name} computes the same for every image: leave the capacities out")
        return ()
    full = (layout.tokens(size),)
    chosen = full if capacities is None else check_capacities(capacities, size, layout)
    if architecture.masks == ("none",) and chosen != full:
        raise InputError(
            f"{architecture.name} has no pure tokens, so every token needs a slot: leave the capacities out"
        )
    return chosen


def choose_quantisation(
    card: Card, backend: Backend, precision: str, calibration: str | Path | None, recipe: str | Path | None
) -> Quantisation | None:
    """The calibration and recipe of the file to make, None where it needs none.

    Raises InputError for files that would not be used, or that are of other weights.
    """
    for what, file, takes in (
        ("recipe", recipe, backend.recipes),
        ("calibration", calibration, backend.calibrated | backend.may_calibrate),
    ):
        if file is not None and precision not in takes:
            if not takes:
                raise InputError(f"--backend {backend.name} takes no --{what}: leave it out")
            known = " or ".join(sorted(takes))
            raise InputError(f"--{what} is for --precision {known} of --backend {backend.name}, not for {precision}")
    if calibration is None and precision not in backend.calibrated:
        return None
    measured = calibration_for(card, None if calibration is None else Path(calibration))
    check_calibration(measured, card)
    chosen, chosen_from = recipe_for(card, None if recipe is None else Path(recipe))
    return Quantisation(precision, find_architecture(card.arch), measured, chosen, chosen_from)


def export(
    network: nn.Module | tuple[Card, Path],
    *,
    backend: str,
    size: tuple[int, int],
    out: str | Path,
    precision: str = DEFAULT_PRECISION,
    capacities: Sequence[int] | None = None,
    mask: str | None = None,
    calibration: str | Path | None = None,
    recipe: str | Path | None = None,
    force: bool = False,
    step: Callable[[str], None] = lambda stage: None,
    **options: Any,
) -> Path:
    """Export *network* for one LR size into an artifact folder.

    Args:
        network: of a registered architecture, such as `load_network` returns; or a card and its weights file, as
            `card_with_weights` returns: they are loaded after everything that can be checked without torch.
        backend: "onnx"; "tensorrt", ONNX from which `ppexport build` makes an engine; "coreml"; "coreai"; "qnn"; "web";
            or a backend of another package. `ppexport backends` lists them with their precisions and options.
        size: (h, w) of the LR images, before padding.
        out: the folder. An older artifact in it is replaced if it is of the same model, size and backend.
        precision: "fp32", or what else the backend offers.
        capacities: slots of category attention, ascending multiples of 128; None is full capacity, exact for every
            image. Of several, such as `capacity_set(size)`, the runner takes the smallest that holds an image. Beyond
            the largest, surplus tokens are treated as pure.
        mask: "graph" computes the Pure-Pass mask inside, "input" makes it a second input; None is "input" for a
            capacity set of the flavour "ort" and for adaptive colour centres, else "graph".
        calibration: a file that `ppexport calibrate` wrote; bundled models have one of their own.
        recipe: what becomes int8, as `ppexport quantize-search` wrote it.
        force: replace an artifact of another model, size or backend as well.
        step: receives the name of every stage.
        options: the backend's own, such as flavour="ort" of "onnx" or target="iOS17" of "coreml".

    Returns:
        The folder *out*.

    Raises:
        InputError, TwinError, ExportError: the request is impossible, or a stage or check failed; *out* is then as it
            was.
        UnavailableError: a package is missing or too new.
    """
    if isinstance(network, tuple):
        card, weights = network
    else:
        from ppexport.networks.load import card_of

        card, weights = card_of(network), None
    made_by, architecture = find_backend(backend), find_architecture(card.arch)
    # The default, which a backend may lack, is nothing that anybody has to have asked for.
    hint = f"; say --precision {next(iter(made_by.precisions))}" if precision == DEFAULT_PRECISION else ""
    check_choice(f"precision of --backend {backend}", precision, made_by.precisions, hint)
    known_gates = {"twin", *(name for registered in backends().values() for name in registered.precisions)}
    for name in card.gates:
        check_choice(f"a gate of the card of {card.name}", name, sorted(known_gates))
    own = parse_options(made_by, options)
    size, out = check_size(size, architecture.layout), artifact_target(out)
    chosen = choose_capacities(architecture, size, capacities)
    adaptive = getattr(card.options, "centres", "fixed") == "adaptive"
    if mask is None:
        host = "input" in architecture.masks and (adaptive or made_by.prefers_host_mask(own, len(chosen) > 1))
        mask = "input" if host else architecture.masks[0]
    check_choice(f"mask of {architecture.name}", mask, architecture.masks)
    if adaptive and mask != "input":
        raise InputError("adaptive colour centres are chosen outside the graph, so the mask is an input: mask=input")
    if not force:
        check_replaceable(out, made_by, card, size)
    keep = getattr(own, "keep", None)
    if keep is not None and out in (keep.resolve(), *keep.resolve().parents):
        raise InputError("the intermediate graphs cannot be kept inside the artifact folder")
    request = Request(card, architecture, size, precision, chosen, mask, own)
    made_by.check(request)
    quantisation = choose_quantisation(card, made_by, precision, calibration, recipe)
    for module in made_by.modules:
        require(module, made_by.extra)
    if weights is not None:
        step("loading the network")
    from ppexport.networks.load import check_network, load_card

    loaded = check_network(network if weights is None else load_card(card, weights))
    # Another process may have written there since the first check; from here on none can.
    with new_folder(out) as folder, run_folder(keep, GRAPHS) if keep else nullcontext():
        if not force:
            check_replaceable(out, made_by, card, size)
        step("building the twin")
        job = BuildJob(**vars(request), quantisation=quantisation, network=loaded, folder=folder, step=step)
        built = made_by.build(job)
        files = {name: sha256_path(folder / name) for name in built.files}
        write_manifest(folder, describe(job, built, made_by, files))
    return out


def check_replaceable(out: Path, backend: Backend, card: Card, size: tuple[int, int]) -> None:
    """Raise InputError where the folder holds an artifact of another model, size or backend."""
    weights = present(card.weights, f"the weights of card {card.name}").sha256
    kind = backend.kind or backend.name
    check_same(out, kind, card.name, card.arch, card.scale, weights, list(size), WAY_OUT)


def describe(job: BuildJob, built: Built, backend: Backend, files: dict[str, str]) -> Manifest:
    """The manifest of what was *built*, whose *files* have these hashes."""
    card = job.card
    weights = present(card.weights, f"the weights of card {card.name}")
    return Manifest(
        backend=backend.kind or backend.name,
        name=card.name,
        arch=card.arch,
        options=card.options.model_dump() if card.options else {},
        scale=card.scale,
        size=list(job.size),
        precision=job.precision,
        flavour=built.flavour,
        capacities=list(job.capacities),
        mask=job.mask,
        **layout_fields(job.architecture.layout),
        tokens=job.architecture.layout.tokens(job.size),
        files=files,
        weights=weights.model_dump(),
        card_sha256=card.hash(),
        licence=card.licence,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=package_versions(),
        gates={name: gate.model_dump(exclude_none=True) for name, gate in card.gates.items()},
        **built.details,
    )


def package_versions() -> dict[str, str]:
    """Versions of what an export depends on, as far as it is installed."""
    return {"python": platform.python_version(), **versions(PACKAGES)}


def return_large_blocks() -> None:
    """Have glibc return every freed block of a MiB or more to the system at once, in this process, from now on.

    Left alone it keeps blocks of up to 32 MiB, and while a graph is traced small objects settle between them: exporting
    a 256x256 image then holds several times what its tensors need. Other C libraries are left as they are.
    """
    threshold, large = -3, 1 << 20  # M_MMAP_THRESHOLD of glibc's malloc.h, and a MiB.
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(threshold, large)
