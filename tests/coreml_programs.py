"""Packages for tests: converted from ordinary PyTorch models, and made of one operation without coremltools."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch

from ppexport.backends.coreml.evaluator.evaluate import Evaluator
from ppexport.backends.coreml.mil_program import coremltools, quiet_converter
from ppexport.backends.coreml.package import read_package
from ppexport.backends.coreml.program import (
    TYPES,
    Function,
    Operation,
    Package,
    Port,
    Reference,
    TensorType,
)

logging.getLogger("coremltools").setLevel(logging.ERROR)
ELEMENTS = {kind.name: kind for kind in TYPES.values()}


class Call(torch.nn.Module):
    """A function as a module, which is all that the converter takes."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def saved(module, inputs, folder, *, precision="fp32", target="iOS18"):
    """The package of *module* (a Module or a function of tensors), saved, for the example *inputs*."""
    ct = coremltools()
    names = [f"in{i}" for i in range(len(inputs))]
    types = {torch.float32: np.float32, torch.int32: np.int32, torch.float16: np.float16}
    with quiet_converter(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(Call(module).eval(), tuple(inputs), check_trace=False),
            inputs=[
                ct.TensorType(name=n, shape=tuple(x.shape), dtype=types[x.dtype])
                for n, x in zip(names, inputs, strict=True)
            ],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            skip_model_load=True,
        )
    path = folder / "saved.mlpackage"
    model.save(str(path))
    return path


def evaluated(path, inputs):
    """The outputs of the saved package, in their order, and the types of its operations."""
    evaluator = Evaluator(read_package(path))
    found = evaluator.run({f"in{i}": x.numpy() for i, x in enumerate(inputs)})
    return [found[name] for name in evaluator.function.outputs], {op.type for op in evaluator.function.operations}


def tensor_type(array):
    """The type of *array*."""
    name = {"float16": "fp16", "float32": "fp32"}.get(array.dtype.name, array.dtype.name)
    return TensorType(ELEMENTS[name], array.shape)


def one_operation(kind, tensors, constants, results, opset="CoreML8"):
    """An evaluator for one operation: *tensors* {parameter: array or list of arrays}, *results* [(element, shape)]."""
    inputs, ports = {}, []
    for parameter, arrays in tensors.items():
        bound = []
        for i, array in enumerate(arrays if isinstance(arrays, list) else [arrays]):
            ports.append(Port(f"{parameter}{i}", tensor_type(array)))
            bound.append(Reference(ports[-1].name))
        inputs[parameter] = bound
    inputs.update({name: [value if isinstance(value, str) else np.array(value)] for name, value in constants.items()})
    outputs = tuple(Port(f"y{i}", TensorType(ELEMENTS[e], tuple(shape))) for i, (e, shape) in enumerate(results))
    op = Operation(kind, "tested", inputs, outputs)
    function = Function("main", opset, tuple(ports), tuple(port.name for port in outputs), (op,))
    return Evaluator(Package({"main": function}, "main"))


def run_one(kind, tensors, constants, results, opset="CoreML8"):
    """The results of `one_operation`."""
    feeds = {
        f"{parameter}{i}": array
        for parameter, arrays in tensors.items()
        for i, array in enumerate(arrays if isinstance(arrays, list) else [arrays])
    }
    found = one_operation(kind, tensors, constants, results, opset).run(feeds)
    return [found[f"y{i}"] for i in range(len(results))]
