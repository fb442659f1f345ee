"""Networks of the bundled weights' first layers, for what takes minutes with all of them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

import ppexport
from ppexport.networks.architecture import find_architecture

SIZE = (16, 16)
ROUTING = find_architecture("pp_atd_light").routing


def small_network(scale=2, layers=1):
    """The bundled network's first *layers* layers: not a good network, but every part of one."""
    return shortened(ppexport.load_network(f"pp_atd_light_x{scale}"), layers)


def shortened(network, layers):
    """*network* with *layers* layers of its first block."""
    network.layers = nn.ModuleList([network.layers[0]])
    group = network.layers[0].residual_group
    group.layers = nn.ModuleList(list(group.layers)[:layers])
    network.config = dataclasses.replace(network.config, depths=(layers,))
    return network


def beyond_half(network):
    """*network* with numbers between its layers that exceed fp16, while its weights and its picture do not."""
    with torch.no_grad():
        network.layers[0].residual_group.layers[0].convffn.fc1.weight *= 1e5
    return network
