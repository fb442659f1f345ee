"""Twin -> model.tflite by `litert-torch`: rewritten, described, and compared with the twin.

One signature `main` for one capacity; a capacity set has a signature per capacity over the same weights:

    capacity_1024, capacity_2048, capacity_3072, capacity_4096
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import warnings
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ppexport.backends.backend import BuildJob, Step, model_facts
from ppexport.backends.litert.gpu_constants import align_constants
from ppexport.backends.litert.litert_precision import narrow_weights
from ppexport.backends.litert.litert_probe import LiteRTProbe
from ppexport.backends.litert.rewrite import rewrite
from ppexport.backends.litert.run_litert import Session
from ppexport.backends.litert.shown import INSIDE, ShownFront, hide
from ppexport.backends.litert.tflite import add_facts, edit, name_by_module
from ppexport.backends.self_check import example_inputs, self_check
from ppexport.device.capacities import function_name
from ppexport.device.quiet import quiet
from ppexport.errors import ExportError, first_line, require
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

MODEL = "model.tflite"
LEAST_DB = {"fp32": 90.0, "fp16": 40.0, "int8": 20.0}
"""Below this the conversion is wrong."""
STAGE = re.compile(r"\[START\].*>\s*(Torch Export|Run FX Passes|Lower to MLIR|Run LiteRT Converter Passes)")
STAGES = {
    "Torch Export": "tracing the rewritten twin",
    "Run FX Passes": "simplifying what was traced",
    "Lower to MLIR": "lowering it, operator by operator",
    "Run LiteRT Converter Passes": "converting",
}


class Stages(io.TextIOBase):
    """A stream that drops what the converter prints, and shows its stages as steps."""

    def __init__(self, step: Step) -> None:
        self.step, self.last = step, ""

    def write(self, text: str, /) -> int:
        """Take what is printed."""
        found = STAGE.search(text)
        if found and found[1] != self.last:
            self.last = found[1]
            self.step(STAGES[self.last])
        return len(text)


def import_converter(step: Step) -> Any:
    """The module litert_torch, which shows its stages to *step* from now on. Raises UnavailableError without it."""
    require("litert_torch", "litert")
    # Its C++ parts tell of every file that they write.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    with quiet():
        import litert_torch
        from litert_torch import progress
    # Not the process's standard output, where a command prints its own.
    progress.console.file = Stages(step)
    return litert_torch


def convert(job: BuildJob, twin: StaticTwin) -> bytes:
    """*twin*, the *job*'s, as a LiteRT file in fp32.

    Raises:
        ExportError: it cannot be converted.
        UnavailableError: litert-torch is not installed.
    """
    converter = import_converter(job.step)
    capacities, inputs = job.capacities, example_inputs(twin, mask=job.mask == "input")
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for capacity in capacities or (twin.capacity,):
                front = ShownFront(twin.with_capacity(capacity))
                module = rewrite(front, front.needed, inputs)
                converter = converter.signature(function_name(capacity, capacities), module, sample_kwargs=inputs)
            model = converter.convert()
        with quiet():
            content = bytes(model.model_content())
    except (ValueError, TypeError, NotImplementedError, RuntimeError, KeyError, AssertionError, OSError) as error:
        raise ExportError(f"litert-torch cannot convert the twin: {first_line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)

    def describe(model: Any) -> None:
        shown = hide(model)
        names = {name: shown[held_by] for name, held_by in module.names.items() if held_by in shown}
        add_facts({**model_facts(twin, job.card, capacities), INSIDE: json.dumps(names)})(model)

    return edit(content, name_by_module, describe, align_constants)


def build_for_litert(job: BuildJob) -> dict[str, Any]:
    """Write `model.tflite` into the job's folder, and return what the manifest says of its precision.

    Raises:
        ExportError: a stage or the comparison with the twin failed.
        UnavailableError: litert-torch is not installed.
    """
    twin = job.twin()
    job.step("rewriting the twin for LiteRT")
    content, about = convert(job, twin), dict[str, Any]()
    if job.precision != "fp32":
        job.step(f"writing {job.precision}")
        content, about = narrow_weights(content, job.precision, job.card)
    (job.folder / MODEL).write_bytes(content)
    job.step("comparing with the twin, in LiteRT")
    with closing(Session(content, MODEL)) as session, closing(LiteRTProbe(content, MODEL)) as probe:

        def compute(inputs: Arrays, categories: Any) -> tuple[Any, int]:
            if categories is not None:
                inside = probe.run(inputs, categories)
                return inside.sr, inside.impure_tokens
            found = session.run(inputs)
            return found["sr"], int(found["impure_tokens"].reshape(-1)[0])

        self_check(compute, twin, job, backend="litert", kind="LiteRT file", least=LEAST_DB[job.precision])
    return about
