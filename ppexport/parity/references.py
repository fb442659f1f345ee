"""What an artifact is compared with: the network that it was made from, and its static twin, in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppexport.backends.backend import ChosenFrom
from ppexport.device.artifact import Artifact, smallest_capacity
from ppexport.errors import InputError
from ppexport.networks.card import bundled_cards, read_card
from ppexport.networks.load import card_of, load_network
from ppexport.networks.network import Network, Trace
from ppexport.parity.columns import Categories, Layers, Sample, Source, narrow
from ppexport.parity.compare import ChosenAgain
from ppexport.parity.inputs import ParityInput
from ppexport.twin.twin import StaticTwin, layer_inputs


def reference_network(artifact: Artifact, checkpoint: Path | None) -> Network:
    """The network behind *artifact*: a bundled model of the same weights, or *checkpoint*, which must match.

    Raises InputError where the weights are not those of the artifact.
    """
    m = artifact.manifest
    expected = m.weights["sha256"]
    if checkpoint is not None:
        network = load_network(arch=m.arch, scale=m.scale, checkpoint=checkpoint, **m.options)
        found = card_of(network).weights
        if found is None or found.sha256 != expected:
            raise InputError(f"{checkpoint} is not the weights file that {artifact.path} was made from")
        return network
    folder = bundled_cards().get(m.name)
    card = None if folder is None else read_card(folder)
    if card is None or card.weights is None or card.weights.sha256 != expected:
        raise InputError(f"{artifact.path} was made from {m.weights['file']}: give that file with --checkpoint")
    return load_network(m.name, **m.options)


def _sample(sr: Tensor, impure: int, trace: Trace, pure: Tensor | None, labels: Tensor | None) -> Sample:
    return Sample(
        sr=sr.numpy(),
        impure=impure,
        categories=narrow(_rows(trace.categories)),
        gaps=_rows(trace.gaps) if trace.gaps else None,
        pure=None if pure is None else pure.reshape(-1).numpy(),
        labels=None if labels is None else labels.reshape(-1).numpy().astype(np.uint8),
    )


def _rows(recorded: list[Tensor]) -> NDArray[np.generic]:
    """(layers, n) of what every layer recorded."""
    return np.stack([row.reshape(-1).numpy() for row in recorded]) if recorded else np.zeros((0, 0), np.int64)


def _layers(trace: Trace) -> Layers:
    return [t.reshape(-1, t.shape[-1]).numpy() for t in trace.tokens]


class NetworkColumn:
    """The PyTorch reference network."""

    name, injects = "network", True

    def __init__(self, network: Network) -> None:
        self.network = network

    def _run(self, item: ParityInput, categories: Categories | None) -> tuple[Tensor, Trace]:
        trace = Trace()
        forced = None if categories is None else torch.from_numpy(categories.astype(np.int64)).unsqueeze(1)
        with torch.no_grad():
            return self.network(torch.from_numpy(item.lr), categories=forced, trace=trace), trace

    def sample(self, item: ParityInput, categories: Categories | None = None) -> Sample:
        """The column's entry for *item*."""
        sr, trace = self._run(item, categories)
        found = self.network.pure_pixels(torch.from_numpy(item.lr))
        labels, pure = (None, None) if found is None else found
        tokens = trace.categories[0].numel() if trace.categories else 0
        return _sample(sr, tokens if pure is None else int((~pure).sum()), trace, pure, labels)

    def layers(self, item: ParityInput, categories: Categories | None = None) -> Layers:
        """The output of every layer."""
        return _layers(self._run(item, categories)[1])


class TwinColumn:
    """The static twin in PyTorch, with the smallest of *capacities* that holds an image's impure tokens."""

    name, injects = "twin", True

    def __init__(self, twin: StaticTwin, capacities: Sequence[int]) -> None:
        self.twin, self.capacities = twin, tuple(capacities)

    def _mask(self, item: ParityInput) -> tuple[Tensor | None, Tensor | None]:
        """Pure tokens and labels of *item*, None without Pure-Pass."""
        mask = self.twin.pure_pass
        if mask is None:
            return None, None
        with torch.no_grad():
            padded = self.twin.pad(torch.from_numpy(item.lr))
            return mask(padded), mask.labels(padded)

    def _run(
        self, item: ParityInput, pure: Tensor | None, categories: Categories | None
    ) -> tuple[Tensor, Tensor, int, Trace]:
        """Picture, impure tokens, slots and trace of *item*, whose pure tokens are *pure*."""
        trace, slots, capacity = Trace(), None, self.twin.capacity
        forced = None if categories is None else torch.from_numpy(categories.astype(np.int32))
        if pure is not None and len(self.capacities) > 1:
            capacity = smallest_capacity(self.capacities, int((~pure).sum()))
            slots = torch.zeros(1, capacity, dtype=torch.int32)
        with torch.no_grad():
            sr, impure = self.twin(torch.from_numpy(item.lr), slots=slots, categories=forced, trace=trace)
        return sr, impure, capacity, trace

    def sample(self, item: ParityInput, categories: Categories | None = None) -> Sample:
        """The column's entry for *item*."""
        pure, labels = self._mask(item)
        sr, impure, capacity, trace = self._run(item, pure, categories)
        return replace(_sample(sr, int(impure), trace, pure, labels), capacity=capacity if trace.categories else None)

    def layers(self, item: ParityInput, categories: Categories | None = None) -> Layers:
        """The output of every layer."""
        return _layers(self._run(item, self._mask(item)[0], categories)[3])

    def choose_again(self, item: ParityInput, categories: Categories, given: Sequence[ChosenFrom]) -> ChosenAgain:
        """What the twin chooses from what another one was *given*, with the same *categories* injected into both."""
        return choose_again(self.twin, recorded(self.twin, item.lr, categories), given)


def recorded(twin: StaticTwin, lr: NDArray[np.float32], categories: Categories) -> list[ChosenFrom]:
    """What every layer of *twin* chooses from, for *lr* (1, 3, h, w) and injected *categories* (layers, n)."""
    with layer_inputs(twin) as found, torch.no_grad():
        twin(torch.from_numpy(lr), categories=torch.from_numpy(categories.astype(np.int32)))
    return [ChosenFrom(tokens.numpy(), dictionary.numpy()) for tokens, dictionary in found]


def choose_again(twin: StaticTwin, own: Sequence[ChosenFrom], other: Sequence[ChosenFrom]) -> ChosenAgain:
    """What *twin* chooses from the *other* one's numbers, and how far those are from its *own*."""
    trace = Trace()
    with torch.no_grad():
        for layer, mine, given in zip(twin.routed_layers().values(), own, other, strict=True):
            dictionary = mine.dictionary if given.dictionary is None else given.dictionary
            if dictionary is None:
                raise InputError("a layer has no dictionary, neither in the twin nor in the artifact")
            tokens, dictionary = (np.array(numbers, np.float32) for numbers in (given.tokens, dictionary))
            similarity = layer.similarity(torch.from_numpy(tokens), torch.from_numpy(dictionary))
            trace.choose(similarity, similarity.argmax(dim=1))
    return ChosenAgain(
        torch.stack(trace.categories).numpy(),
        torch.stack(trace.gaps).numpy(),
        decibel([a.tokens for a in own], [b.tokens for b in other]),
        decibel([a.dictionary for a in own if a.dictionary is not None], [b.dictionary for b in other]),
    )


def decibel(reference: Sequence[NDArray[np.float32]], other: Sequence[NDArray[np.float32] | None]) -> float:
    """Power of the *reference* over that of the difference, the worst of the pairs; inf where nothing differs."""
    worst = math.inf
    for a, b in zip(reference, other, strict=True):
        if b is None:
            continue
        error = float(np.square(a.astype(np.float64) - b).sum())
        if not math.isfinite(error):
            return -math.inf
        if error:
            worst = min(worst, 10 * math.log10(max(float(np.square(a.astype(np.float64)).sum()), 1e-300) / error))
    return worst


def find_bad_layer(
    names: Sequence[str],
    reference: Source,
    other: Source,
    item: ParityInput,
    samples: tuple[Sample, Sample],
    gate_db: float,
    as_it_runs: bool = False,
) -> str:
    """The first layer of *other* that is off by more than the gate.

    Args:
        names: module paths of the layers, in the order in which they run.
        reference, other: what computed *samples* of *item*.
        item: the input that failed.
        samples: of *reference* and *other*.
        gate_db: least power of a layer's result over that of its error, in dB.
        as_it_runs: compare with each one's own categories; else with the same in both.
    """
    own = samples[0 if as_it_runs or other.injects else 1].categories
    injected = own if other.injects and not as_it_runs else None
    return first_bad_layer(names, reference.layers(item, own), other.layers(item, injected), gate_db)


def first_bad_layer(names: Sequence[str], reference: Layers, other: Layers, gate_db: float) -> str:
    """The first of the layers *names* whose tokens are off by more than *gate_db* of their strength, or where to look.

    *reference* and *other* hold the tokens behind each of them, (n, c). "" for a network without such layers.
    """
    for name, a, b in zip(names, reference, other, strict=True):
        if decibel([a], [b]) < gate_db:
            return name
    return "after the last layer" if names else ""
