"""Lets the reference choose again from the very numbers that an artefact chose from.

A category is the place of the largest of 64 similarities between a token and the dictionary. In half precision tokens
are a little off, and the dictionary more: each layer refines it by weights that come from an InstanceNorm of the
similarities over all tokens, and where a picture is so even that one of them hardly varies, its standard deviation, by
which it is divided, is little more than rounding (bundled x4 at 64x64, a gradient: tokens 69 dB, one row of the
dictionary 17 dB). So how sure the reference is of a category says little about whether rounding can turn it over, and
no single gap tells a rounding from a mistake. This does: a flip is a rounding if the reference, given the artefact's
tokens and dictionary, makes the artefact's choice, to fp32, and if those tokens meet the gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ppexport.errors import InputError
from ppexport.networks.network import Trace
from ppexport.parity.compare import Seen
from ppexport.twin.twin import StaticTwin, layer_inputs


class ChosenFrom(NamedTuple):
    """What a layer chooses categories from."""

    tokens: NDArray[np.float32]
    """(n, c), the layer's input."""
    dictionary: NDArray[np.float32] | None
    """(t, c); None for the constant one that a block starts with."""


def recorded(twin: StaticTwin, lr: NDArray[np.float32], categories: NDArray[np.uint8]) -> list[ChosenFrom]:
    """What every layer of *twin* chooses from, for *lr* (1, 3, h, w) and injected *categories* (layers, n)."""
    with layer_inputs(twin) as found, torch.no_grad():
        twin(torch.from_numpy(lr), categories=torch.from_numpy(categories).int())
    return [ChosenFrom(tokens.numpy(), dictionary.numpy()) for tokens, dictionary in found]


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


def rechoose(twin: StaticTwin, reference: Sequence[ChosenFrom], other: Sequence[ChosenFrom]) -> Seen:
    """What *twin* chooses from the *other* one's numbers, and how far those are from the *reference*'s."""
    trace = Trace()
    with torch.no_grad():
        for layer, own, given in zip(twin.routed_layers().values(), reference, other, strict=True):
            x = torch.from_numpy(np.array(given.tokens, np.float32))
            dictionary = own.dictionary if given.dictionary is None else given.dictionary
            if dictionary is None:
                raise InputError("a layer has no dictionary, neither in the twin nor in the artefact")
            similarity = layer.similarity(x, torch.from_numpy(np.array(dictionary, np.float32)))
            trace.choose(similarity, similarity.argmax(dim=1))
    return Seen(
        torch.stack(trace.categories).numpy().astype(np.uint8),
        torch.stack(trace.gaps).numpy(),
        decibel([r.tokens for r in reference], [o.tokens for o in other]),
        decibel([r.dictionary for r in reference if r.dictionary is not None], [o.dictionary for o in other]),
    )
