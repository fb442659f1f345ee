"""Looks into a Core ML package: every layer's categories and tokens, with other categories in their place if asked for.

It reads and replaces results of the very package that ships, which the evaluator computes, where the names of its
operations (`specification`) tell the modules that the network's roles name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import ChosenFrom, Inside, Probe, UnitRun
from ppexport.backends.coreml.evaluated import Session
from ppexport.backends.coreml.run_mac import UNITS, check_platform
from ppexport.backends.coreml.specification import decode
from ppexport.backends.coreml.trial import CHILD, run_trial
from ppexport.errors import ArtifactError, InputError
from ppexport.networks.architecture import Place, Routing, find_architecture, place_of

if TYPE_CHECKING:
    from ppexport.backends.coreml.package import Operation
    from ppexport.device.runner import Arrays, Runner
    from ppexport.twin.twin import StaticTwin


class PackageProbe(Probe):
    """The layers of one package, opened for looking into."""

    def __init__(self, path: Path, routing: Routing, *, rounding: bool = True) -> None:
        """Find the places to look at.

        Args:
            path: the package.
            routing: roles of the network's modules.
            rounding: False computes in fp32 what is fp16.

        Raises:
            ArtifactError: the package is damaged, or the names of its operations do not tell the layers.
        """
        self.session, self.where = Session(path, rounding=rounding), str(path)
        self.steps, constants = self.session.evaluator().steps, self.session.evaluator().constants
        self.choices, self.tokens = self._results(routing.choice, "reduce_argmax"), self._results(routing.tokens, "add")
        self.labels = self._results(routing.mask, "reduce_argmax") if routing.mask else []
        self.mask = self._results(routing.mask, "greater") if routing.mask else []
        if not self.choices or len(self.choices) != len(self.tokens):
            raise ArtifactError(f"{path}: its operations' names do not tell the layers, so it cannot be looked into")

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

    def _stand_in(self, categories: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
        """What replaces the choices of the layers."""
        if categories is None:
            return {}
        return {name: chosen.astype(np.int32) for name, chosen in zip(self.choices, categories, strict=True)}

    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """As `Probe.run`; *inputs* are `lr`, and `slots` and `mask` where the package has functions or a mask."""
        found = self.session.run(inputs, [*self.choices, *self.labels, *self.mask], self._stand_in(categories))
        chosen = [found[name].reshape(-1) for name in self.choices]
        if len({row.size for row in chosen}) != 1 or not found["impure_tokens"].size:
            raise ArtifactError(f"{self.where}: its layers choose for different numbers of tokens: no export made it")
        return Inside(
            found["sr"],
            int(found["impure_tokens"].reshape(-1)[0]),
            np.stack(chosen).astype(np.int64),
            found[self.labels[0]].astype(np.int64) if self.labels else None,
            found[self.mask[0]].astype(np.bool_).reshape(-1) if self.mask else None,
        )

    def layers(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """The output (n, c) of every layer."""
        found = self.session.run(inputs, self.tokens, self._stand_in(categories))
        return [found[name].astype(np.float32) for name in self.tokens]

    def chosen_from(self, inputs: Arrays, categories: NDArray[np.int64]) -> list[ChosenFrom]:
        """As `Probe.chosen_from`. The dictionary is None in the first layer of a block, where it is a constant."""
        tokens, keys = self._read_tokens, self._read_keys
        if len(tokens) != len(self.choices):
            raise ArtifactError(f"{self.where}: its operations' names do not tell what the layers choose from")
        found = self.session.run(inputs, [*tokens.values(), *keys.values()], self._stand_in(categories))
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


def probe(runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> PackageProbe | None:
    """The package of *runner*, opened; None for a network without routing."""
    routing = find_architecture(runner.artifact.manifest.arch).routing
    return None if routing is None else PackageProbe(runner.artifact.model_file, routing)


def unit_run(package: Path, unit: str, command: Sequence[str] = CHILD) -> UnitRun:
    """What runs the *package* on the compute *unit* of a Mac, in the child process *command*: outputs, and the plan."""

    def run(inputs: Sequence[Arrays]) -> tuple[list[Arrays], dict[str, Any]]:
        trial = run_trial(package, unit, inputs, command=command)
        return trial.outputs, trial.plan

    return run


def unit_runs(runner: Runner, names: Sequence[str]) -> dict[str, UnitRun]:
    """{compute unit: what runs the package of *runner* on it}, for this Mac.

    Raises InputError for an unknown unit, UnavailableError where this is no Mac.
    """
    unknown = [name for name in names if name not in UNITS]
    if unknown:
        raise InputError(f"compute units are {', '.join(UNITS)}, not {unknown[0]!r}")
    check_platform()
    return {name: unit_run(runner.artifact.model_file, name) for name in names}
