"""A formulation in ONNX Runtime, as a candidate that takes its turn."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from peers.candidate import Candidate, Image
from peers.in_onnxruntime import stop_spinning

from floors.graph import copy_name, make_model, outputs_of
from floors.part import Arrays, Formulation, Part
from ppexport.device.runner import Flushed
from ppexport.errors import UnavailableError, first_line, require

NO_PICTURE: Image = np.zeros((1, 3, 1, 1), np.float32)


class Kernel(Candidate):
    """*copies* of one formulation in a session of its own, each with inputs and outputs of its own."""

    flush = True

    def __init__(self, part: Part, formulation: Formulation, threads: int, copies: int) -> None:
        super().__init__(f"{part.key}: {formulation.name}", f"{part.name}: {formulation.name}", NO_PICTURE)
        self.part, self.formulation, self.threads, self.copies = part, formulation, threads, copies
        self._session: Any = None
        self._binding: Any = None
        self._inputs: list[Any] = []
        self._outputs: dict[str, Any] = {}

    def prepare(self) -> None:
        """Open the session, unless it is open. Raises UnavailableError where ONNX Runtime refuses it."""
        if self._session is not None:
            return
        require("onnxruntime", "onnx")
        import onnxruntime

        options = stop_spinning(onnxruntime.SessionOptions())
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        model = make_model(self.part, self.formulation, self.copies).SerializeToString()
        try:
            with Flushed():
                session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._bind(session, onnxruntime.OrtValue.ortvalue_from_numpy)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise UnavailableError(f"ONNX Runtime cannot run it: {first_line(error)}") from None
        self._session = session

    def _bind(self, session: Any, value_of: Any) -> None:
        """Bind every copy to memory of its own, as in a network, where no kernel finds what it needs where it left it.

        With all copies on the same memory, in their caches, the sum of the parts would be one that no network reaches.
        """
        self._binding = session.io_binding()
        for i in range(self.copies):
            for name, array in self.formulation.take(self.part.inputs).items():
                own = array.copy()
                value = value_of(own)
                # The memory is NumPy's, and has to outlive the binding.
                self._inputs += [own, value]
                self._binding.bind_ortvalue_input(copy_name(i, name), value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name, "cpu")
        session.run_with_iobinding(self._binding)
        values = self._binding.get_outputs()
        # From now on every run writes where the first one wrote.
        for output, value in zip(session.get_outputs(), values, strict=True):
            self._binding.bind_ortvalue_output(output.name, value)
        # Outputs are in the order of the copies, the first one's in front.
        self._outputs = dict(zip(outputs_of(self.part, self.formulation), values, strict=False))

    def run(self) -> Image:
        """All copies once; the picture is not touched."""
        self._session.run_with_iobinding(self._binding)
        return self.lr

    def time(self) -> float:
        """Seconds of one copy."""
        begin = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        return (time.perf_counter() - begin) / self.copies

    def results(self) -> Arrays:
        """What was computed last, in rows."""
        return self.formulation.give({name: value.numpy() for name, value in self._outputs.items()})
