"""The artifact: a folder with a model file and `manifest.json`, which says what it is, from what, and its hashes.

Reading one needs the standard library only, so that it works on a device. Manifest version 5; versions 2 to 4 are read
too, and no version has any other field:

    format        "ppexport-artifact"
    version       5
    backend       whose runtimes run it: "onnx"; "tensorrt" for an engine, which runs on the kind of machine that built
                  it; "coreml"; "coreai"; "litert"; "qnn"; "web"; or a backend of another package
    name          the model's name, e.g. "pp_atd_light_x2"
    arch          the network's architecture, e.g. "pp_atd_light"
    options       its options: of Pure-Pass colors, window, csmf, centres ("fixed", or "adaptive": chosen from the image
                  by whoever runs it; without it "fixed") and compensation; {} for a network that has none
    scale         upscaling factor
    size          [h, w] of the LR input, before padding
    precision     "fp32", or "fp16": half precision written into the graph by casts; "w8": of a Core ML package, fp16
                  with weights of 8 bits; "w8a8": and int8 activations where a recipe says so; "int8": by Q/DQ; "mixed":
                  int8 and fp16
    flavour       "portable": for every runtime, attention of all heads at once; "ort": standard operators as well, but
                  arranged for ONNX Runtime's CPU kernels, with attention as one operator of opset 23; "tensorrt":
                  the portable one with heads padded to a multiple of 8 channels; "lite": the portable one in
                  operators that LiteRT's accelerators take
    capacities    slots, ascending multiples of `group`; the last is n for full capacity. Several are a capacity set:
                  the graph has an input `slots` (1, C), int32, of which only the length counts. [] for a network that
                  computes the same for every image
    mask          "graph": the Pure-Pass mask is computed inside; "input": it is a second input `mask`, float32
                  (1, 1, H', W') of the padded size, 1 = pure; "none": the network has none
    multiple, padding, group, grids  how the input is padded, and what takes slots (`device.mask.Layout`)
    tokens        n, the pixels of the padded input
    files         {plain file name: sha256}; the first is the model. A Core ML package is a folder, hashed as a whole.
                  A model in ONNX Runtime's own format, model.ort, is followed by the ONNX file that it was made from
                  and the list of operators and types that a reduced build of ONNX Runtime needs for it. In a page all
                  other files follow, and nothing else is served
    weights       {"file": name, "sha256": of the weights file}
    card_sha256   hash of the effective model card
    licence       of the weights
    created       UTC, ISO 8601
    versions      {package: version} that made it
    build         the backend's own options that a user of the file should know, e.g. of a Core ML package
                  {"target": "iOS18", "interface": "tensor"}; of a page {"onnxruntime_web": version, "webgpu": whether
                  it is there, "samples": names of pictures to try}
    quantisation  of a file made by a calibration: its hash, pictures, recipe, and what fp16 left in fp32
    activation_bytes  what a run of an ONNX file for TensorRT takes, estimated; 0 where nobody asked
    engine        of a TensorRT engine: what it was built from, where and how (`backends/tensorrt/run_facts.py`)
    gates         what the model's card asks of parity beyond ppexport's own gates, by precision, and "twin" for that
                  between network and twin: {"fp16": {"psnr": 60.0}}
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppexport.device.capacities import ascend
from ppexport.device.centers import CENTRES, adaptive_centers
from ppexport.device.mask import ATD_LAYOUT, PADDINGS, Layout, check_options, levels, mask_from_labels, pixel_labels
from ppexport.errors import ArtifactError
from ppexport.files import is_plain_name, sha256_file, write_text

if TYPE_CHECKING:
    import numpy as np

    # Devices have NumPy 1.17, which has no such module.
    from numpy.typing import NDArray

FORMAT = "ppexport-artifact"
VERSION = 5
READABLE = (2, 3, 4, 5)
MANIFEST = "manifest.json"
MAX_BYTES = 1 << 20
"""A manifest is about a kilobyte; nothing larger is read."""
FLAVOURS = ("portable", "ort", "tensorrt", "lite")
MASKS = ("graph", "input", "none")
PURE_PASS: dict[str, type] = {"colors": int, "window": int, "csmf": bool}
"""The options of every network with Pure-Pass, from which a runner may have to compute the mask."""
FURTHER: dict[str, type] = {"centres": str, "compensation": str, "category_size": int, "share": float}
"""Options of some of them: whose colour centres, what pure pixels take, the tokens of a group of category attention,
and the share of pure pixels in (0, 1] that makes a window easy."""


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`; the module docstring says what each field holds."""

    backend: str
    name: str
    arch: str
    options: dict[str, Any]
    scale: int
    size: list[int]
    precision: str
    flavour: str
    capacities: list[int]
    mask: str
    tokens: int
    files: dict[str, str]
    weights: dict[str, str]
    card_sha256: str
    licence: str
    created: str
    multiple: int = 16
    padding: str = "mirror"
    group: int = 128
    grids: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    quantisation: dict[str, Any] = field(default_factory=dict)
    activation_bytes: int = 0
    engine: dict[str, Any] = field(default_factory=dict)
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """How the input is padded, and what takes slots."""
        return Layout(self.multiple, self.padding, self.group, tuple(self.grids))

    @property
    def needs_host_mask(self) -> bool:
        """Whether a runner computes the mask: to feed it, or to choose a capacity."""
        return self.mask == "input" or len(self.capacities) > 1

    def centers(self, rgb: NDArray[Any]) -> NDArray[np.int32] | None:
        """The colour centres (K, 3) of the picture *rgb* for all its tiles; None where they are not adaptive."""
        if self.options.get("centres", "fixed") == "fixed":
            return None
        return adaptive_centers(levels(rgb), self.options["colors"])

    def labels(self, rgb: NDArray[Any], centers: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """The Pure-Pass label of every pixel (H', W') of *rgb*, as `pixel_labels`, for a network with Pure-Pass.

        *centers* (K, 3), such as those of a whole picture, take the place of this image's where they are adaptive.
        """
        centres = self.options.get("centres", "fixed") if centers is None else centers
        return pixel_labels(rgb, self.options["colors"], self.layout, centres)

    def pure(self, rgb: NDArray[Any], centers: NDArray[Any] | None = None) -> NDArray[np.bool_]:
        """The pure pixels (H', W') of *rgb*, as `pure_mask`, for a network with Pure-Pass; *centers* as in `labels`."""
        return mask_from_labels(self.labels(rgb, centers), self.options["window"], self.options["csmf"])

    def routed(self, pure: NDArray[np.bool_]) -> int:
        """Slots that an image with these *pure* pixels (H', W') needs."""
        return self.layout.routed(pure, self.options.get("share", 1.0))

    def to_json(self) -> str:
        """The manifest as indented JSON."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2) + "\n"


@dataclass(frozen=True)
class Artifact:
    """A checked artifact folder."""

    path: Path
    manifest: Manifest

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the LR input."""
        return self.manifest.size[0], self.manifest.size[1]

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return self.manifest.scale

    @property
    def model_file(self) -> Path:
        """The file a runtime loads."""
        return self.path / next(iter(self.manifest.files))

    @property
    def graph_file(self) -> Path:
        """The model, or the ONNX file that a model in ONNX Runtime's own format was made from: what tools can open.

        Raises ArtifactError where that is missing.
        """
        if self.model_file.suffix != ".ort":
            return self.model_file
        name = self.model_file.with_suffix(".onnx").name
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path} lacks {name}, which {self.model_file.name} was made from")
        return self.path / name

    def read(self, file: Path) -> bytes:
        """The bytes of *file*, one of the manifest's, read once and compared with their hash.

        A runtime gets these bytes and never the path, so that nothing can be exchanged between the two. Raises
        ArtifactError for a file that was changed since the artifact was opened.
        """
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != self.manifest.files[file.name]:
            raise ArtifactError(f"{file} was changed while it was opened")
        return content


def _is(value: object, kind: str) -> bool:
    """Whether *value* is a JSON value of the manifest type *kind* (a dataclass annotation)."""
    if kind == "str":
        return isinstance(value, str)
    if kind == "int":
        return type(value) is int and value >= 0
    if kind == "list[int]":
        return isinstance(value, list) and all(_is(v, "int") for v in value)
    inner = {"dict[str, str]": str, "dict[str, dict[str, Any]]": dict}.get(kind, object)
    return isinstance(value, dict) and all(isinstance(v, inner) for v in value.values())


def _as_version_5(data: dict[str, Any]) -> dict[str, Any]:
    """The content *data* of a manifest of version 2 to 4, whose `engine` held what now are fields of their own."""
    since = {"engine": 3, "gates": 4}
    data = {**data, **{name: {} for name, version in since.items() if data["version"] < version}}
    drawer = data.get("engine")
    if isinstance(drawer, dict) and data.get("backend") != "tensorrt":
        data["engine"] = {}
        data["build"] = {key: drawer[key] for key in ("target", "interface") if key in drawer}
        data["quantisation"] = drawer.get("quantisation", {})
        data["activation_bytes"] = drawer.get("activation_bytes", 0)
    return {"build": {}, "quantisation": {}, "activation_bytes": 0, **layout_fields(ATD_LAYOUT), **data}


def layout_fields(layout: Layout) -> dict[str, Any]:
    """The manifest's fields for *layout*."""
    return {**asdict(layout), "grids": list(layout.grids)}


def _check_options(manifest: Manifest, where: str) -> None:
    """Raise ArtifactError unless the options are those of Pure-Pass where there is a mask, and plain values else.

    What loads the network validates them by the network's own model.
    """
    options = manifest.options
    if manifest.mask == "none":
        if not all(isinstance(value, (str, int, float)) for value in options.values()):
            raise ArtifactError(f"{where}: options {options} are not plain values")
        return
    expected = {**PURE_PASS, **{name: kind for name, kind in FURTHER.items() if name in options}}
    for name, kind in expected.items():
        value = options.get(name)
        if type(value) is not kind:
            raise ArtifactError(f"{where}: option {name!r} is missing or is not {kind.__name__}: {value!r}")
    if set(options) != set(expected):
        raise ArtifactError(f"{where}: options {sorted(options)} are not those of Pure-Pass, {sorted(expected)}")
    if not 0 < options.get("share", 1.0) <= 1:
        raise ArtifactError(f"{where}: option 'share' is above 0 and at most 1, not {options['share']}")
    centres = options.get("centres", "fixed")
    if centres not in CENTRES:
        raise ArtifactError(f"{where}: option 'centres' is one of {', '.join(CENTRES)}, not {centres!r}")
    if centres == "adaptive" and manifest.mask != "input":
        raise ArtifactError(f"{where}: with adaptive centres the mask is an input, not {manifest.mask!r}")
    try:
        check_options(options["colors"], options["window"])
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}") from None
    if manifest.multiple % options["window"]:
        raise ArtifactError(f"{where}: window {options['window']} does not divide {manifest.multiple}, the multiple")


def parse_manifest(text: str, where: str) -> Manifest:
    """Read a manifest's *text*; *where* names it in errors. Raises ArtifactError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactError(f"{where} is not the manifest of a ppexport artifact")
    if data.get("version") not in READABLE:
        raise ArtifactError(f"{where} has version {data.get('version')!r}; this ppexport reads {VERSION}: export again")
    if data["version"] < VERSION:
        data = _as_version_5(data)
    known = {f.name: str(f.type) for f in fields(Manifest)}
    unknown = sorted(set(data) - {*known, "format", "version"})
    if unknown:
        raise ArtifactError(f"{where}: field {unknown[0]!r} is not one of a manifest")
    for name, kind in known.items():
        if name not in data or not _is(data[name], kind):
            raise ArtifactError(f"{where}: field {name!r} is missing or is not {kind}")
    m = Manifest(**{name: data[name] for name in known})
    for name in ("scale", "multiple", "tokens"):
        if not getattr(m, name):
            raise ArtifactError(f"{where}: field {name!r} is missing or is not above 0")
    if len(m.size) != 2 or not all(m.size):
        raise ArtifactError(f"{where}: size is [h, w], not {m.size}")
    layout = m.layout
    tokens = layout.tokens((m.size[0], m.size[1]))
    ascending = ascend(m.capacities, tokens, m.group)
    whole = layout.window**2 == m.group and m.multiple % max(layout.window, 1) == 0
    foreign = next((name for name in m.files if not is_plain_name(name)), None)
    problems = {
        f"size {m.size} pads to {tokens} tokens, not {m.tokens}": m.tokens != tokens,
        "weights need a file name and its sha256": not {"file", "sha256"} <= set(m.weights),
        f"flavour {m.flavour!r} is not known; this ppexport reads {FLAVOURS}": m.flavour not in FLAVOURS,
        f"mask {m.mask!r} is not one of {MASKS}": m.mask not in MASKS,
        f"padding {m.padding!r} is not one of {tuple(PADDINGS)}": m.padding not in PADDINGS,
        f"grids {m.grids} are not shifts of windows of {m.group} pixels": bool(m.grids)
        and not (whole and all(shift < layout.window and 2 * shift % layout.window == 0 for shift in m.grids)),
        f"capacities ascend in multiples of {m.group} up to {tokens}, not {m.capacities}": not ascending,
        "a capacity set needs a mask": len(m.capacities) > 1 and m.mask == "none",
        "a network with a mask has capacities": not m.capacities and m.mask != "none",
        "it lists no model file": not m.files,
        f"{foreign!r} is not a plain file name inside the artifact folder": foreign is not None,
    }
    for problem, found in problems.items():
        if found:
            raise ArtifactError(f"{where}: {problem}")
    _check_options(m, where)
    return m


def sha256_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder: of the names in it and the hashes of what they name.

    Raises ArtifactError for a folder that holds anything but files and folders.
    """
    if not path.is_dir():
        return sha256_file(path)
    listed = hashlib.sha256()
    for entry in sorted(path.iterdir()):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise ArtifactError(f"{entry} is not a plain file")
        listed.update(os.fsencode(entry.name) + f"\0{sha256_path(entry)}\n".encode())
    return listed.hexdigest()


def _what_it_is(path: Path) -> str:
    """What *path*, which holds no manifest, is in place of an artifact, and what to do: the end of an error."""
    models = find_spec("ppexport.models")
    bundled = [Path(place, path.name) for place in (models and models.submodule_search_locations) or ()]
    folders = (path, *(bundled if path.parts == (path.name,) and not path.exists() else ()))
    if any((folder / "card.yaml").is_file() for folder in folders):
        return f" but a model: make an artifact with `ppexport export {path} -o {path.name}_64`, and use that"
    if path.is_file():
        holder = f", {path.parent}" if (path.parent / MANIFEST).is_file() else " that `ppexport export` made"
        return f" but a file: name the folder{holder}"
    if not path.exists():
        return ": there is nothing of this name; `ppexport export` makes artifacts"
    return f": {MANIFEST} is missing or is not a small plain file"


def read_artifact(path: Path) -> Artifact:
    """Open the artifact folder *path* and check every file against its hash. Raises ArtifactError."""
    path = Path(path)
    source = path / MANIFEST
    try:
        if source.is_symlink() or not source.is_file() or source.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{path} is not an artifact{_what_it_is(path)}")
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ArtifactError(f"{path} is not an artifact: it has no readable {MANIFEST}") from None
    manifest = parse_manifest(text, str(source))
    for name, expected in manifest.files.items():
        file = path / name
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise ArtifactError(f"{path} is not complete: {name} is missing or is not a plain file")
        if sha256_path(file) != expected:
            raise ArtifactError(
                f"{file} does not match its hash in {MANIFEST}: it was changed or damaged, export again"
            )
    return Artifact(path, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into *folder*, atomically."""
    write_text(folder / MANIFEST, manifest.to_json())
