"""The operations, by topic. Importing this package registers them."""

from ppexport.backends.coreml.evaluator.operations import (
    activations,
    arithmetic,
    compressed,
    indexing,
    linear,
    norms,
    pooling,
    quantised,
    reductions,
    resizing,
    shapes,
)

__all__ = [
    "activations",
    "arithmetic",
    "compressed",
    "indexing",
    "linear",
    "norms",
    "pooling",
    "quantised",
    "reductions",
    "resizing",
    "shapes",
]
