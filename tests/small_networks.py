"""Networks of the bundled weights' first layers, for what takes minutes with all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

import ppexport
from ppexport.networks.architecture import find_architecture
from ppexport.networks.atd.config import CLASSICAL, AtdConfig

SIZE = (16, 16)
FIRST = {
    "ppexport.networks.atd.atd_light": ("layers", "residual_group.layers"),
    "ppexport.networks.camixer_atd.camixer_atd_light": ("layers", "residual_group.layers"),
    "ppexport.networks.swinir.swinir_light": ("layers", "residual_group.blocks"),
    "ppexport.networks.camixer.camixersr": ("body", "body"),
}
"""{module of a network: (its blocks, the layers inside one)}."""
ROUTING = find_architecture("pp_atd_light").routing


def small_network(scale=2, layers=1):
    """The bundled network's first *layers* layers: not a good network, but every part of one."""
    return shortened(ppexport.load_network(f"pp_atd_light_x{scale}"), layers)


def shortened(network, layers):
    """*network* with *layers* layers of its first block, or of its first group."""
    blocks, path = FIRST[type(network).__module__]
    short = nn.ModuleList([getattr(network, blocks)[0]])
    setattr(network, blocks, short)
    holder, _, name = f"0.{path}".rpartition(".")
    group = short.get_submodule(holder)
    setattr(group, name, nn.ModuleList(list(getattr(group, name))[:layers]))
    network.config = replace(network.config, depths=(layers,))
    return network


def lively(network, seed=0):
    """*network* with random weights large enough that every branch matters; its biases are torch's own."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network.eval()


def random_small_network(arch, layers=1, scale=2):
    """A network of *arch* with *layers* layers and random weights, the same at every call."""
    architecture = find_architecture(arch)
    if arch in ("atd", "pp_atd"):
        # Its 210 channels would take minutes, and sum up to numbers that no picture has.
        architecture = architecture.sized(replace(CLASSICAL, dim=48, heads=4, hidden=96, dictionary_tokens=64))
    options = architecture.options()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture.build(scale, None if options is None else options())
    return lively(shortened(network, layers))


def beyond_half(network):
    """*network* with numbers between its layers that exceed fp16, while its weights and its picture do not."""
    with torch.no_grad():
        network.layers[0].residual_group.layers[0].convffn.fc1.weight *= 1e5
    return network


MEMBERS = {
    "classical": (2, AtdConfig(30, (2, 1), 3, 16, 12, 7, 60, 5, 0, 256, "pixelshuffle")),
    "shuffled": (3, AtdConfig(24, (1, 2), 4, 16, 20, 5, 36, 7, 0, 128, "pixelshuffle", "3conv")),
    "doubled": (4, AtdConfig(20, (2,), 2, 16, 16, 6, 40, 3, 0, 256, "nearest+conv", "3conv")),
    "direct": (4, AtdConfig(40, (2,), 5, 16, 9, 8, 40, 5, 0, 64, "pixelshuffledirect", "3conv")),
}
"""{name: (scale, configuration)} of members of the ATD family, for `golden/atd_members_io.npz`."""


def numbered_weights(network, seed):
    """Load weights into *network* that its keys, their shapes and *seed* tell, whatever computes with them."""
    generator = np.random.default_rng(seed)
    state = network.state_dict()
    for key in sorted(state):
        if state[key].is_floating_point():
            numbers = generator.standard_normal(state[key].shape)
            numbers *= 0.1 if numbers.ndim == 1 else numbers[0].size ** -0.5
            numbers += numbers.ndim == 1 and key.endswith(("weight", "scale"))
            state[key] = torch.from_numpy(numbers).float()
    network.load_state_dict(state)
    return network.eval()
