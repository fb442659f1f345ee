"""Looks into a LiteRT file: a copy of it gives the tensors that `shown` has named, and takes other categories."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import ChosenFrom, Inside, Probe
from ppexport.backends.litert.run_litert import Session
from ppexport.backends.litert.shown import GIVEN, INSIDE, PREFIX, reveal
from ppexport.backends.litert.tflite import edit
from ppexport.errors import ArtifactError

if TYPE_CHECKING:
    from ppexport.device.artifact import Artifact
    from ppexport.device.runner import Arrays


class LiteRTProbe(Probe):
    """A LiteRT file, opened for looking into."""

    # That of a copy with more outputs.
    gives_picture = False

    def __init__(self, artifact: Artifact, facts: dict[str, str], threads: int | None = None) -> None:
        """*facts* are those of the artifact's file. Raises ArtifactError where they do not tell what it shows."""
        self.where, self.content, self.threads = str(artifact.model_file), artifact.read(artifact.model_file), threads
        try:
            named = json.loads(facts[INSIDE])
            self.names: dict[str, str] = {str(name): str(tensor) for name, tensor in named.items()}
        except (KeyError, ValueError, AttributeError):
            raise ArtifactError(f"{self.where} does not tell its tensors, so it cannot be looked into") from None
        self._sessions: dict[bool, Session] = {}

    def _several(self, role: str) -> list[str]:
        """The tensors of *role*, layer by layer."""
        layers = [name for name in self.names if name.startswith(f"{PREFIX}{role}.")]
        return [self.names[f"{PREFIX}{role}.{i}"] for i in range(len(layers))]

    def _run(self, inputs: Arrays, categories: NDArray[np.int64] | None) -> Arrays:
        """All that the file shows, with injected *categories* (layers, n) if given."""
        chosen = self._several("categories")
        injects = categories is not None
        if injects not in self._sessions:
            try:
                change = reveal(sorted(set(self.names.values())), chosen if injects else ())
                self._sessions[injects] = Session(edit(self.content, change), self.where, self.threads)
            except (ValueError, KeyError, IndexError) as error:
                raise ArtifactError(f"{self.where} cannot be looked into: {error}") from None
        if categories is not None:
            kind, _ = self._sessions[True].ports(self._sessions[True].signatures[0])[GIVEN + chosen[0]]
            inputs = {
                **inputs,
                **{GIVEN + name: row.astype(kind) for name, row in zip(chosen, categories, strict=True)},
            }
        return self._sessions[injects].run(inputs)

    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """As `Probe.run`."""
        found = self._run(inputs, categories)
        own = [found[name].reshape(-1).astype(np.int64) for name in self._several("categories")]
        pure, labels = (found.get(self.names.get(PREFIX + name, "")) for name in ("pure", "labels"))
        return Inside(
            found["sr"],
            int(found["impure_tokens"].reshape(-1)[0]),
            np.stack(own) if own else np.zeros((0, 0), np.int64),
            None if labels is None else labels.reshape(-1).astype(np.int64),
            None if pure is None else pure.reshape(-1).astype(np.bool_),
        )

    def layers(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """The output (rows, c) of every layer."""
        found = self._run(inputs, categories)
        return [found[name].reshape(-1, found[name].shape[-1]) for name in self._several("layers")]

    def chosen_from(self, inputs: Arrays, categories: NDArray[np.int64]) -> list[ChosenFrom]:
        """As `Probe.chosen_from`. The dictionary is None in the first layer of a block, where it is stored."""
        found = self._run(inputs, categories)
        dictionaries = [self.names.get(f"{PREFIX}dictionaries.{i}", "") for i in range(len(categories))]
        pairs = zip(self._several("tokens"), dictionaries, strict=True)
        return [ChosenFrom(found[tokens], found.get(dictionary)) for tokens, dictionary in pairs]

    def close(self) -> None:
        """Release the copies."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
