"""Looks into a LiteRT file: a copy of it gives the tensors that `shown` has named, and takes other categories."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppexport.backends.backend import ChosenFrom, Inside, Probe
from ppexport.backends.litert.run_litert import Session
from ppexport.backends.litert.run_litert_facts import facts_of
from ppexport.backends.litert.shown import GIVEN, INSIDE, PREFIX, read_shown, reveal
from ppexport.backends.litert.tflite import edit
from ppexport.errors import ArtifactError, first_line

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays


class LiteRTProbe(Probe):
    """A LiteRT file, opened for looking into."""

    # That of a copy with more outputs.
    gives_picture = False

    def __init__(self, content: bytes, where: str, threads: int | None = None) -> None:
        """Of the file *content*, which errors call *where*. Raises ArtifactError where it does not tell its tensors."""
        self.content, self.where, self.threads = content, where, threads
        self._sessions: dict[bool, Session] = {}
        try:
            self.shown = read_shown(facts_of(content, where)[INSIDE])
        except (KeyError, ValueError):
            raise ArtifactError(f"{where} does not tell its tensors, so it cannot be looked into") from None

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Raises ArtifactError where the file does not have what it tells, or has it in another shape."""
        try:
            yield
        except (ValueError, KeyError, IndexError) as error:
            raise ArtifactError(f"{self.where} cannot be looked into: {first_line(error)}") from None

    def _several(self, role: str, arrays: Arrays) -> list[NDArray[Any]]:
        """What is shown for *role*, layer by layer."""
        names = [f"{PREFIX}{role}.{layer}" for layer in range(len(self.shown))]
        return [self.shown[name].read(arrays) for name in names if name in self.shown]

    def _run(self, inputs: Arrays, categories: NDArray[np.int64] | None) -> Arrays:
        """The tensors that are shown, with injected *categories* (layers, n) if given."""
        injects = categories is not None
        chosen = [f"{PREFIX}categories.{layer}" for layer in range(0 if categories is None else len(categories))]
        given = [self.shown[name].tensor for name in chosen]
        if injects not in self._sessions:
            change = reveal(sorted({shown.tensor for shown in self.shown.values()}), given)
            self._sessions[injects] = Session(edit(self.content, change), self.where, self.threads)
        session = self._sessions[injects]
        if categories is not None:
            ports = session.ports(session.signatures[0])
            for name, row in zip(given, categories, strict=True):
                kind, shape = ports[GIVEN + name]
                inputs = {**inputs, GIVEN + name: row.astype(kind).reshape(shape)}
        return session.run(inputs)

    def run(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> Inside:
        """As `Probe.run`."""
        with self._looking():
            found = self._run(inputs, categories)
            own = [layer.reshape(-1).astype(np.int64) for layer in self._several("categories", found)]
            masks = (self.shown.get(PREFIX + name) for name in ("pure", "labels"))
            pure, labels = (None if mask is None else mask.read(found).reshape(-1) for mask in masks)
            return Inside(
                found["sr"],
                int(found["impure_tokens"].reshape(-1)[0]),
                np.stack(own) if own else np.zeros((0, 0), np.int64),
                None if labels is None else labels.astype(np.int64),
                None if pure is None else pure.astype(np.bool_),
            )

    def layers(self, inputs: Arrays, categories: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """The output (rows, c) of every layer."""
        with self._looking():
            found = self._run(inputs, categories)
            return [layer.reshape(-1, layer.shape[-1]) for layer in self._several("layers", found)]

    def chosen_from(self, inputs: Arrays, categories: NDArray[np.int64]) -> list[ChosenFrom]:
        """As `Probe.chosen_from`. The dictionary is None in the first layer of a block, where it is stored."""
        with self._looking():
            found = self._run(inputs, categories)
            refined = (self.shown.get(f"{PREFIX}dictionaries.{layer}") for layer in range(len(categories)))
            dictionaries = [None if shown is None else shown.read(found) for shown in refined]
            return list(map(ChosenFrom, self._several("tokens", found), dictionaries))

    def close(self) -> None:
        """Release the copies."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
