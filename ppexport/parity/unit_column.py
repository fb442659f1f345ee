"""The column of a Core ML package on one compute unit of a Mac."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppexport.backends.coreml.trial import CHILD, Trial, run_trial
from ppexport.device.runner import Runner, feeds
from ppexport.errors import InputError
from ppexport.parity.columns import Column, Sample
from ppexport.parity.inputs import ParityInput


def unit_column(
    runner: Runner, unit: str, inputs: Sequence[ParityInput], command: Sequence[str] = CHILD
) -> tuple[str, Column, dict[str, Any]]:
    """Name, column and compute plan of the package behind *runner* on *unit*. Raises TrialError, InputError."""
    manifest = runner.artifact.manifest
    if manifest.backend != "coreml":
        raise InputError("--units is for Core ML packages")
    prepared = [runner.prepare(item.lr) for item in inputs]
    trial: Trial = run_trial(
        runner.artifact.model_file, unit, [feeds(manifest, given) for given in prepared], command=command
    )
    column = {
        item.name: Sample(
            sr=found["sr"].astype(np.float32),
            impure=int(found["impure_tokens"].reshape(-1)[0]),
            capacity=given.capacity,
        )
        for item, given, found in zip(inputs, prepared, trial.outputs, strict=True)
    }
    return f"coreml-{manifest.precision}-{unit}", column, trial.plan
