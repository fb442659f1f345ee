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

from ppexport.backends.coreml import specification
from ppexport.backends.coreml.apple import SET_TARGET, check_coreml
from ppexport.backends.coreml.interface import (
    Front,
    descriptions,
    example_inputs,
    input_types,
    output_types,
)
from ppexport.backends.coreml.mil_program import Conversion, convert, coremltools, quiet_converter, trace
from ppexport.backends.coreml.precision import Selector, compute_precision, computes_half
from ppexport.backends.coreml.quantised_inputs import quantising_pass
from ppexport.backends.coreml.scopes import ModulePaths
from ppexport.backends.coreml.self_check import self_check
from ppexport.device.artifact import function_name, model_facts
from ppexport.errors import ExportError
from ppexport.networks.card import Card
from ppexport.twin.twin import StaticTwin, make_twin

MODEL = "model.mlpackage"
QUANTISED_FROM = 512
"""Elements of the smallest weight that w8 stores with 8 bits."""

Step = Callable[[str], None]
"""Told the name of every stage, for a progress display."""


@dataclass(frozen=True)
class Options:
    """How a package is made."""

    precision: str = "fp16"
    target: str = SET_TARGET
    interface: str = "tensor"
    mask: str = "graph"
    """"input" adds the input `mask`; everything else leaves it to the graph."""
    selector: Selector = computes_half
    """What is fp16 in a package that is not fp32."""
    ranges: Mapping[str, float] = field(default_factory=dict)
    """Of w8a8: {dotted module path: magnitude that 127 stands for} of the layers that read int8."""

    def check(self, capacities: Sequence[int]) -> None:
        """Raise InputError for an impossible wish."""
        check_coreml(self.precision, self.target, self.interface, capacities)


def convert_twin(twin: StaticTwin, options: Options, target: Path) -> None:
    """Write *twin* as a package of one function to *target*. Raises ExportError."""
    ct = coremltools()
    images, mask = options.interface == "image", options.mask == "input"
    front = Front(twin, images).eval()
    paths = ModulePaths(front, "twin")
    model = convert(
        trace(front, example_inputs(twin, mask)),
        Conversion(
            input_types(twin, images, mask),
            output_types(images),
            getattr(ct.target, options.target),
            compute_precision(options.precision, paths.of, options.selector),
            half=options.precision != "fp32",
            tokens=twin.tokens,
            quantisation=quantisation() if options.precision in ("w8", "w8a8") else None,
            last_passes=[quantising_pass(options.ranges, paths.of)] if options.precision == "w8a8" else [],
        ),
    )
    try:
        spec = model.get_spec()
        for _, block in specification.blocks(spec):
            specification.rename(block, specification.module_names(model._mil_program, paths.of))
        ct.utils.save_spec(spec, str(target), weights_dir=model.weights_dir)
    finally:
        # coremltools would keep its copy until this process ends.
        shutil.rmtree(model.package_path, ignore_errors=True)


def quantisation() -> Any:
    """Weights of 8 bits, symmetric, one scale for every output channel."""
    coremltools()
    from coremltools.optimize import coreml

    how = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=QUANTISED_FROM)
    return coreml.OptimizationConfig(global_config=how)


def join(packages: dict[str, Path], default: str, target: Path) -> None:
    """Write one package whose functions are the mains of *packages*, equal weights stored once."""
    ct = coremltools()
    with quiet_converter():
        several = ct.utils.MultiFunctionDescriptor()
        for name, path in packages.items():
            several.add_function(str(path), "main", name)
        several.default_function_name = default
        ct.utils.save_multifunction(several, str(target))


def describe(twin: StaticTwin, card: Card, capacities: Sequence[int], options: Options) -> specification.Description:
    """What the package says of itself."""
    (h, w), s = twin.size, twin.scale
    return specification.Description(
        f"{card.name}: super-resolution x{s} of {h}x{w} images, {options.precision}",
        card.licence,
        card.hash()[:12],
        {
            **model_facts(twin, card, capacities),
            "ppexport.precision": options.precision,
            "ppexport.interface": options.interface,
        },
        {function_name(c, capacities): descriptions(twin, options.interface, c) for c in capacities},
    )


def finish(package: Path, description: specification.Description, target: Path) -> None:
    """Write *package* to *target* with shared constants and its *description*."""
    ct = coremltools()
    spec = ct.utils.load_spec(str(package))
    for _, block in specification.blocks(spec):
        specification.share_constants(block)
    specification.describe(spec, description)
    weights = package / "Data" / "com.apple.CoreML" / "weights"
    ct.utils.save_spec(spec, str(target), weights_dir=str(weights))


def build_for_coreml(
    twin: StaticTwin, card: Card, folder: Path, capacities: Sequence[int], options: Options, step: Step
) -> str:
    """Write `model.mlpackage` into *folder* and return its name.

    *twin* is of the portable flavour and of the largest of the ascending *capacities*. Raises InputError for an
    impossible wish, ExportError where a stage or the comparison with the twin fails, UnavailableError without
    coremltools.
    """
    options.check(capacities)
    if twin.flavour != "portable" or twin.capacity != capacities[-1]:
        raise ExportError(f"Core ML takes the portable flavour with {capacities[-1]} slots")
    network = twin.network
    target = folder / MODEL
    with TemporaryDirectory(dir=folder) as scratch:
        packages: dict[str, Path] = {}
        for capacity in capacities:
            name = function_name(capacity, capacities)
            step(f"converting {name}")
            fitting = twin if capacity == twin.capacity else make_twin(network, twin.size, capacity)
            packages[name] = Path(scratch) / f"{name}.mlpackage"
            convert_twin(fitting, options, packages[name])
        default = function_name(capacities[-1], capacities)
        whole = packages[default]
        if len(packages) > 1:
            step("joining the functions")
            whole = Path(scratch) / "joined.mlpackage"
            join(packages, default, whole)
        finish(whole, describe(twin, card, capacities, options), target)
    step("comparing with the twin")
    self_check(target, twin, capacities, options.precision)
    return MODEL
