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

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from ppexport.backends.backend import ChosenFrom, Inside, Probe
from ppexport.backends.onnx.modules import known_modules, module_of
from ppexport.backends.onnx.pattern import copied, set_nodes
from ppexport.backends.onnx.run_onnxruntime import load, make_frugal_session
from ppexport.errors import ArtifactError
from ppexport.networks.architecture import Place, Routing, place_of

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays

INJECTED = "categories"


def round_outputs(model: ModelProto) -> ModelProto:
    """A copy of *model* with two Identity nodes behind everything that makes fp16."""
    copy = copied(model)
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
    set_nodes(copy, nodes)
    return copy


def rounding_session(model: ModelProto, where: str) -> Any:
    """A session that computes the fp16 of *model* in half precision; *where* names it in errors."""
    from onnxruntime import GraphOptimizationLevel

    settings = {"graph_optimization_level": GraphOptimizationLevel.ORT_DISABLE_ALL}
    return load(round_outputs(model).SerializeToString(), where, enable_cpu_mem_arena=False, **settings)


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
        self.model = onnx.load_model_from_string(path.read_bytes()) if model is None else model
        self.where, self.gives_picture = str(path), rounds
        self._sessions: dict[tuple[tuple[str, ...], bool, int], Any] = {}
        self.choices, self.tokens, self.mask = list[str](), list[str](), list[str]()
        self._read: list[tuple[str, str | None]] = []
        if routing is not None:
            self._find(routing)

    def _find(self, routing: Routing) -> None:
        stored = {value.name for value in self.model.graph.initializer}
        known = known_modules(stored)
        modules = [(module_of(node, known), node) for node in self.model.graph.node]

        def nodes(role: str, operator: str) -> list[NodeProto]:
            """Those of *operator* in a module of the *role*, in the order of layers; of one module the last."""
            found: dict[Place, NodeProto] = {}
            for module, node in modules:
                if node.op_type == operator and (place := place_of(role, module)) is not None:
                    found[place] = node
            return [found[place] for place in sorted(found)]

        if routing.mask:
            # A mask that is an input has neither of its nodes.
            masks = [*nodes(routing.mask, "ArgMax"), *nodes(routing.mask, "Greater")]
            self.mask = [node.output[0] for node in masks]
        self._kind = TensorProto.INT64 if routing.operator == "ArgMax" else TensorProto.BOOL
        self.choices = [node.output[0] for node in nodes(routing.choice, routing.operator)]
        self.tokens = [node.output[0] for node in nodes(routing.tokens, "Add")]
        missing = bool(routing.choice) and not self.choices
        if missing or len(self.choices) != len(self.tokens) or len(self.mask) not in (0, 2):
            raise ArtifactError(f"{self.where}: its node names do not tell the layers, so it cannot be looked into")
        norms, keys = nodes(routing.norm, "LayerNormalization"), nodes(routing.keys, "Gemm")
        if len(norms) == len(keys) == len(self.choices):
            dictionaries = [None if node.input[0] in stored else node.input[0] for node in keys]
            self._read = list(zip([node.input[0] for node in norms], dictionaries, strict=True))

    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """As `Probe.run`; *inputs* are `lr`, and `slots` and `mask` where the graph has them."""
        shown = [*self.choices, *self.mask]
        sr, impure, *rest = self._run(shown, inputs, categories, ["sr", "impure_tokens"])
        chosen, mask = rest[: len(self.choices)], rest[len(self.choices) :]
        labels, pure = mask if mask else (None, None)
        own = np.stack(chosen).astype(np.int64) if chosen else np.zeros((0, 0), np.int64)
        return Inside(sr, int(impure[0]), own, labels, pure)

    def layers(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """The output (rows, c) of every layer, which a runtime keeps to the end of the run."""
        return [found.reshape(-1, found.shape[-1]) for found in self._run(self.tokens, inputs, categories)]

    def chosen_from(self, inputs: Arrays, categories: NDArray[np.int64]) -> list[ChosenFrom]:
        """As `Probe.chosen_from`. The dictionary is None in the first layer of a block, where it is stored."""
        if not self._read:
            raise ArtifactError(f"{self.where}: its node names do not tell what the layers choose from")
        names = list(dict.fromkeys(name for pair in self._read for name in pair if name is not None))
        found = dict(zip(names, self._run(names, inputs, categories), strict=True))
        return [ChosenFrom(found[tokens], found[keys] if keys else None) for tokens, keys in self._read]

    def close(self) -> None:
        """Release the sessions."""
        self._sessions.clear()

    def _run(
        self, shown: list[str], inputs: Arrays, categories: NDArray[np.int64] | None, first: Sequence[str] = ()
    ) -> list[Any]:
        """The outputs *first*, and the tensors *shown* by a debug copy, which is opened when it is first needed."""
        slots = self._fixed_slots(inputs)
        key = (tuple(shown), categories is not None, slots)
        if key not in self._sessions:
            model = copied(self.model)
            model.graph.output.extend(ValueInfoProto(name=name) for name in shown)
            if categories is not None:
                self._inject(model, *categories.shape)
            self._sessions[key] = self._open(model, slots)
        if categories is not None:
            inputs = {**inputs, INJECTED: categories.astype(np.int32)}
        return list(self._sessions[key].run([*first, *shown], inputs))

    def _fixed_slots(self, inputs: Arrays) -> int:
        """The number of slots that a session for *inputs* is made for, 0 where it takes any number."""
        return 0

    def _open(self, model: ModelProto, slots: int) -> Any:
        if self.gives_picture:
            return rounding_session(model, self.where)
        return make_frugal_session(model.SerializeToString(), self.where)

    def _inject(self, model: ModelProto, layers: int, tokens: int) -> None:
        """Have the layers of *model* take their categories from a new input (*layers*, *tokens*) int32."""
        graph, injected = model.graph, {name: f"{INJECTED}_{layer}" for layer, name in enumerate(self.choices)}
        nodes = []
        for layer, name in enumerate(injected.values()):
            graph.initializer.append(helper.make_tensor(f"{name}_number", TensorProto.INT64, [], [layer]))
            nodes.append(helper.make_node("Gather", [INJECTED, f"{name}_number"], [f"{name}_given"], axis=0))
            nodes.append(helper.make_node("Cast", [f"{name}_given"], [name], to=self._kind))
        for node in graph.node:
            node.input[:] = [injected.get(name, name) for name in node.input]
        set_nodes(model, [*nodes, *graph.node])
        graph.input.append(helper.make_tensor_value_info(INJECTED, TensorProto.INT32, [layers, tokens]))
