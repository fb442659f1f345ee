"""Twin -> model.mlpackage: an ML program for iOS 16 to 18, named, described, and compared with the twin.

One function `main` for one capacity; a capacity set is a package of several functions over one weight file, which
needs iOS 18:

    capacity_1024, capacity_2048, capacity_3072, capacity_4096        the last is the default
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor, nn

from ppexport.backends.coreml import specification
from ppexport.backends.coreml.apple import SET_TARGET, check_coreml
from ppexport.backends.coreml.debug import DebugPackage
from ppexport.backends.coreml.mil_program import convert, coremltools, quiet_converter, trace
from ppexport.backends.coreml.precision import compute_precision, computes_half, quantising_pass
from ppexport.backends.coreml.specification import ModulePaths
from ppexport.backends.self_check import example_inputs, self_check
from ppexport.device.artifact import function_name, model_facts
from ppexport.errors import ExportError
from ppexport.networks.card import Card
from ppexport.twin.twin import StaticTwin

MODEL = "model.mlpackage"
INPUT, MASK, SR, IMPURE = "lr", "mask", "sr", "impure_tokens"
DESCRIPTIONS = {
    "tensor": {
        INPUT: "Low-resolution RGB image, float32 (1, 3, {h}, {w}) in [0, 1].",
        SR: "Super-resolved RGB image, float32 (1, 3, {H}, {W}), not clipped to [0, 1].",
    },
    "image": {
        INPUT: "Low-resolution RGB image, {h} rows of {w} pixels.",
        SR: "Super-resolved RGB image, {H} rows of {W} pixels.",
    },
}
COMMON = {
    MASK: "Pure-Pass mask of the padded image, float32 (1, 1, H', W'): 1 is pure and skips category attention.",
    IMPURE: "Number of impure pixels, int32 (1). Above the capacity, {capacity}, the picture is not the network's.",
}
LEAST_DB = {"fp32": 90.0, "fp16": 55.0, "w8": 30.0, "w8a8": 25.0}
"""Below this the conversion is wrong."""
PICTURE_DB = 45.0
"""The same for pictures, whose 8 bits are all they can hold."""

Step = Callable[[str], None]
"""Receives the name of every stage, for a progress display."""


@dataclass(frozen=True)
class Options:
    """How a package is made."""

    precision: str = "fp16"
    target: str = SET_TARGET
    interface: str = "tensor"
    mask: str = "graph"
    """"input" adds the input `mask`; everything else leaves it to the graph."""
    ranges: Mapping[str, float] = field(default_factory=dict)
    """Of w8a8: {dotted module path: magnitude that 127 stands for} of the layers that read int8."""

    def check(self, capacities: Sequence[int]) -> None:
        """Raise InputError for options that do not fit together."""
        check_coreml(self.precision, self.target, self.interface, capacities)

    @property
    def images(self) -> bool:
        """Whether `lr` and `sr` are pictures."""
        return self.interface == "image"


class Picture(nn.Module):
    """Bytes -> numbers in [0, 1], in a module of its own so that its precision can be chosen."""

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, h, w) in 0 ... 255 -> in [0, 1]."""
        return image / 255


class Front(nn.Module):
    """A twin whose inputs are positional, and pictures if *images*."""

    def __init__(self, twin: StaticTwin, images: bool) -> None:
        super().__init__()
        self.twin = twin
        self.picture = Picture() if images else None

    def forward(self, lr: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the twin gives; of a picture whole numbers from 0 to 255, so that no runtime has to round."""
        if self.picture is None:
            plain: tuple[Tensor, Tensor] = self.twin(lr, mask)
            return plain
        sr, impure = self.twin(self.picture(lr), mask)
        return (sr.clamp(0, 1) * 255).round(), impure


def _interface(twin: StaticTwin, options: Options) -> dict[str, list[Any]]:
    """coremltools' inputs and outputs. Numbers are fp32 at every precision: the labels of the mask are exact in nothing
    less.
    """
    ct = coremltools()
    rgb, shape = ct.colorlayout.RGB, (1, 3, *twin.size)
    if options.images:
        inputs, outputs = [ct.ImageType(INPUT, shape, color_layout=rgb)], [ct.ImageType(SR, color_layout=rgb)]
    else:
        inputs, outputs = [ct.TensorType(INPUT, shape, np.float32)], [ct.TensorType(SR, dtype=np.float32)]
    if options.mask == "input":
        inputs.append(ct.TensorType(MASK, (1, 1, *twin.padded), np.float32))
    return {"inputs": inputs, "outputs": [*outputs, ct.TensorType(IMPURE)]}


def _convert_twin(twin: StaticTwin, options: Options, target: Path) -> None:
    """Write *twin* as a package of one function to *target*. Raises ExportError."""
    ct = coremltools()
    front = Front(twin, options.images).eval()
    paths = ModulePaths(front, "twin")
    half = options.precision != "fp32"
    model = convert(
        trace(front, tuple(example_inputs(twin, mask=options.mask == "input").values())),
        {
            **_interface(twin, options),
            "minimum_deployment_target": getattr(ct.target, options.target),
            "compute_precision": compute_precision(computes_half(twin), paths.of) if half else ct.precision.FLOAT32,
        },
        half=half,
        tokens=twin.tokens,
        # Weights are quantised last.
        passes=[quantising_pass(options.ranges, paths.of)] if options.precision == "w8a8" else [],
        weights_of_8_bits=options.precision in ("w8", "w8a8"),
    )
    try:
        spec = model.get_spec()
        for block in specification.blocks(spec):
            specification.rename(block, specification.module_names(model._mil_program, paths.of))
        ct.utils.save_spec(spec, str(target), weights_dir=model.weights_dir)
    finally:
        # coremltools would keep its copy until this process ends.
        shutil.rmtree(model.package_path, ignore_errors=True)


def _join(packages: dict[str, Path], default: str, target: Path) -> None:
    """Write one package whose functions are the mains of *packages*, equal weights stored once."""
    ct = coremltools()
    with quiet_converter():
        several = ct.utils.MultiFunctionDescriptor()
        for name, path in packages.items():
            several.add_function(str(path), "main", name)
        several.default_function_name = default
        ct.utils.save_multifunction(several, str(target))


def _finish(
    package: Path, twin: StaticTwin, card: Card, capacities: Sequence[int], options: Options, target: Path
) -> None:
    """Write *package* to *target* with shared constants and with what it says of itself."""
    ct = coremltools()
    spec = ct.utils.load_spec(str(package))
    for block in specification.blocks(spec):
        specification.share_constants(block)
    (h, w), s = twin.size, twin.scale
    metadata = spec.description.metadata
    metadata.author, metadata.license, metadata.versionString = "ppexport", card.licence, card.hash()[:12]
    metadata.shortDescription = f"{card.name}: super-resolution x{s} of {h}x{w} images, {options.precision}"
    metadata.userDefined.update(model_facts(twin, card, capacities))
    metadata.userDefined.update({"ppexport.precision": options.precision, "ppexport.interface": options.interface})
    texts = {**DESCRIPTIONS[options.interface], **COMMON}
    for capacity in capacities:
        name = function_name(capacity, capacities)
        owner = next((f for f in spec.description.functions if f.name == name), spec.description)
        for feature in (*owner.input, *owner.output):
            text = texts.get(feature.name, "")
            feature.shortDescription = text.format(h=h, w=w, H=h * s, W=w * s, capacity=capacity)
    ct.utils.save_spec(spec, str(target), weights_dir=str(package / "Data" / "com.apple.CoreML" / "weights"))


def check_package(path: Path, twin: StaticTwin, capacities: Sequence[int], options: Options) -> None:
    """Raise ExportError unless the package at *path* computes the picture of *twin*, in the evaluator."""
    debug = DebugPackage(path)
    least = LEAST_DB[options.precision]
    self_check(
        lambda inputs, categories: debug.run(inputs, categories)[:2],
        twin,
        capacities,
        least=min(least, PICTURE_DB) if options.images else least,
        kind="package",
        precision=options.precision,
        backend="coreml",
        mask=options.mask == "input",
        clipped=options.images,
    )


def build_for_coreml(
    twin: StaticTwin, card: Card, folder: Path, capacities: Sequence[int], options: Options, step: Step
) -> str:
    """Write `model.mlpackage` into *folder*.

    Args:
        twin: of the portable flavour and of the largest of the *capacities*.
        card: of the network, for the metadata.
        folder: where the package goes.
        capacities: ascending slots of category attention; several are a capacity set.
        options: how the package is made.
        step: receives the name of every stage.

    Returns:
        The package's name in *folder*.

    Raises:
        InputError: the options do not fit together.
        ExportError: a stage or the comparison with the twin failed.
        UnavailableError: coremltools is not installed.
    """
    options.check(capacities)
    if twin.flavour != "portable" or twin.capacity != capacities[-1]:
        raise ExportError(f"Core ML takes the portable flavour with {capacities[-1]} slots")
    target = folder / MODEL
    with TemporaryDirectory(dir=folder) as scratch:
        packages: dict[str, Path] = {}
        for capacity in capacities:
            name = function_name(capacity, capacities)
            step(f"converting {name}")
            packages[name] = Path(scratch) / f"{name}.mlpackage"
            _convert_twin(twin.with_capacity(capacity), options, packages[name])
        default = function_name(capacities[-1], capacities)
        whole = packages[default]
        if len(packages) > 1:
            step("joining the functions")
            whole = Path(scratch) / "joined.mlpackage"
            _join(packages, default, whole)
        _finish(whole, twin, card, capacities, options, target)
    step("comparing with the twin")
    check_package(target, twin, capacities, options)
    return MODEL
