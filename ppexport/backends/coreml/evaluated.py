"""Runs a package in the evaluator, with what an app would feed, and looks into it. Imports torch when it is opened.

The probe reads and replaces results of the very package that ships, where the names of its operations (`specification`)
contain the modules that the network's roles name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import ChosenFrom, Inside, Probe
from ppexport.backends.coreml.specification import decode
from ppexport.device.artifact import Artifact
from ppexport.device.capacities import capacity_function
from ppexport.device.runner import Runner, SessionRunner
from ppexport.errors import ArtifactError, InputError, require
from ppexport.networks.architecture import Place, Routing, find_architecture, place_of

if TYPE_CHECKING:
    from ppexport.backends.coreml.evaluator.evaluate import Evaluator
    from ppexport.backends.coreml.program import Operation

Arrays = dict[str, NDArray[Any]]


class Session:
    """An opened package of this project."""

    def __init__(self, path: Path, *, rounding: bool = True) -> None:
        """*rounding* False computes in fp32 what is fp16. Raises ArtifactError for a damaged package."""
        require("torch", "coreml")
        from ppexport.backends.coreml.package import read_package

        self.path, self.rounding = path, rounding
        self.package = read_package(path)
        self.facts = self.package.facts
        self._evaluators: dict[str, Evaluator] = {}

    def evaluator(self, capacity: int | None = None) -> Evaluator:
        """The evaluator of the function for *capacity* slots, made when it is first needed; None for the default.

        Raises InputError for a capacity that the package has no function for.
        """
        from ppexport.backends.coreml.evaluator.evaluate import Evaluator

        name = self.package.default if capacity is None else capacity_function(capacity)
        if name not in self._evaluators:
            self._evaluators[name] = Evaluator(self.package, name, rounding=self.rounding)
        return self._evaluators[name]

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        keep: Collection[str] = (),
        replace: Mapping[str, NDArray[Any]] | None = None,
    ) -> Arrays:
        """Outputs by name, and the results named in *keep*.

        Args:
            inputs: as the ONNX graph takes them. `lr` is float32 (1, 3, h, w) in [0, 1], and so is `sr`, also where the
                package takes pictures of 8 bits. The length of `slots` (1, C) chooses the function of a capacity set.
            keep: names of inner results.
            replace: results that stand in for what an operation computed.

        Raises:
            ArtifactError: the package is damaged or computes no `sr` and `impure_tokens`.
            InputError: the package has no such function, inputs or results.
        """
        fed = dict(inputs)
        slots = fed.pop("slots", None)
        if self.package.images:
            fed["lr"] = np.floor(np.clip(fed["lr"], 0, 1) * np.float32(255) + np.float32(0.5))
        evaluator = self.evaluator(None if slots is None else slots.shape[1])
        found = evaluator.run(fed, keep=keep, replace=replace)
        for name in ("sr", "impure_tokens"):
            if name not in found:
                raise ArtifactError(f"{self.path} computes no {name}: no export made it")
        found["sr"] = found["sr"].astype(np.float32)
        if self.package.images:
            found["sr"] /= np.float32(255)
        return found


class CoreMLRunner(SessionRunner):
    """A Core ML artifact in the evaluator, on any machine: exact, slow, and no measure of a device's speed."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises ArtifactError for a damaged package or one that is not what the manifest says."""
        super().__init__(artifact, Session(artifact.model_file))

    def _close(self) -> None:
        del self.session


CHOICES = {"ArgMax": "reduce_argmax", "Less": "less"}
"""Core ML's operations for the operators of ONNX that choose."""


class PackageProbe(Probe):
    """The layers of one package, opened for looking into."""

    def __init__(self, path: Path, routing: Routing, *, rounding: bool = True) -> None:
        """Find the places to look at.

        Args:
            path: the package.
            routing: roles of the network's modules.
            rounding: False computes in fp32 what is fp16.

        Raises:
            ArtifactError: the package is damaged, or the names of its operations do not contain the layers.
        """
        self.session, self.where = Session(path, rounding=rounding), str(path)
        self.steps, constants = self.session.evaluator().steps, self.session.evaluator().constants
        mask = routing.mask
        self._kind = np.int32 if routing.operator == "ArgMax" else np.bool_
        kind = CHOICES[routing.operator]
        self.choices, self.tokens = self._results(routing.choice, kind), self._results(routing.tokens, "add")
        self.labels, self.mask = (self._results(mask, kind) if mask else [] for kind in ("reduce_argmax", "greater"))
        missing = bool(routing.choice) and not self.choices
        if missing or len(self.choices) != len(self.tokens):
            raise ArtifactError(
                f"{path}: the names of its operations do not contain the layers, so it cannot be inspected"
            )

        def read(role: str, kind: str) -> dict[Place, str]:
            """The first thing that each operation reads and that is no constant."""
            given = {place: [n for n in op.reads() if n not in constants] for place, op in self._placed(role, kind)}
            return {place: names[0] for place, names in given.items() if names}

        self._read_tokens, self._read_keys = read(routing.norm, "layer_norm"), read(routing.keys, "linear")

    def _placed(self, role: str, kind: str) -> list[tuple[Place, Operation]]:
        """The operations of the type *kind* in the modules of the *role*, in the order of block and layer."""
        placed = ((place_of(role, decode(op.name)), op) for op in self.steps if op.type == kind)
        return sorted(((place, op) for place, op in placed if place is not None), key=lambda found: found[0])

    def _results(self, role: str, kind: str) -> list[str]:
        """The names of their results, which are the same in all functions."""
        return list({place: op.outputs[0].name for place, op in self._placed(role, kind)}.values())

    def stand_in(self, categories: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
        """What replaces the choices of the layers."""
        if categories is None:
            return {}
        return {name: chosen.astype(self._kind) for name, chosen in zip(self.choices, categories, strict=True)}

    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """As `Probe.run`; *inputs* are `lr`, and `slots` and `mask` where the package has functions or a mask."""
        found = self.session.run(inputs, [*self.choices, *self.labels, *self.mask], self.stand_in(categories))
        chosen = [found[name].reshape(-1) for name in self.choices]
        if len({row.size for row in chosen}) > 1 or not found["impure_tokens"].size:
            raise ArtifactError(f"{self.where}: its layers choose for different numbers of tokens: no export made it")
        return Inside(
            found["sr"],
            int(found["impure_tokens"].reshape(-1)[0]),
            np.stack(chosen).astype(np.int64) if chosen else np.zeros((0, 0), np.int64),
            found[self.labels[0]].astype(np.int64) if self.labels else None,
            found[self.mask[0]].astype(np.bool_).reshape(-1) if self.mask else None,
        )

    def layers(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """The output (rows, c) of every layer."""
        found = self.session.run(inputs, self.tokens, self.stand_in(categories))
        return [found[name].astype(np.float32).reshape(-1, found[name].shape[-1]) for name in self.tokens]

    def chosen_from(self, inputs: Arrays, categories: NDArray[np.int64]) -> list[ChosenFrom]:
        """As `Probe.chosen_from`. The dictionary is None in the first layer of a block, where it is a constant."""
        tokens, keys = self._read_tokens, self._read_keys
        if len(tokens) != len(self.choices):
            raise ArtifactError(f"{self.where}: the names of its operations do not show what the layers choose from")
        found = self.session.run(inputs, [*tokens.values(), *keys.values()], self.stand_in(categories))
        return [
            ChosenFrom(found[name].astype(np.float32), found[keys[place]].astype(np.float32) if place in keys else None)
            for place, name in tokens.items()
        ]


def routing_of(runner: Runner) -> Routing:
    """The roles of the network that a Core ML package was made from. Raises InputError for anything else."""
    manifest = runner.artifact.manifest
    routing = find_architecture(manifest.arch).routing
    if manifest.backend != "coreml" or routing is None:
        raise InputError(f"diverge looks into Core ML packages, not {manifest.backend}")
    return routing
