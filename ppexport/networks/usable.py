"""What a network must be before anything is made from it: plain float32 weights that are all there, and no hooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ppexport.errors import InputError
from ppexport.networks.atd import ATDLight

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
