"""Looks into a package: every layer's categories and tokens, with the reference's categories in their place if wanted.

It reads and replaces results of the very package that ships, by the names of its operations (`specification`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.coreml.evaluated import Session
from ppexport.errors import ArtifactError

_LAYER = r"layers__(\d+)__residual_group__layers__(\d+)"
CHOICE = re.compile(rf"{_LAYER}___reduce_argmax")
TOKENS = re.compile(rf"{_LAYER}__output___add")
NORM = re.compile(rf"{_LAYER}__norm1___layer_norm")
KEYS = re.compile(rf"{_LAYER}__attn_atd__wk___linear")
LABELS = re.compile(r"pure_pass___reduce_argmax")
MASK = re.compile(r"pure_pass___greater")

Inputs = Mapping[str, NDArray[Any]]
"""As `Session.run` takes them: `lr`, and `mask` and `slots` where the package has a mask or several functions."""


class Inside(NamedTuple):
    """What a package computed on the way to its picture."""

    sr: NDArray[np.float32]
    impure_tokens: int
    categories: NDArray[np.int64]
    """(layers, n)."""
    labels: NDArray[np.int64] | None
    """(1, 1, H, W), None where the mask is not computed inside."""
    pure: NDArray[np.bool_] | None
    """(n,)."""


class DebugPackage:
    """The layers of one package, opened for looking into."""

    def __init__(self, path: Path, *, rounding: bool = True) -> None:
        """*rounding* False computes what is fp16 in fp32."""
        self.session, self.where = Session(path, rounding=rounding), str(path)
        self.choices, self.tokens = self._results(CHOICE), self._results(TOKENS)
        self.labels, self.mask = self._results(LABELS), self._results(MASK)
        if not self.choices or len(self.choices) != len(self.tokens):
            raise ArtifactError(f"{path}: its operations' names do not tell the layers, so it cannot be looked into")

    def _results(self, pattern: re.Pattern[str]) -> list[str]:
        """Names of the results that *pattern* matches, in the order of block and layer, the same in all functions."""
        found = {}
        for op in self.session.evaluator().steps:
            for port in op.outputs:
                if match := pattern.fullmatch(port.name):
                    found[tuple(map(int, match.groups()))] = port.name
        return [found[key] for key in sorted(found)]

    def _read(self, pattern: re.Pattern[str]) -> dict[tuple[int, ...], str]:
        """{(block, layer): what the operation reads whose name *pattern* matches}, but for constants."""
        found = {}
        constants = self.session.evaluator().constants
        for op in self.session.evaluator().steps:
            read = [name for name in op.reads() if name not in constants]
            if read and (match := pattern.fullmatch(op.name)):
                found[tuple(map(int, match.groups()))] = read[0]
        return found

    def _stand_in(self, categories: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
        """What replaces the choices of the layers."""
        if categories is None:
            return {}
        return {name: chosen.astype(np.int32) for name, chosen in zip(self.choices, categories, strict=True)}

    def run(self, inputs: Inputs, categories: NDArray[Any] | None = None) -> Inside:
        """Run *inputs*; *categories* (layers, n) replace the tokens' own choices, which are still returned."""
        keep = [*self.choices, *self.labels, *self.mask]
        found = self.session.run(inputs, keep, self._stand_in(categories))
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

    def layers(self, inputs: Inputs, categories: NDArray[Any] | None = None) -> list[NDArray[np.float32]]:
        """The output (n, c) of every layer."""
        found = self.session.run(inputs, self.tokens, self._stand_in(categories))
        return [found[name].astype(np.float32) for name in self.tokens]

    def chosen_from(
        self, inputs: Inputs, categories: NDArray[Any]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        """The tokens (n, c) and the dictionary (t, c) that every layer chose its categories from.

        The dictionary is None in the first layer of a block, where it is a constant.
        """
        tokens, keys = self._read(NORM), self._read(KEYS)
        if len(tokens) != len(self.choices):
            raise ArtifactError(f"{self.where}: its operations' names do not tell what the layers choose from")
        found = self.session.run(inputs, [*tokens.values(), *keys.values()], self._stand_in(categories))
        chosen = []
        for place in sorted(tokens):
            dictionary = found[keys[place]].astype(np.float32) if place in keys else None
            chosen.append((found[tokens[place]].astype(np.float32), dictionary))
        return chosen
