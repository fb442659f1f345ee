"""Whether a CPU's int8 products saturate in OpenVINO, and whether a model would notice.

CPUs without VNNI add two products of an unsigned and a signed byte in 16 bits (`vpmaddubsw`), which end at 32767, while
2 * 255 * 127 is 64770: large sums come out too small, without a word. Two products with weights of 7 bits stay within,
2 * 255 * 64 = 32640. ONNX Runtime's kernels do not have this limit.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

SAFE_WEIGHT = 64
"""The largest magnitude of an int8 weight whose products never saturate: that of 7 bits."""
_DEPTH, _OUTPUTS = 8, 16


def has_wide_weights(model: Any) -> bool:
    """Whether an int8 constant of *model*, an openvino.Model, goes beyond `SAFE_WEIGHT`."""
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_output_element_type(0).get_type_name() == "i8":
            # Wider than int8, in which 128 is no number.
            values = node.data.astype(np.int16)
            if values.size and np.abs(values).max() > SAFE_WEIGHT:
                return True
    return False


def saturates(core: Any, device: str, settings: dict[str, Any]) -> bool:
    """Whether *core*, an openvino.Core, computes 127 * 127 summed over eight inputs as anything else on *device*."""
    openvino, op = import_module("openvino"), import_module("openvino.opset13")
    x = op.parameter([1, _DEPTH], np.float32)
    low, high = (op.constant(np.float32(limit)) for limit in (-128, 127))
    weights = op.convert(op.constant(np.full((_DEPTH, _OUTPUTS), 127, np.int8)), "f32")
    scaled = op.multiply(weights, op.constant(np.ones((1, _OUTPUTS), np.float32)))
    product = op.matmul(op.fake_quantize(x, low, high, low, high, 256), scaled, False, False)
    compiled = core.compile_model(openvino.Model([op.result(product)], [x], "saturation"), device, settings)
    found = compiled.create_infer_request().infer([np.full((1, _DEPTH), 127, np.float32)])[0]
    return bool((found != _DEPTH * 127 * 127).any())
