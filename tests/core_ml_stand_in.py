"""A stand-in for coremltools on a Mac: real packages and their specifications, computed by the evaluator.

It has what `ppexport.backends.coreml.run_mac` uses, called as coremltools 9.0 documents it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL")


class MLNeuralEngineComputeDevice:
    """Named as coremltools' own."""


class MLCPUComputeDevice:
    """Named as coremltools' own."""


class MLModel:
    def __init__(self, model, *, compute_units, function_name=None):
        from ppexport.backends.coreml.package import read_package

        assert compute_units in UNITS
        if "broken" in model:
            raise RuntimeError("no such\nmodel")
        self.path, self.package = model, read_package(Path(model))
        self.function = function_name or self.package.default
        if self.function not in self.package.functions:
            raise ValueError(f"function_name {function_name} not found in the model.")

    def get_spec(self):
        from ppexport.backends.coreml.mil_program import coremltools

        return coremltools().utils.load_spec(self.path)

    def get_compiled_model_path(self):
        return self.path

    def predict(self, given):
        from ppexport.backends.coreml.evaluator.evaluate import Evaluator

        described = self.get_spec().description
        described = next((f for f in described.functions if f.name == self.function), described)
        assert set(given) == {feature.name for feature in described.input}
        fed = dict(given)
        for feature in (*described.input, *described.output):
            if feature.type.WhichOneof("Type") == "imageType":
                kind = feature.type.imageType
                assert kind.colorSpace == kind.ColorSpace.Value("RGB")
                if feature.name in given:
                    assert (given["lr"].mode, given["lr"].size) == ("RGB", (kind.width, kind.height))
                    fed["lr"] = np.asarray(given["lr"], np.float32).transpose(2, 0, 1)[None]
        out = Evaluator(self.package, self.function).run(fed)
        if any(feature.type.WhichOneof("Type") == "imageType" for feature in described.output):
            out["sr"] = Image.fromarray(out["sr"][0].transpose(1, 2, 0).astype(np.uint8)).convert("RGBA")
        return {**out, "impure_tokens": out["impure_tokens"].astype(np.float32)}


class MLComputePlan:
    """Linear layers on the Neural Engine, other operations on the CPU, nothing known of constants."""

    def __init__(self, path):
        from ppexport.backends.coreml.package import read_package

        functions = {
            name: SimpleNamespace(
                block=SimpleNamespace(
                    operations=[
                        SimpleNamespace(operator_name=f"ios18.{op.type}", outputs=op.outputs) for op in f.operations
                    ]
                )
            )
            for name, f in read_package(Path(path)).functions.items()
        }
        self.model_structure = SimpleNamespace(program=SimpleNamespace(functions=functions))

    @classmethod
    def load_from_path(cls, path, compute_units):
        assert compute_units in UNITS
        return cls(path)

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        return None if operation.operator_name == "ios18.const" else SimpleNamespace(weight=0.001)

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        if operation.operator_name == "ios18.const":
            return None
        device = MLNeuralEngineComputeDevice if operation.operator_name == "ios18.linear" else MLCPUComputeDevice
        return SimpleNamespace(preferred_compute_device=device())


def import_module(name):
    """In place of `importlib.import_module`."""
    return {
        "coremltools": SimpleNamespace(
            ComputeUnit=SimpleNamespace(**{unit: unit for unit in UNITS}), models=SimpleNamespace(MLModel=MLModel)
        ),
        "coremltools.models.compute_plan": SimpleNamespace(MLComputePlan=MLComputePlan),
    }[name]


if __name__ == "__main__":
    # A trial's child on a Mac: `python core_ml_stand_in.py FOLDER`.
    from ppexport.backends.coreml import run_mac, trial

    run_mac.import_module = import_module
    trial.run_child(Path(sys.argv[1]))
