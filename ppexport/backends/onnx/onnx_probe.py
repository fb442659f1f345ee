"""Looks into a shipped ONNX file: shows every layer's categories and tokens, and can take other categories instead.

A debug copy is cut from the very file that ships, where its nodes' names tell the modules that the network's roles
name, so that what `parity` looks into is what a user runs:

    before   ArgMax -> consumers                          after   ArgMax -> output categories_L
                                                                  Gather(input categories, L) -> consumers

ONNX Runtime's CPU kernels compute fp16 graphs in fp32: it casts up before and down behind every node, and then removes
the pairs of casts that meet, so that nothing is rounded there. A probe of a file in half precision rounds:

    before   Gemm h -> Mul h -> Cast f
    after    Gemm h -> Identity h -> Identity h -> Mul h -> Identity h -> Identity h -> Cast f

An Identity of fp16 keeps the casts apart. It takes two, since a single node of fp16 is computed in fp32 as well (ONNX
Runtime 1.32), and a session that does not optimise them away. Sums inside a node stay fp32, as in the tensor cores of
a GPU, whose order of summation is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import ChosenFrom, Inside, Probe
from ppexport.backends.onnx import BACKEND
from ppexport.backends.onnx.modules import known_modules, module_of
from ppexport.backends.onnx.run_onnxruntime import load, make_frugal_session
from ppexport.errors import ArtifactError
from ppexport.networks.architecture import Place, Routing, find_architecture, place_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from ppexport.device.runner import Arrays, Runner
    from ppexport.twin.twin import StaticTwin

INJECTED = "categories"


def round_outputs(model: ModelProto) -> ModelProto:
    """A copy of *model* with two Identity nodes behind everything that makes fp16."""
    import onnx
    from onnx import TensorProto, helper

    copy = _copy(model)
    inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=True).graph
    half = {info.name for info in inferred.value_info if info.type.tensor_type.elem_type == TensorProto.FLOAT16}
    nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in half:
                exact, between = f"{name}_exact", f"{name}_between"
                node.output[i] = exact
                nodes.append(helper.make_node("Identity", [exact], [between], name=f"{name}/round"))
                nodes.append(helper.make_node("Identity", [between], [name], name=f"{name}/rounded"))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def rounding_session(model: ModelProto, where: str) -> Any:
    """A session that computes the fp16 of *model* in half precision; *where* names it in errors."""
    from onnxruntime import GraphOptimizationLevel

    settings = {"graph_optimization_level": GraphOptimizationLevel.ORT_DISABLE_ALL}
    return load(round_outputs(model).SerializeToString(), where, enable_cpu_mem_arena=False, **settings)


def _copy(model: ModelProto) -> ModelProto:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


class OnnxProbe(Probe):
    """The layers of one ONNX file, opened for looking into."""

    def __init__(
        self, path: Path, routing: Routing | None, model: ModelProto | None = None, *, rounds: bool = False
    ) -> None:
        """Find the places to look at.

        Args:
            path: the file, which errors name.
            routing: roles of the network's modules; None shows the picture only.
            model: what was read from *path*; None reads it, but no file that it names.
            rounds: compute fp16 in half precision; the picture is then the artifact's, else only a copy's.

        Raises:
            ArtifactError: the names of its nodes do not tell the layers.
        """
        import onnx

        self.model = onnx.load_model_from_string(path.read_bytes()) if model is None else model
        self.where, self.gives_picture = str(path), rounds
        self._open = rounding_session if rounds else _frugal_session
        self._sessions: dict[tuple[str, bool], Any] = {}
        self.choices, self.tokens, self.mask = list[str](), list[str](), list[str]()
        self._chosen_from: list[tuple[str | None, str | None]] | None = None
        if routing is not None:
            self._find(routing)

    def _find(self, routing: Routing) -> None:
        known = known_modules(value.name for value in self.model.graph.initializer)
        modules = [(module_of(node, known), node) for node in self.model.graph.node]

        def nodes(role: str, *operators: str) -> dict[Place, NodeProto]:
            placed = ((place_of(role, module), node) for module, node in modules if node.op_type in operators)
            found = {place: node for place, node in placed if place is not None}
            return {place: found[place] for place in sorted(found)}

        self.choices = [node.output[0] for node in nodes(routing.choice, "ArgMax").values()]
        self.tokens = [node.output[0] for node in nodes(routing.tokens, "Add").values()]
        masks = (nodes(routing.mask, "ArgMax"), nodes(routing.mask, "Greater")) if routing.mask else ()
        self.mask = [node.output[0] for found in masks for node in found.values()]
        # A mask that is an input has neither of its nodes.
        if not self.choices or len(self.choices) != len(self.tokens) or len(self.mask) not in (0, 2):
            raise ArtifactError(f"{self.where}: its node names do not tell the layers, so it cannot be looked into")
        stored = {value.name for value in self.model.graph.initializer}
        read = [
            [None if node.input[0] in stored else node.input[0] for node in found.values()]
            for found in (nodes(routing.norm, "LayerNormalization"), nodes(routing.keys, "Gemm"))
        ]
        if all(len(names) == len(self.choices) for names in read):
            self._chosen_from = list(zip(*read, strict=True))

    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """As `Probe.run`; *inputs* are `lr`, and `slots` and `mask` where the graph has them."""
        from onnx import TensorProto

        kinds = dict.fromkeys([*self.choices, *self.mask[:1]], TensorProto.INT64)
        kinds |= dict.fromkeys(self.mask[1:], TensorProto.BOOL)
        sr, impure, *rest = self._run("routing", kinds, inputs, categories, ["sr", "impure_tokens"])
        chosen, mask = rest[: len(self.choices)], rest[len(self.choices) :]
        labels, pure = mask if mask else (None, None)
        own = np.stack(chosen) if chosen else np.zeros((0, 0), np.int64)
        return Inside(sr, int(impure[0]), own, labels, pure)

    def layers(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """The output (n, c) of every layer, which a runtime keeps to the end of the run."""
        from onnx import TensorProto

        return self._run("tokens", dict.fromkeys(self.tokens, TensorProto.FLOAT), inputs, categories)

    def chosen_from(self, inputs: Arrays, categories: NDArray[np.int64]) -> list[ChosenFrom]:
        """As `Probe.chosen_from`. The dictionary is None in the first layer of a block, where it is stored."""
        from onnx import TensorProto

        if self._chosen_from is None:
            raise ArtifactError(f"{self.where}: its node names do not tell what the layers choose from")
        names = dict.fromkeys(name for pair in self._chosen_from for name in pair if name is not None)
        kinds = dict.fromkeys(names, TensorProto.FLOAT)
        found = dict(zip(names, self._run("sources", kinds, inputs, categories), strict=True))
        chosen = []
        for tokens, dictionary in self._chosen_from:
            if tokens is None:
                raise ArtifactError(f"{self.where} stores what a layer chooses from, so it cannot be looked into")
            chosen.append(ChosenFrom(found[tokens], None if dictionary is None else found[dictionary]))
        return chosen

    def close(self) -> None:
        """Release the sessions."""
        self._sessions.clear()

    def _run(
        self,
        copy: str,
        kinds: Mapping[str, int],
        inputs: Arrays,
        categories: NDArray[np.int64] | None,
        first: list[str] | None = None,
    ) -> list[Any]:
        """The outputs *first* and *kinds*, {name: element type}, of a debug copy, opened when it is first needed."""
        key = (copy, categories is not None)
        if key not in self._sessions:
            model = self._with_outputs(kinds)
            if categories is not None:
                self._inject(model)
            self._sessions[key] = self._open(model, self.where)
        if categories is not None:
            inputs = {**inputs, INJECTED: categories.astype(np.int64)}
        return list(self._sessions[key].run([*(first or []), *kinds], inputs))

    def _with_outputs(self, kinds: Mapping[str, int]) -> ModelProto:
        from onnx import helper

        copy = _copy(self.model)
        copy.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items())
        return copy

    def _inject(self, model: ModelProto) -> None:
        """Have the layers of *model* take their categories from a new input (layers, n) int64."""
        from onnx import TensorProto, helper

        graph = model.graph
        layer_of = {name: layer for layer, name in enumerate(self.choices)}
        nodes = []
        for layer in layer_of.values():
            number = f"{INJECTED}_{layer}_number"
            graph.initializer.append(helper.make_tensor(number, TensorProto.INT64, [], [layer]))
            nodes.append(helper.make_node("Gather", [INJECTED, number], [f"{INJECTED}_{layer}"], axis=0))
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name in layer_of:
                    node.input[i] = f"{INJECTED}_{layer_of[name]}"
        nodes.extend(graph.node)
        del graph.node[:]
        graph.node.extend(nodes)
        graph.input.append(helper.make_tensor_value_info(INJECTED, TensorProto.INT64, [len(layer_of), None]))


def _frugal_session(model: ModelProto, where: str) -> Any:
    return make_frugal_session(model.SerializeToString(), where)


def probe(runner: Runner, twin: StaticTwin | None = None, folder: Path | None = None) -> OnnxProbe | None:
    """The file of *runner*, opened; None without the package `onnx`, and where there is nothing to look into."""
    manifest = runner.artifact.manifest
    routing, rounds = find_architecture(manifest.arch).routing, manifest.precision in BACKEND.rounded
    if find_spec("onnx") is None or (routing is None and not rounds):
        return None
    from ppexport.backends.onnx.model_file import artifact_model

    return OnnxProbe(runner.artifact.graph_file, routing, artifact_model(runner.artifact), rounds=rounds)
