"""From a model card or a checkpoint to a network in eval mode."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from ppexport.cards import Card, Options, card_with_weights, effective_card, make_card
from ppexport.networks.atd import ATDLight
from ppexport.networks.checkpoint import load_state, read_state
from ppexport.networks.pp_atd import PPATDLight, PurePassOptions
from ppexport.networks.usable import check_network


def build_network(card: Card) -> ATDLight:
    """An untrained network as *card* describes it."""
    if card.arch == "pp_atd_light":
        return PPATDLight(card.scale, PurePassOptions(**(card.options or Options()).model_dump()))
    return ATDLight(card.scale)


def load_network(
    name: str | None = None,
    *,
    arch: str | None = None,
    scale: int | None = None,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """A network in eval mode, called as `network(x, mask=None)` with x float32 (b, 3, h, w) in [0, 1].

    *name* is a bundled model or a folder with a card; *checkpoint* replaces its weights. Without a name, *arch*
    ("atd_light", "pp_atd_light"), *scale* and *checkpoint* are needed. *options* override the card's Pure-Pass
    options: colors, window, csmf, compensation. Raises CardError, CheckpointError, InputError, or UnavailableError
    where a card has no weights of its own.
    """
    card, path = card_with_weights(name, arch, scale, checkpoint, options)
    network = build_network(card)
    load_state(network, read_state(path), str(path))
    network.card = card  # type: ignore[assignment]
    network.digest = state_digest(network)  # type: ignore[assignment]
    return network.eval()


def load_untrained(name: str | None, arch: str | None, scale: int | None, options: dict[str, Any]) -> ATDLight:
    """The network of a card, or of *arch* and *scale*, without its weights: enough to count what it costs."""
    card, _ = effective_card(name, arch, scale, options)
    network = build_network(card)
    network.card = card  # type: ignore[assignment]
    return network.eval()


def state_digest(network: nn.Module) -> str:
    """SHA-256 of the names and values of all weights of *network*."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def card_of(network: nn.Module) -> Card:
    """The effective card of *network*: that it was loaded with, or a new one for a network that was built by hand.

    Options are those the network has now; where the weights were changed since, their hash is that of the tensors.
    Raises InputError for a network that cannot be exported, as `check_network` does.
    """
    network = check_network(network)
    digest, scale = state_digest(network), network.config.scale
    card = getattr(network, "card", None)
    if isinstance(card, Card):
        fields = card.model_dump()
    else:
        fields = {"name": f"{network.arch}_x{scale}", "summary": "a network built in Python", "arch": network.arch}
        fields |= {"scale": scale, "licence": "as the weights'"}
    if isinstance(network, PPATDLight):
        fields["options"] = network.options.as_dict()
    if fields.get("weights") is None or getattr(network, "digest", None) != digest:
        fields["weights"] = {"file": "memory", "sha256": digest}
    return make_card(**fields)
