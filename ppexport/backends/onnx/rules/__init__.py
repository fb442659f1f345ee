"""The lint rules. A new rule is a class in one of these files, and a line here."""

from __future__ import annotations

from ppexport.backends.onnx.rules.base import ALL_RUNTIMES, Finding, Rule, Runtime, Severity
from ppexport.backends.onnx.rules.constants import DuplicateConstant, LargeConstant, UnusedConstant
from ppexport.backends.onnx.rules.operators import (
    ControlFlow,
    CumulativeSum,
    DataDependentOperator,
    Randomness,
    Sequences,
    Sorting,
    TensorRTOperator,
)
from ppexport.backends.onnx.rules.shapes import DataDependentShape, DynamicShape, Rank, UnknownRank
from ppexport.backends.onnx.rules.structure import ExternalData, InvalidGraph, ShapeConflict, SparseConstant
from ppexport.backends.onnx.rules.tensor_types import Float64, Int64, IntegerChoice, Quantization, TensorTypes
from ppexport.backends.onnx.rules.versions import (
    ForeignDomain,
    IrVersion,
    OperatorVersion,
    OpsetVersion,
    UnknownOperator,
)

__all__ = ["ALL_RUNTIMES", "RULES", "Finding", "Rule", "Runtime", "Severity"]

RULES: tuple[Rule, ...] = (
    IrVersion(),
    OpsetVersion(),
    OperatorVersion(),
    UnknownOperator(),
    ForeignDomain(),
    Sorting(),
    DataDependentOperator(),
    ControlFlow(),
    Sequences(),
    CumulativeSum(),
    Randomness(),
    TensorRTOperator(),
    Rank(),
    UnknownRank(),
    DynamicShape(),
    DataDependentShape(),
    LargeConstant(),
    DuplicateConstant(),
    UnusedConstant(),
    TensorTypes(),
    Float64(),
    Int64(),
    IntegerChoice(),
    Quantization(),
    ExternalData(),
    SparseConstant(),
    InvalidGraph(),
    ShapeConflict(),
)
"""In the order in which findings of equal severity are reported."""
