"""Network -> artefact folder, whole or not at all."""

from __future__ import annotations

import operator
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import nn

from ppexport.artifact import FLAVOURS, GROUP, MANIFEST, MASKS, Manifest, parse_manifest, write_manifest
from ppexport.backends.onnx.build import Shape, Step, build
from ppexport.cards import Card
from ppexport.errors import ArtifactError, InputError
from ppexport.files import sha256_file
from ppexport.mask import padded_tokens
from ppexport.networks.load import card_of
from ppexport.networks.pp_atd import PPATDLight
from ppexport.twin.build import StaticTwin, make_twin

BACKENDS = ("onnx",)
PRECISIONS = ("fp32",)
SET_STEPS = 32
"""Steps of a capacity set: of ATD-light's multiply-adds a step is 0.7 %, and on one symbolic axis it costs nothing."""
PACKAGES = ("ppexport", "torch", "onnx", "onnxsim", "onnxruntime", "numpy")


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


def check_target(out: Path) -> None:
    """Raise InputError unless *out* is new, empty or an older artefact, and can be written."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} exists and is not a folder")
    if out.is_dir() and any(out.iterdir()):
        try:
            manifest = parse_manifest((out / MANIFEST).read_text(encoding="utf-8"), str(out / MANIFEST))
        except (OSError, UnicodeDecodeError, ArtifactError):
            raise InputError(f"{out} is not empty and holds no artefact: name another folder") from None
        foreign = sorted({p.name for p in out.iterdir()} - {MANIFEST, *manifest.files})
        if foreign:
            raise InputError(f"{out} holds {foreign[0]}, which no export wrote: move it away or name another folder")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder")


def check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raise InputError unless *value* is one of *known*."""
    if value not in known:
        raise InputError(f"{what} is one of {', '.join(known)}, not {value!r}")


def capacity_set(size: tuple[int, int], steps: int = SET_STEPS) -> list[int]:
    """At most *steps* even capacities for LR images of *size* (h, w), the last one full."""
    tokens = padded_tokens(size)
    return sorted({-(-tokens * i // (steps * GROUP)) * GROUP for i in range(1, steps + 1)})


def choose_shape(
    network: nn.Module, size: tuple[int, int], capacities: Sequence[int] | None, mask: str | None
) -> Shape:
    """The inputs of the graph to make. Raises InputError for an impossible wish."""
    pure_pass = isinstance(network, PPATDLight)
    mask = mask or ("graph" if pure_pass else "none")
    check_choice("mask", mask, MASKS["pp_atd_light" if pure_pass else "atd_light"])
    tokens = padded_tokens(size)
    if capacities is None:
        return Shape((tokens,), mask)
    chosen = [operator.index(c) for c in capacities]
    if not chosen or chosen != sorted(set(chosen)) or any(c % GROUP or not 0 < c <= tokens for c in chosen):
        raise InputError(f"capacities are ascending multiples of {GROUP} from {GROUP} to {tokens}, not {chosen}")
    if not pure_pass and chosen != [tokens]:
        raise InputError("atd_light has no pure tokens, so every token needs a slot: leave the capacities out")
    return Shape(tuple(chosen), mask)


def describe(
    twin: StaticTwin, card: Card, backend: str, precision: str, shape: Shape, files: dict[str, str]
) -> Manifest:
    """The manifest of an artefact made from *twin*."""
    assert card.weights is not None
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
        weights=card.weights.model_dump(),
        card_sha256=card.hash(),
        licence=card.licence,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=package_versions(),
    )


def replace_folder(new: Path, out: Path) -> None:
    """Put the finished folder *new* in the place of *out*; an older artefact there goes only when *new* is in place."""
    if not out.exists():
        os.rename(new, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    os.rename(out, old / out.name)
    try:
        os.rename(new, out)
    except OSError:
        os.rename(old / out.name, out)
        old.rmdir()
        raise
    shutil.rmtree(old)


def export(
    network: nn.Module,
    *,
    backend: str,
    size: tuple[int, int],
    out: str | Path,
    precision: str = "fp32",
    capacities: Sequence[int] | None = None,
    mask: str | None = None,
    flavour: str = "portable",
    keep: str | Path | None = None,
    step: Step = lambda stage: None,
) -> Path:
    """Export *network* for LR images of *size* (h, w), before padding, into the artefact folder *out*.

    *backend* is "onnx", *precision* "fp32". *capacities* None is full capacity, exact for every image; several,
    ascending multiples of 128 such as `capacity_set(size)`, are a capacity set: the runner takes the smallest that
    holds an image. Beyond the largest, surplus tokens are treated as pure. *mask* "graph" (the default) computes the
    Pure-Pass mask inside, "input" makes it a second input. *flavour* "ort" is for ONNX Runtime on a CPU, 1.23 or
    newer. *keep* receives intermediate graphs, *step* is told every stage. Returns *out*. Raises InputError, TwinError
    or ExportError; *out* is then as it was.
    """
    check_choice("backend", backend, BACKENDS)
    check_choice("precision", precision, PRECISIONS)
    check_choice("flavour", flavour, FLAVOURS)
    height, width = (operator.index(side) for side in size)
    out = Path(os.path.abspath(out))
    if out == Path.cwd():
        raise InputError("the artefact folder cannot be the current folder: name a new one")
    if keep is not None and out in (Path(keep).resolve(), *Path(keep).resolve().parents):
        raise InputError("the intermediate graphs cannot be kept inside the artefact folder")
    check_target(out)
    card = card_of(network)
    shape = choose_shape(network, (height, width), capacities, mask)
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
    step("building the twin")
    twin = make_twin(network, (height, width), shape.capacities[-1], flavour)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder = work / "artifact"
        folder.mkdir()
        name = build(twin, card, folder, shape, Path(keep) if keep else None, step)
        write_manifest(folder, describe(twin, card, backend, precision, shape, {name: sha256_file(folder / name)}))
        replace_folder(folder, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out
