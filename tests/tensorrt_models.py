"""Small networks and requests for the tests of the TensorRT builder."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ppexport.backends.tensorrt.engine_artifact import make_request
from ppexport.device.artifact import read_artifact
from ppexport.networks.atd.network import ATDLight
from ppexport.networks.atd.pp_network import PPATDLight
from ppexport.networks.card import PurePassOptions


def lively(network: ATDLight, seed: int = 0) -> ATDLight:
    """*network* with random weights large enough that every branch matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network.eval()


def shorten(network: ATDLight, layers: int = 2) -> ATDLight:
    """A copy of *network* with the first *layers* layers only: all operators, a tenth of the time."""
    short = copy.deepcopy(network)
    short.layers = nn.ModuleList([short.layers[0]])
    group = short.layers[0].residual_group
    group.layers = nn.ModuleList(list(group.layers)[:layers])
    short.config = replace(short.config, depths=(layers,))
    return short.eval()


def random_network(arch: str, scale: int, compensation: str = "value") -> ATDLight:
    """A network of *arch* and *scale* with random weights."""
    if arch == "atd_light":
        return lively(ATDLight(scale))
    return lively(PPATDLight(scale, PurePassOptions(compensation=compensation)))


def request_in(folder: Path, artifact: Path, **changes) -> Path:
    """A build folder with the model of *artifact* and a request for it; returns the request."""
    source = read_artifact(artifact)
    request = {**make_request(source, runtime="tensorrt_rtx"), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / request["onnx"]).write_bytes(source.model_file.read_bytes())
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    return path
