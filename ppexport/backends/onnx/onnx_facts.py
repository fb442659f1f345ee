"""Types and shapes that a graph pass may rely on."""

from __future__ import annotations

import math

import onnx
from onnx import TensorShapeProto, ValueInfoProto, helper

Length = int | str
"""A plain number, or the name of a symbolic length: equal names are equal lengths."""


def _length(dim: TensorShapeProto.Dimension) -> Length | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


class Facts:
    """What shape inference knows of the tensors of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        stored = (helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in graph.initializer)
        infos = (*stored, *graph.value_info, *graph.input, *graph.output)
        self.known: dict[str, ValueInfoProto] = {info.name: info for info in infos}

    def shape(self, name: str) -> list[Length] | None:
        """The lengths of the tensor *name*, None where its rank or one of them is not known."""
        info = self.known.get(name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        lengths = [_length(dim) for dim in info.type.tensor_type.shape.dim]
        known = [length for length in lengths if length is not None]
        return known if len(known) == len(lengths) else None

    def elements(self, name: str) -> int | None:
        """How many elements the tensor *name* has, None where that is no plain number or not known."""
        shape = self.shape(name)
        plain = [length for length in shape or () if isinstance(length, int)]
        return None if shape is None or len(plain) != len(shape) else math.prod(plain)
