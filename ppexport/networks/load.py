"""From a model card or a checkpoint to a network in eval mode."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ppexport.errors import CheckpointError, InputError
from ppexport.networks.architecture import Architecture, Detected, Shape, architectures, find_architecture
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
        arch: a registered architecture, such as "pp_atd_light"; without it and a name, the one that the weights were
            made for.
        scale: upscaling factor; without it and a name, that of the weights.
        checkpoint: a weights file, in place of the model's own; needed without a name.
        options: in place of the card's: for Pure-Pass colors, window, csmf, centres, compensation.

    Raises:
        CardError, CheckpointError, InputError: something of this is damaged, unknown or does not fit together.
        UnavailableError: the card has no weights of its own.
    """
    return load_card(*find_weights(name, arch, scale, checkpoint, options))


def find_weights(
    name: str | None, arch: str | None, scale: int | None, checkpoint: str | Path | None, options: dict[str, Any]
) -> tuple[Card, Path]:
    """The effective card of these weights and their file, as `card_with_weights`.

    Without a *name*, *arch* and *scale* may be None: the weights tell them.
    """
    if name is None and checkpoint is not None and (arch is None or scale is None):
        shapes = shapes_of(read_state(Path(checkpoint)))
        found = _detect(shapes, checkpoint)
        if found is None:
            raise CheckpointError(f"{checkpoint} holds weights of {_unlike(shapes)}")
        arch, scale = arch or found.architecture.name, _whole(found, checkpoint) if scale is None else scale
    return card_with_weights(name, arch, scale, checkpoint, options)


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shapes of all tensors of *state*."""
    return {key: tuple(value.shape) for key, value in state.items()}


def _detect(
    shapes: Mapping[str, Shape], path: str | Path, known: Iterable[Architecture] | None = None
) -> Detected | None:
    """What weights with these *shapes* are, by the first of the *known* architectures that has such; None is all."""
    try:
        found = (architecture.detect(shapes) for architecture in known or architectures().values())
        return next((detected for detected in found if detected is not None), None)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _whole(found: Detected, path: str | Path) -> int:
    if found.scale != int(found.scale) or not found.scale:
        raise CheckpointError(f"{path}: the last convolution has no number of outputs that belongs to a scale")
    return int(found.scale)


def _unlike(shapes: Mapping[str, Shape]) -> str:
    """What is wrong with weights of no architecture: the nearest one, and what it has otherwise."""
    with torch.device("meta"):
        own = {a.name: set(a.build(a.scales[0], None).state_dict()) for a in architectures().values()}
    name = max(own, key=lambda name: len(own[name] & set(shapes)))
    missing, left = sorted(own[name] - set(shapes))[:1], sorted(set(shapes) - own[name])[:1]
    facts = [*(f"{key!r} is missing" for key in missing), *(f"{key!r} is not of it" for key in left)]
    return f"no network that is known here; the nearest is {name}, where {' and '.join(facts)}"


def load_card(card: Card, path: Path) -> Network:
    """The network of *card* with the weights in the file *path*. Raises CheckpointError."""
    architecture, state = find_architecture(card.arch), read_state(path)
    shapes = shapes_of(state)
    found = _detect(shapes, path, [architecture])
    if found is None and (other := _detect(shapes, path)) is not None:
        name = other.architecture.name
        raise CheckpointError(f"{path} holds weights of {name}, not of {card.arch}: say --arch {name}")
    if found is not None and found.scale != card.scale:
        raise CheckpointError(f"{path} holds weights for x{_whole(found, path)}, not x{card.scale}")
    network = _untrained(card, architecture if found is None else found.architecture)
    load_state(network, state, str(path))
    network.digest = state_digest(network)
    return network.eval()


def load_untrained(name: str | None, arch: str | None, scale: int | None, options: dict[str, Any]) -> Network:
    """The network of a card, or of *arch* and *scale*, without its weights: enough to count what it costs."""
    card = effective_card(name, arch, scale, options)[0]
    return _untrained(card, find_architecture(card.arch)).eval()


def _untrained(card: Card, architecture: Architecture) -> Network:
    network = architecture.build(card.scale, card.options)
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
