"""What the layers of a recipe read, by module: for programs that are not made from the calibrated ONNX graph."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from ppexport.backends.onnx.export_onnx import Shape, simplified
from ppexport.backends.onnx.modules import module_of_name
from ppexport.backends.onnx.qdq import find_ranges
from ppexport.errors import ExportError
from ppexport.networks.atd.pp_network import PPATDLight
from ppexport.quantize.calibration import Calibration
from ppexport.quantize.recipe import Recipe, group_of, quantisable
from ppexport.twin.twin import make_twin


def module_ranges(network: nn.Module, calibration: Calibration, recipe: Recipe) -> dict[str, float]:
    """{dotted module path: the magnitude that 127 stands for} of every layer that *recipe* makes int8.

    The graph that was calibrated is traced again, at the size that it was calibrated at. Raises InputError where
    *calibration* lacks a tensor of it.
    """
    height, width = calibration.about.size
    twin = make_twin(network, (height, width))
    shape = Shape((twin.capacity,), "graph" if isinstance(network, PPATDLight) else "none")
    with TemporaryDirectory() as scratch:
        model = simplified(twin, shape, Path(scratch), False, lambda stage: None)
    chosen = [node for node in quantisable(model) if group_of(node.name) in recipe.groups]
    limits = find_ranges(model, [node.name for node in chosen], calibration, recipe)
    found: dict[str, float] = {}
    for node in chosen:
        module = module_of_name(node.name)
        if module is None or module in found:
            raise ExportError(f"the layer {node.name} cannot be told from others by its module")
        found[module] = limits[node.input[0]]
    return found
