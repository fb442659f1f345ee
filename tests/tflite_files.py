"""Small LiteRT files, operator by operator, without a converter that would change them."""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ppexport.backends.litert.tflite import read_model

TYPES = {"float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32", "bool": "BOOL", "int8": "INT8"}
OPTIONS = {
    "ARG_MAX": "ArgMax", "FULLY_CONNECTED": "FullyConnected", "LOGICAL_AND": "", "RELU_0_TO_1": "", "BROADCAST_TO": "",
    "SELECT_V2": "", "EMBEDDING_LOOKUP": "", "L2_NORMALIZATION": "L2Norm", "TOPK_V2": "TopKV2", "SUM": "Reducer",
    "BATCH_MATMUL": "BatchMatMul", "CUMSUM": "Cumsum", "MAXIMUM": "MaximumMinimum", "MINIMUM": "MaximumMinimum",
    "FLOOR": "", "SQRT": "",
}  # fmt: skip
"""{operator: the stem of its options' name}, where that is not its own name; "" for none."""


class File:
    """A model of one graph: `given` and `constant` return tensors, `add` an operator's result, `content` the file."""

    def __init__(self):
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.buffers, self.model.operatorCodes = 3, [schema.BufferT()], []
        self.model.subgraphs, self.graph.name = [self.graph], b"main"
        self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
        self.feeds = []

    def _tensor(self, shape, dtype, data=None, name=None):
        buffer, tensor = schema.BufferT(), schema.TensorT()
        if data is not None:
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.name = name or f"t{len(self.graph.tensors)}"
        tensor.shape, tensor.buffer = np.array(shape, np.int32), len(self.model.buffers) - 1
        tensor.type = getattr(schema.TensorType, TYPES[np.dtype(dtype).name])
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def given(self, value, name=None):
        """An input, of which *value* is an example."""
        self.graph.inputs.append(self._tensor(value.shape, value.dtype, name=name))
        self.feeds.append(value)
        return self.graph.inputs[-1]

    def constant(self, value, scale=None):
        """A constant; of int8, with a *scale* for each of its rows."""
        place = self._tensor(value.shape, value.dtype, value)
        if scale is not None:
            held = self.graph.tensors[place].quantization = schema.QuantizationParametersT()
            held.scale, held.zeroPoint = np.full(len(value), scale, np.float32), np.zeros(len(value), np.int64)
            held.quantizedDimension = 0
        return place

    def add(self, kind, inputs, shape, dtype=np.float32, **options):
        """The place of the result of an operator, of *shape*."""
        return self.several(kind, inputs, [(shape, dtype)], **options)[0]

    def several(self, kind, inputs, results, version=1, **options):
        """The places of its *results*, of (shape, type)."""
        code = getattr(schema.BuiltinOperator, kind)
        entry, operator = schema.OperatorCodeT(), schema.OperatorT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
        self.model.operatorCodes.append(entry)
        operator.opcodeIndex, operator.inputs = len(self.model.operatorCodes) - 1, np.array(inputs, np.int32)
        made = [self._tensor(shape, dtype) for shape, dtype in results]
        operator.outputs = np.array(made, np.int32)
        stem = OPTIONS.get(kind, "".join(part.title() for part in kind.split("_")))
        if stem:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{stem}Options")
            operator.builtinOptions = getattr(schema, f"{stem}OptionsT")()
            for key, value in options.items():
                setattr(operator.builtinOptions, key, value)
        self.graph.operators.append(operator)
        return made

    def cast(self, place, shape):
        """A bool as fp32."""
        kinds = {"inDataType": schema.TensorType.BOOL, "outDataType": schema.TensorType.FLOAT32}
        return self.add("CAST", [place], shape, **kinds)

    def content(self, *outputs):
        """The file with *outputs*, and a signature `main` that calls its inputs x0, x1, ... and outputs sr, y1, ..."""
        self.graph.outputs = list(outputs)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "main", 0
        signature.inputs = [self._port(f"x{i}", place) for i, place in enumerate(self.graph.inputs)]
        signature.outputs = [self._port(f"y{i}" if i else "sr", place) for i, place in enumerate(outputs)]
        self.model.signatureDefs = [signature]
        return packed(self.model)

    def _port(self, name, place):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, place
        return entry

    @property
    def inputs(self):
        """The examples, by name."""
        return {f"x{i}": value for i, value in enumerate(self.feeds)}


def packed(model):
    """The file of a `ModelT`."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def behind(content):
    """The file *content* with the numbers of its buffers behind the flatbuffer, as some tools write them."""
    model = read_model(content)
    held = [(buffer, bytes(buffer.data)) for buffer in model.buffers if buffer.data is not None and len(buffer.data)]
    # Fields that are 0 take no room.
    for buffer, data in held:
        buffer.data, buffer.offset, buffer.size = None, 2, len(data)
    end = len(packed(model)) + 15 & -16
    for buffer, data in held:
        buffer.offset, end = end, end + len(data) + 15 & -16
    found = packed(model)
    for buffer, data in held:
        found = found.ljust(buffer.offset, b"\0") + data
    return found


def elementwise(kind, left, right, constant, dtype=np.float32):
    """A file with one operator of operands of shapes *left* and *right*; *constant* is "left", "right" or None."""
    generator, file = np.random.default_rng(0), File()
    values = [(generator.random(shape) * 40 + 1).astype(dtype) for shape in (left, right)]
    sides = ("left", "right")
    places = [file.constant(v) if side == constant else file.given(v) for v, side in zip(values, sides, strict=True)]
    shape = np.broadcast_shapes(left, right)
    if kind in ("GREATER", "LESS", "EQUAL"):
        return file, file.content(file.cast(file.add(kind, places, shape, np.bool_), shape))
    return file, file.content(file.add(kind, places, shape, dtype))
