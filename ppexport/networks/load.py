"""From a model card or a checkpoint to a network in eval mode."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ppexport.errors import InputError
from ppexport.networks.atd.network import ATDLight
from ppexport.networks.atd.pp_network import PPATDLight, PurePassOptions
from ppexport.networks.card import Card, Options, card_with_weights, effective_card, make_card
from ppexport.networks.checkpoint import load_state, read_state


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


# What a network must be before anything is made from it: plain float32 weights that are all there, and no hooks.


PLAIN = ("ppexport.", "torch.nn.modules.")
"""Where the classes of a network's modules come from; a static rewrite would leave out what any other computes."""


def check_network(network: nn.Module) -> ATDLight:
    """*network*, ready to be exported. Raises InputError, which says what to call, for any other."""
    if not isinstance(network, ATDLight):
        raise InputError(f"{type(network).__name__} is not a network of ppexport{_inner(network)}")
    for name, module in network.named_modules():
        _check_module(f"module {name!r}" if name else "the network", module)
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        _check_tensor(name, value)
    return network


def _inner(network: object) -> str:
    for name in ("module", "_orig_mod"):
        if isinstance(getattr(network, name, None), ATDLight):
            return f": pass what it wraps, its attribute {name}"
    return ""


def _check_module(where: str, module: nn.Module) -> None:
    if is_parametrized(module):
        raise InputError(
            f"{where} is parametrised: call torch.nn.utils.parametrize.remove_parametrizations(module, tensor_name) "
            "for each of its parametrisations first"
        )
    if module._forward_pre_hooks or module._forward_hooks:
        raise InputError(
            f"{where} has forward hooks, which an export would leave out: remove them first, those of pruning by "
            'torch.nn.utils.prune.remove(module, "weight")'
        )
    if "forward" in vars(module) or not type(module).__module__.startswith(PLAIN):
        raise InputError(
            f"{where} is a {type(module).__name__} that ppexport does not know, and an export would leave out what it "
            "computes: merge it into the plain layers, then load their weights with load_network(checkpoint=...)"
        )


def _check_tensor(name: str, value: Tensor) -> None:
    if value.is_meta:
        raise InputError(f"{name!r} is on the device meta and has no values: load weights with load_network(...)")
    if value.device.type != "cpu":
        raise InputError(f"{name!r} is on the device {value.device}: call network.cpu() first")
    if (value.is_floating_point() or value.is_complex()) and value.dtype != torch.float32:
        raise InputError(f"{name!r} is {value.dtype}, and exports are made from float32: call network.float() first")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(f"{name!r} holds NaN or infinite values: load or train these weights again")
