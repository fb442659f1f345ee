"""From a model card or a checkpoint to a network in eval mode."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from ppexport.cards import Card, Options, Weights, find_card, make_card
from ppexport.errors import CheckpointError, InputError, UnavailableError
from ppexport.files import sha256_file
from ppexport.networks.atd import ATDLight
from ppexport.networks.checkpoint import load_state, read_state
from ppexport.networks.pp_atd import PPATDLight, PurePassOptions
from ppexport.networks.usable import check_network

ARCHITECTURES: dict[str, type[ATDLight]] = {"atd_light": ATDLight, "pp_atd_light": PPATDLight}
OWN_SUMMARY, OWN_LICENCE = "a checkpoint of the user's", "as the checkpoint's"
"""What a card says of weights that came without one."""


def build_network(card: Card) -> ATDLight:
    """An untrained network as *card* describes it."""
    if card.arch == "pp_atd_light":
        return PPATDLight(card.scale, PurePassOptions(**(card.options or Options()).model_dump()))
    return ATDLight(card.scale)


def _effective_card(
    name: str | None, arch: str | None, scale: int | None, options: dict[str, Any]
) -> tuple[Card, Path]:
    """The card of *name* or a fresh one for *arch* and *scale*, with *options* in place of the card's."""
    if name is not None:
        card, folder = find_card(name)
        for what, given, own in (("arch", arch, card.arch), ("scale", scale, card.scale)):
            if given is not None and given != own:
                raise InputError(f"model {name} has {what} {own}, not {given}: leave {what} out or name another model")
        fields = card.model_dump()
    else:
        if arch not in ARCHITECTURES or scale is None:
            raise InputError(f"without a model name, give arch ({', '.join(ARCHITECTURES)}), scale and checkpoint")
        folder = Path()
        fields = {"name": f"{arch}_x{scale}", "summary": OWN_SUMMARY, "arch": arch, "scale": scale}
        fields["licence"] = OWN_LICENCE
    if fields["arch"] == "pp_atd_light":
        fields["options"] = {**(fields.get("options") or {}), **options}
    elif options:
        raise InputError(f"{fields['arch']} has no Pure-Pass options: {', '.join(options)}")
    return make_card(**fields), folder


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
    card, folder = _effective_card(name, arch, scale, options)
    if checkpoint is not None:
        path = Path(checkpoint)
    elif card.weights is None:
        if name is None:
            raise InputError("without a model name, a checkpoint is needed")
        raise UnavailableError(
            f"no weights are bundled for {card.name}: give the .pth file its authors publish, or a .safetensors, with "
            f"--checkpoint FILE (checkpoint= in Python), such as: ppexport export {name} --checkpoint FILE.pth -o OUT"
        )
    else:
        path = folder / card.weights.file
    network = build_network(card)
    load_state(network, read_state(path), str(path))
    digest = sha256_file(path)
    if checkpoint is None and card.weights is not None and digest != card.weights.sha256:
        raise CheckpointError(f"{path} does not match the sha256 in the card of {card.name}")
    if card.weights is not None and digest != card.weights.sha256:
        # What the card says of its own weights is not true of the user's.
        card = card.model_copy(update={"summary": OWN_SUMMARY, "licence": OWN_LICENCE, "training": {}})
    weights = Weights(file=path.name, sha256=digest)
    network.card = card.model_copy(update={"weights": weights})  # type: ignore[assignment]
    network.digest = state_digest(network)  # type: ignore[assignment]
    return network.eval()


def load_untrained(name: str | None, arch: str | None, scale: int | None, options: dict[str, Any]) -> ATDLight:
    """The network of a card, or of *arch* and *scale*, without its weights: enough to count what it costs."""
    card, _ = _effective_card(name, arch, scale, options)
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
