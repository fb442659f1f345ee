"""What an artifact is compared with: the network that it was made from, and its static twin, in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from ppexport.backends.backend import ChosenFrom
from ppexport.device.artifact import Artifact
from ppexport.device.capacities import smallest_capacity
from ppexport.errors import InputError
from ppexport.networks.architecture import find_architecture
from ppexport.networks.card import bundled_cards, read_card
from ppexport.networks.load import card_of, load_network
from ppexport.networks.network import Network, Trace
from ppexport.parity.columns import Categories, ChosenAgain, Column, Layers, Sample, narrow, wide
from ppexport.parity.inputs import ParityInput
from ppexport.parity.pair import Pair
from ppexport.twin.twin import RoutedLayer, StaticTwin


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


class _TorchColumn(Column):
    """What PyTorch computes: pictures, categories, gaps and masks."""

    injects = True

    def _run(self, item: ParityInput, categories: NDArray[np.int64] | None) -> tuple[Sample, Trace]:
        """The entry for *item* without what was routed, which the trace holds."""
        raise NotImplementedError

    def sample(self, item: ParityInput, categories: Categories | None = None) -> Sample:
        """The column's entry for *item*."""
        sample, trace = self._run(item, wide(categories))
        if not trace.categories:
            return sample
        chosen, gaps = (torch.stack([row.reshape(-1) for row in rows]) for rows in (trace.categories, trace.gaps))
        return replace(sample, categories=narrow(chosen.numpy()), gaps=gaps.numpy())

    def layers(self, item: ParityInput, categories: Categories | None = None) -> Layers:
        """The output of every layer."""
        return [t.reshape(-1, t.shape[-1]).numpy() for t in self._run(item, wide(categories))[1].tokens]


class NetworkColumn(_TorchColumn):
    """The PyTorch reference network."""

    def __init__(self, network: Network) -> None:
        super().__init__("network")
        self.network = network

    def _run(self, item: ParityInput, categories: NDArray[np.int64] | None) -> tuple[Sample, Trace]:
        trace, lr = Trace(), torch.from_numpy(item.lr)
        forced = None if categories is None else torch.from_numpy(categories).unsqueeze(1)
        with torch.no_grad():
            sr = self.network(lr, categories=forced, trace=trace).numpy()
            masks = self.network.pure_pixels(lr)
        layout = self.network.layout
        if masks is None:
            return Sample(sr, layout.tokens((lr.shape[2], lr.shape[3])) if layout.group else 0), trace
        labels, pure = (mask.squeeze(0).numpy() for mask in masks)
        impure = self.network.routed(pure)
        return Sample(sr, impure, pure=pure.ravel(), labels=labels.ravel().astype(np.uint8)), trace


class TwinColumn(_TorchColumn):
    """The static twin in PyTorch, with the smallest of *capacities* that holds an image's impure tokens."""

    def __init__(self, twin: StaticTwin, capacities: Sequence[int]) -> None:
        super().__init__("twin")
        self.twin, self.capacities = twin, tuple(capacities)

    def _run(self, item: ParityInput, categories: NDArray[np.int64] | None) -> tuple[Sample, Trace]:
        trace, lr, capacity = Trace(), torch.from_numpy(item.lr), self.twin.capacity
        forced = None if categories is None else torch.from_numpy(categories).int()
        slots, pure, labels = None, None, None
        with torch.no_grad():
            if self.twin.pure_pass is not None:
                padded = self.twin.pad(lr)
                pure = self.twin.pure_pass(padded).numpy()
                labels = self.twin.pure_pass.labels(padded).reshape(-1).numpy().astype(np.uint8)
                if len(self.capacities) > 1:
                    impure = self.twin.network.routed(pure.reshape(self.twin.padded))
                    capacity = smallest_capacity(self.capacities, impure)
                    slots = torch.zeros(1, capacity, dtype=torch.int32)
            sr, impure = self.twin(lr, slots=slots, categories=forced, trace=trace)
        used = capacity if self.twin.group else None
        return Sample(sr.numpy(), int(impure), pure=pure, labels=labels, capacity=used), trace

    def choose_again(self, item: ParityInput, categories: Categories, other: Column) -> ChosenAgain | None:
        """What the twin chooses from the numbers of the *other*, with the same *categories* in both."""
        if not all(isinstance(layer, RoutedLayer) for layer in self.twin.routed_layers().values()):
            return None
        return choose_again(self.twin, item.lr, categories, other.chosen_from(item, categories))


def choose_again(
    twin: StaticTwin, lr: NDArray[np.float32], categories: Categories, other: Sequence[ChosenFrom]
) -> ChosenAgain:
    """What *twin* chooses from another one's numbers, and how far those are from its own.

    Args:
        twin: the reference.
        lr: (1, 3, h, w), of which the other one computed its numbers.
        categories: (layers, n), injected into both.
        other: what every layer of the other one chose from.
    """
    run, trace = Trace(), Trace()
    with torch.no_grad():
        twin(torch.from_numpy(lr), categories=torch.from_numpy(categories.astype(np.int32)), trace=run)
        own = [(tokens.numpy(), dictionary.numpy()) for tokens, dictionary in run.inputs]
        for layer, (_, first), given in zip(twin.routed_layers().values(), own, other, strict=True):
            dictionary = first if given.dictionary is None else given.dictionary
            copies = (torch.from_numpy(np.array(numbers, np.float32)) for numbers in (given.tokens, dictionary))
            similarity = cast(RoutedLayer, layer).similarity(*copies)
            trace.choose(similarity, similarity.argmax(dim=1))
    return ChosenAgain(
        torch.stack(trace.categories).numpy(),
        torch.stack(trace.gaps).numpy(),
        decibel([tokens for tokens, _ in own], [given.tokens for given in other]),
        decibel([dictionary for _, dictionary in own], [given.dictionary for given in other]),
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


def find_bad_module(pair: Pair, twin: StaticTwin, reference: Column, other: Column, inputs: list[ParityInput]) -> str:
    """The first module whose result is off in a *pair* that failed.

    Args:
        pair: what came of comparing *reference* and *other*.
        twin: it knows the paths of the network's layers.
        reference, other: columns that can be computed again.
        inputs: that were compared.

    Returns:
        The module of the Pure-Pass mask where a label or a mask pixel differs; else the first layer that is off on the
        worst input by more than the gate, or "after the last layer"; "" for a network without routing.
    """
    routing = find_architecture(twin.network.arch).routing
    if routing is not None and any(row.masks_differ for row in pair.rows):
        return routing.mask
    item = next(item for item in inputs if item.name == pair.worst.name)
    # What fails only as it runs has no bad layer with the same categories.
    as_it_runs = pair.failed_tasks[:1] == ["task"] and all(row.passed for row in pair.rows)
    own = (reference if as_it_runs or other.injects else other).samples[item.name].categories
    results = reference.layers(item, own), other.layers(item, own if other.injects and not as_it_runs else None)
    return first_bad_layer(list(twin.routed_layers()), *results, pair.gate.psnr)


def first_bad_layer(names: Sequence[str], reference: Layers, other: Layers, gate_db: float) -> str:
    """The first of the layers *names* whose tokens are off by more than *gate_db* of their strength, or where to look.

    *reference* and *other* hold the tokens behind each of them, (n, c). "" for a network without such layers.
    """
    for name, a, b in zip(names, reference, other, strict=True):
        if decibel([a], [b]) < gate_db:
            return name
    return "after the last layer" if names else ""
