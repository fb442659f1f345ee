"""A debug copy of a shipped ONNX file: shows every layer's categories and tokens, and can take categories instead.

It is cut from the very file that ships, by the node names the exporter gives, so that what `parity` looks into is what
a user runs:

    before   ArgMax -> consumers                          after   ArgMax -> output categories_L
                                                                  Gather(input categories, L) -> consumers
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ppexport.backends.onnx.run_onnxruntime import make_frugal_session
from ppexport.errors import ArtifactError

if TYPE_CHECKING:
    from ppexport.device.runner import Image

CHOICE = re.compile(r"^/layers\.(\d+)/residual_group/layers\.(\d+)/ArgMax$")
TOKENS = re.compile(r"^/layers\.(\d+)/residual_group/layers\.(\d+)/output/Add$")
LABELS = re.compile(r"^/pure_pass/ArgMax$")
MASK = re.compile(r"^/pure_pass/Greater$")
NORM = re.compile(r"^/layers\.(\d+)/residual_group/layers\.(\d+)/norm1/LayerNormalization$")
KEYS = re.compile(r"^/layers\.(\d+)/residual_group/layers\.(\d+)/attn_atd/wk/Gemm$")
INJECTED = "categories"

Categories = NDArray[np.int64]
Inputs = Mapping[str, NDArray[Any]]
"""`lr`, and `slots` and `mask` where the graph has them."""


def _outputs(model: onnx.ModelProto, pattern: re.Pattern[str]) -> list[str]:
    """The output names of the nodes that *pattern* matches, in the order of block and layer."""
    found = {}
    for node in model.graph.node:
        if match := pattern.match(node.name):
            found[tuple(map(int, match.groups()))] = node.output[0]
    return [found[key] for key in sorted(found)]


class Inside(NamedTuple):
    """What an artefact computed on the way to its picture."""

    sr: Image
    impure_tokens: int
    """The graph's second output."""
    categories: Categories
    """(layers, n)."""
    labels: NDArray[np.int64] | None
    """(1, 1, H, W), None for a network without Pure-Pass."""
    pure: NDArray[np.bool_] | None
    """(n,)."""


class DebugModel:
    """The layers of one ONNX artefact, opened for looking into."""

    def __init__(self, path: Path, model: onnx.ModelProto | None = None) -> None:
        """*model* is what was read from *path*; None reads it, but no file that it names."""
        self.model = onnx.load_model_from_string(path.read_bytes()) if model is None else model
        self.where = str(path)
        self.sessions: dict[tuple[str, bool], Any] = {}
        self.choices = _outputs(self.model, CHOICE)
        self.tokens = _outputs(self.model, TOKENS)
        self.mask = [*_outputs(self.model, LABELS), *_outputs(self.model, MASK)]
        # A network without Pure-Pass has neither node of the mask.
        if not self.choices or len(self.choices) != len(self.tokens) or len(self.mask) not in (0, 2):
            raise ArtifactError(f"{path}: its node names do not tell the layers, so it cannot be looked into")

    def open(self, model: onnx.ModelProto) -> Any:
        """A session of a debug copy."""
        return make_frugal_session(model.SerializeToString(), self.where)

    def _with_outputs(self, kinds: Mapping[str, int]) -> onnx.ModelProto:
        """A copy of the model with further outputs, each of its element type."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        for name, kind in kinds.items():
            copy.graph.output.append(helper.make_tensor_value_info(name, kind, None))
        return copy

    def _routing(self) -> onnx.ModelProto:
        """A copy of the model whose outputs also are labels, mask and the categories of every layer."""
        kinds = dict.fromkeys([*self.choices, *self.mask[:1]], TensorProto.INT64)
        return self._with_outputs({**kinds, **dict.fromkeys(self.mask[1:], TensorProto.BOOL)})

    def _tokens(self) -> onnx.ModelProto:
        """A copy whose outputs also are the tokens of every layer, which a runtime then keeps to the end of the run."""
        return self._with_outputs(dict.fromkeys(self.tokens, TensorProto.FLOAT))

    def _read(self, pattern: re.Pattern[str]) -> list[str | None]:
        """What every layer's node reads whose name *pattern* matches, None where that is stored in the file."""
        stored = {value.name for value in self.model.graph.initializer}
        found = {}
        for node in self.model.graph.node:
            if match := pattern.match(node.name):
                found[tuple(map(int, match.groups()))] = None if node.input[0] in stored else node.input[0]
        if len(found) != len(self.choices):
            raise ArtifactError(f"{self.where}: its node names do not tell what the layers choose from")
        return [found[key] for key in sorted(found)]

    def _sources(self) -> onnx.ModelProto:
        """A copy whose outputs also are what the layers choose their categories from."""
        names = [name for name in (*self._read(NORM), *self._read(KEYS)) if name is not None]
        return self._with_outputs(dict.fromkeys(names, TensorProto.FLOAT))

    def _inject(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Have the layers of *model* take their categories from a new input (layers, n) int64."""
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
        return model

    def run(self, inputs: Inputs, categories: Categories | None = None) -> Inside:
        """Run the graph's own *inputs*; *categories* (layers, n) replace the tokens' own choices."""
        session, feeds = self._session(self._routing, inputs, categories)
        sr, impure, *rest = session.run(["sr", "impure_tokens", *self.choices, *self.mask], feeds)
        chosen, mask = rest[: len(self.choices)], rest[len(self.choices) :]
        labels, pure = mask if mask else (None, None)
        return Inside(sr, int(impure[0]), np.stack(chosen), labels, pure)

    def layers(self, inputs: Inputs, categories: Categories | None = None) -> list[NDArray[np.float32]]:
        """The output (n, c) of every layer."""
        session, feeds = self._session(self._tokens, inputs, categories)
        return list(session.run(self.tokens, feeds))

    def chosen_from(
        self, inputs: Inputs, categories: Categories
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        """The tokens (n, c) and the dictionary (t, c) that every layer chooses from, with injected *categories*.

        The dictionary is None in the first layer of a block, where it is stored.
        """
        session, feeds = self._session(self._sources, inputs, categories)
        pairs = list(zip(self._read(NORM), self._read(KEYS), strict=True))
        names = [name for name in dict.fromkeys(name for pair in pairs for name in pair) if name is not None]
        found = dict(zip(names, session.run(names, feeds), strict=True))
        chosen = []
        for tokens, dictionary in pairs:
            if tokens is None:
                raise ArtifactError(f"{self.where} stores what a layer chooses from, so it cannot be looked into")
            chosen.append((found[tokens], None if dictionary is None else found[dictionary]))
        return chosen

    def _session(
        self, copy: Callable[[], onnx.ModelProto], inputs: Inputs, categories: Categories | None
    ) -> tuple[Any, Inputs]:
        """The session of a debug *copy*, opened when it is first needed, and its inputs."""
        key = (copy.__name__, categories is not None)
        if key not in self.sessions:
            model = copy() if categories is None else self._inject(copy())
            self.sessions[key] = self.open(model)
        if categories is None:
            return self.sessions[key], inputs
        return self.sessions[key], {**inputs, INJECTED: categories.astype(np.int64)}
