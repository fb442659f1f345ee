"""Twin -> model.mlpackage: an ML program for iOS 16 to 18, named, described, and compared with the twin.

One function `main` for one capacity; a capacity set is a package of several functions over one weight file, which
needs iOS 18:

    capacity_1024, capacity_2048, capacity_3072, capacity_4096        the last is the default
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ppexport.backends.backend import BuildJob, model_facts
from ppexport.backends.coreml import specification
from ppexport.backends.coreml.evaluated import PackageProbe, Session
from ppexport.backends.coreml.mil_program import convert, coremltools, make_pipeline, module_paths, quiet_converter
from ppexport.backends.coreml.precision import computes_half, quantising_pass
from ppexport.backends.self_check import example_inputs, self_check
from ppexport.device.capacities import function_name
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

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


def _interface(twin: StaticTwin, job: BuildJob) -> dict[str, list[Any]]:
    """coremltools' inputs and outputs. Numbers are fp32 at every precision: the labels of the mask are exact in nothing
    less.
    """
    ct = coremltools()
    rgb, shape = ct.colorlayout.RGB, (1, 3, *twin.size)
    if job.options.interface == "image":
        inputs, outputs = [ct.ImageType(INPUT, shape, color_layout=rgb)], [ct.ImageType(SR, color_layout=rgb)]
    else:
        inputs, outputs = [ct.TensorType(INPUT, shape, np.float32)], [ct.TensorType(SR, dtype=np.float32)]
    if job.mask == "input":
        inputs.append(ct.TensorType(MASK, (1, 1, *twin.padded), np.float32))
    return {"inputs": inputs, "outputs": [*outputs, ct.TensorType(IMPURE)]}


def _convert_twin(twin: StaticTwin, job: BuildJob, ranges: Mapping[str, float], target: Path) -> None:
    """Write *twin* as a package of one function to *target*. Raises ExportError."""
    ct = coremltools()
    front = Front(twin, job.options.interface == "image").eval()
    module_of, in_half = module_paths(front, "twin"), computes_half(twin)

    def selects(operation: Any) -> bool:
        """An operation of an unknown module stays in fp32."""
        module = module_of(operation)
        return module is not None and in_half(module)

    half = job.precision != "fp32"
    passes = [quantising_pass(ranges, module_of)] if job.precision == "w8a8" else []
    model = convert(
        front,
        tuple(example_inputs(twin, mask=job.mask == "input").values()),
        half=half,
        **_interface(twin, job),
        minimum_deployment_target=getattr(ct.target, job.options.target),
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=selects) if half else ct.precision.FLOAT32,
        pass_pipeline=make_pipeline(twin.tokens, passes, job.precision in ("w8", "w8a8")),
    )
    try:
        spec = model.get_spec()
        for block in specification.blocks(spec):
            specification.rename(block, specification.module_names(model._mil_program, module_of))
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


def _finish(package: Path, twin: StaticTwin, job: BuildJob, target: Path) -> None:
    """Write *package* to *target* with shared constants and with what it says of itself."""
    ct = coremltools()
    spec = ct.utils.load_spec(str(package))
    for block in specification.blocks(spec):
        specification.share_constants(block)
    (h, w), s, interface = twin.size, twin.scale, job.options.interface
    metadata = spec.description.metadata
    metadata.author, metadata.license, metadata.versionString = "ppexport", job.card.licence, job.card.hash()[:12]
    metadata.shortDescription = f"{job.card.name}: super-resolution x{s} of {h}x{w} images, {job.precision}"
    facts = {"ppexport.precision": job.precision, "ppexport.interface": interface}
    metadata.userDefined.update({**model_facts(twin, job.card, job.capacities), **facts})
    for capacity in job.capacities or (twin.capacity,):
        name = function_name(capacity, job.capacities)
        owner = next((f for f in spec.description.functions if f.name == name), spec.description)
        for feature in (*owner.input, *owner.output):
            text = {**DESCRIPTIONS[interface], **COMMON}.get(feature.name, "")
            feature.shortDescription = text.format(h=h, w=w, H=h * s, W=w * s, capacity=capacity)
    ct.utils.save_spec(spec, str(target), weights_dir=str(package / "Data" / "com.apple.CoreML" / "weights"))


def check_package(path: Path, twin: StaticTwin, job: BuildJob) -> None:
    """Raise ExportError unless the package at *path* computes the picture of *twin*, in the evaluator."""
    images, least, routing = job.options.interface == "image", LEAST_DB[job.precision], job.architecture.routing
    probe = None if routing is None else PackageProbe(path, routing)
    session = Session(path) if probe is None else probe.session

    def compute(inputs: Arrays, categories: NDArray[np.int64] | None) -> tuple[NDArray[Any], int]:
        found = session.run(inputs, replace=None if probe is None else probe.stand_in(categories))
        return found["sr"], int(found["impure_tokens"].reshape(-1)[0])

    self_check(
        compute,
        twin,
        job,
        backend="coreml",
        kind="package",
        least=min(least, PICTURE_DB) if images else least,
        clipped=images,
    )


def build_for_coreml(job: BuildJob, ranges: Mapping[str, float] | None = None) -> str:
    """Write `model.mlpackage` into the job's folder.

    Args:
        job: what to build; its options are `CoreMLOptions`.
        ranges: for w8a8, {dotted module path: magnitude that 127 stands for} of the layers that read int8.

    Returns:
        The package's name in the folder.

    Raises:
        ExportError: a stage or the comparison with the twin failed.
    """
    twin, target = job.twin(), job.folder / MODEL
    with TemporaryDirectory(dir=job.folder) as scratch:
        packages: dict[str, Path] = {}
        for capacity in job.capacities or (twin.capacity,):
            name = function_name(capacity, job.capacities)
            job.step(f"converting {name}")
            packages[name] = Path(scratch) / f"{name}.mlpackage"
            _convert_twin(twin.with_capacity(capacity), job, ranges or {}, packages[name])
        # The last has the most slots.
        default, whole = list(packages.items())[-1]
        if job.is_set:
            job.step("joining the functions")
            whole = Path(scratch) / "joined.mlpackage"
            _join(packages, default, whole)
        _finish(whole, twin, job, target)
    job.step("comparing with the twin")
    check_package(target, twin, job)
    return MODEL
