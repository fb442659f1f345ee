"""From a model card or a checkpoint to a network in eval mode."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ppexport.errors import InputError
from ppexport.networks.architecture import architectures, find_architecture
from ppexport.networks.card import Card, card_with_weights, effective_card, make_card
from ppexport.networks.checkpoint import load_state, read_state
from ppexport.networks.network import Network


def load_network(
    name: str | None = None,
    *,
    arch: str | None = None,
    scale: int | None = None,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> Network:
    """A network in eval mode, called as `network(x, mask=None)` with x float32 (b, 3, h, w) in [0, 1].

    Args:
        name: a bundled model or a folder with a card.
        arch: a registered architecture, such as "pp_atd_light"; needed without a name, as are the next two.
        scale: upscaling factor.
        checkpoint: a weights file, in place of the model's own.
        options: in place of the card's: for Pure-Pass colors, window, csmf, compensation.

    Raises:
        CardError, CheckpointError, InputError: something of this is damaged, unknown or does not fit together.
        UnavailableError: the card has no weights of its own.
    """
    return load_card(*card_with_weights(name, arch, scale, checkpoint, options))


def load_card(card: Card, path: Path) -> Network:
    """The network of *card* with the weights in the file *path*. Raises CheckpointError."""
    network = _untrained(card)
    load_state(network, read_state(path), str(path))
    network.digest = state_digest(network)
    return network.eval()


def load_untrained(name: str | None, arch: str | None, scale: int | None, options: dict[str, Any]) -> Network:
    """The network of a card, or of *arch* and *scale*, without its weights: enough to count what it costs."""
    return _untrained(effective_card(name, arch, scale, options)[0]).eval()


def _untrained(card: Card) -> Network:
    network = find_architecture(card.arch).build(card.scale, card.options)
    network.card = card
    return network


def state_digest(network: nn.Module) -> str:
    """SHA-256 of the names and values of all weights of *network*."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def card_of(network: object) -> Card:
    """The effective card of *network*: the one it was loaded with, or a new one for a network that was built by hand.

    Options are those that the network has now. Where its weights were changed, their hash is that of the tensors.
    Raises InputError for a network that cannot be exported, as `check_network` does.
    """
    network = check_network(network)
    digest = state_digest(network)
    arch, scale = network.arch, network.scale
    fields: dict[str, Any] = {"name": f"{arch}_x{scale}", "arch": arch, "scale": scale}
    fields |= {"summary": "a network built in Python", "licence": "as the weights'"}
    fields |= {} if network.card is None else network.card.model_dump()
    fields["options"] = network.options
    if fields.get("weights") is None or network.digest != digest:
        fields["weights"] = {"file": "memory", "sha256": digest}
    return make_card(**fields)


def check_network(network: object) -> Network:
    """*network*, ready to be exported: its weights are plain float32 numbers on the CPU, and it has no hooks.

    Raises InputError, which says what to call, for any other.
    """
    if not isinstance(network, Network) or network.arch not in architectures():
        wrapped = next((n for n in ("module", "_orig_mod") if isinstance(getattr(network, n, None), Network)), None)
        hint = f": pass what it wraps, its attribute {wrapped}" if wrapped else ""
        raise InputError(f"{type(network).__name__} is not a network of a registered architecture{hint}")
    # A static rewrite would leave out what the class of any other module computes.
    known = ("torch.nn.modules.", type(architectures()[network.arch]).__module__.partition(".")[0] + ".")
    for name, module in network.named_modules():
        _check_module(f"module {name!r}" if name else "the network", module, known)
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        _check_tensor(name, value)
    return network


def _check_module(where: str, module: nn.Module, known: tuple[str, ...]) -> None:
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
    if "forward" in vars(module) or not f"{type(module).__module__}.".startswith(known):
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
