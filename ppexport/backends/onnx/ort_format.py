"""model.onnx -> model.ort, which ONNX Runtime Mobile and reduced builds read, and the operators such a build needs.

ONNX Runtime optimises the graph as it would when it opens it, for ARM as for x86 (no NCHWc layout, int8 stays signed),
and writes the result. Its own converter would do the same and fold the position bias of every layer, 1 MB each.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ppexport.errors import ExportError, first_line

FORMATS = ("onnx", "ort")
PRECISIONS = ("fp32", "int8")
"""ONNX Runtime would write an fp16 graph as it computes it on a CPU: in fp32, with casts."""
LARGEST_FOLDED = 1 << 14
"""Bytes of the largest constant that may be computed beforehand."""
LAYOUTS = ("NchwcTransformer",)
"""Optimisers whose result runs on x86 alone."""
REQUIRED = "required_operators_and_types.config"


def convert(model: Path) -> tuple[Path, Path]:
    """Write `.ort` and the list of operators and types beside the ONNX file *model*; both paths.

    The list is what ONNX Runtime's `build --include_ops_by_config` takes. Raises ExportError.
    """
    import onnxruntime
    from onnxruntime.tools.ort_format_model import create_config_from_models

    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)

    target, required = model.with_suffix(".ort"), model.with_suffix(f".{REQUIRED}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    for key, value in {
        "session.save_model_format": "ORT",
        "session.qdqisint8allowed": "1",
        "optimization.constant_folding_max_output_size_in_bytes": str(LARGEST_FOLDED),
    }.items():
        options.add_session_config_entry(key, value)
    try:
        onnxruntime.InferenceSession(
            model.read_bytes(), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(LAYOUTS)
        )
        create_config_from_models([target], required, True)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} cannot write its own format: {first_line(error)}"
        ) from None
    # It names the files by their whole paths.
    lines = [line for line in required.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join([f"# Operators and types of {target.name}, for onnxruntime's --include_ops_by_config", *lines])
    required.write_text(text + "\n", encoding="utf-8")
    return target, required
