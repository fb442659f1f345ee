"""Computes the columns of a parity run: network, twin, and artefact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppexport.device.artifact import smallest_capacity
from ppexport.networks.atd.network import ATDLight, mirror_pad
from ppexport.networks.atd.pp_network import PPATDLight
from ppexport.networks.network import Trace
from ppexport.networks.pure_pass import pixel_labels
from ppexport.parity.columns import Sample
from ppexport.parity.inputs import ParityInput
from ppexport.parity.rechoose import decibel, recorded
from ppexport.twin.twin import StaticTwin

Layers = list[NDArray[np.float32]]
"""Per layer (n, c)."""


def _sample(sr: Tensor, trace: Trace, pure: Tensor | None, labels: Tensor | None) -> Sample:
    categories = torch.stack([c.reshape(-1) for c in trace.categories]).numpy().astype(np.uint8)
    return Sample(
        sr=sr.numpy(),
        impure=categories.shape[1] if pure is None else int((~pure).sum()),
        categories=categories,
        gaps=torch.stack([g.reshape(-1) for g in trace.gaps]).numpy(),
        pure=None if pure is None else pure.reshape(-1).numpy(),
        labels=None if labels is None else labels.reshape(-1).numpy().astype(np.uint8),
    )


def _layers(trace: Trace) -> Layers:
    return [t.reshape(-1, t.shape[-1]).numpy() for t in trace.tokens]


class NetworkColumn:
    """The PyTorch reference network."""

    name = "network"

    def __init__(self, network: ATDLight) -> None:
        self.network, self.layer_names = network, layer_names(network.config.depths)

    def _run(self, item: ParityInput, categories: NDArray[np.uint8] | None) -> tuple[Tensor, Trace]:
        trace = Trace()
        forced = None if categories is None else torch.from_numpy(categories).long().unsqueeze(1)
        with torch.no_grad():
            return self.network(torch.from_numpy(item.lr), categories=forced, trace=trace), trace

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*."""
        sr, trace = self._run(item, categories)
        if not isinstance(self.network, PPATDLight):
            return _sample(sr, trace, None, None)
        padded = mirror_pad(torch.from_numpy(item.lr))
        labels = pixel_labels(padded, self.network.options.colors)
        return _sample(sr, trace, self.network.pure_tokens(padded, None), labels)

    def layers(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Layers:
        """The output of every layer."""
        return _layers(self._run(item, categories)[1])


class TwinColumn:
    """The static twin in PyTorch, with the smallest of *capacities* that holds an image's impure tokens."""

    name = "twin"

    def __init__(self, twin: StaticTwin, capacities: Sequence[int]) -> None:
        self.twin, self.layer_names = twin, layer_names(twin.depths)
        self.capacities = tuple(capacities)

    def _mask(self, item: ParityInput) -> tuple[Tensor | None, Tensor | None]:
        """Pure tokens and labels of *item*, None without Pure-Pass."""
        mask = self.twin.pure_pass
        if mask is None:
            return None, None
        with torch.no_grad():
            padded = self.twin.pad(torch.from_numpy(item.lr))
            return mask(padded), mask.labels(padded)

    def _run(
        self, item: ParityInput, pure: Tensor | None, categories: NDArray[np.uint8] | None
    ) -> tuple[Tensor, Tensor, int, Trace]:
        """Picture, impure tokens, slots and trace of *item*, whose pure tokens are *pure*."""
        trace, slots, capacity = Trace(), None, self.twin.capacity
        forced = None if categories is None else torch.from_numpy(categories).int()
        if pure is not None and len(self.capacities) > 1:
            capacity = smallest_capacity(self.capacities, int((~pure).sum()))
            slots = torch.zeros(1, capacity, dtype=torch.int32)
        with torch.no_grad():
            sr, impure = self.twin(torch.from_numpy(item.lr), slots=slots, categories=forced, trace=trace)
        return sr, impure, capacity, trace

    def sample(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Sample:
        """The column's entry for *item*."""
        pure, labels = self._mask(item)
        sr, impure, capacity, trace = self._run(item, pure, categories)
        return replace(_sample(sr, trace, pure, labels), impure=int(impure), capacity=capacity)

    def layers(self, item: ParityInput, categories: NDArray[np.uint8] | None = None) -> Layers:
        """The output of every layer."""
        return _layers(self._run(item, self._mask(item)[0], categories)[3])

    def layer_inputs(self, item: ParityInput, categories: NDArray[np.uint8]) -> Layers:
        """What every layer is given, with injected *categories*."""
        return [found.tokens for found in recorded(self.twin, item.lr, categories)]


def layer_names(depths: Sequence[int]) -> list[str]:
    """The module names of all layers of a network whose blocks have *depths* layers, in the order in which they run."""
    return [f"layers.{block}.residual_group.layers.{i}" for block, depth in enumerate(depths) for i in range(depth)]


def first_bad_layer(names: Sequence[str], reference: Layers, other: Layers, gate_db: float) -> str:
    """The first of the layers *names* whose tokens are off by more than *gate_db* of their strength, or where to look.

    *reference* and *other* hold the tokens behind each of them, (n, c).
    """
    for name, a, b in zip(names, reference, other, strict=True):
        if decibel([a], [b]) < gate_db:
            return name
    return "after the last layer"
