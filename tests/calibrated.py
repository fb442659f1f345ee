"""A network of two layers that holds every operator of the large ones, and what it was calibrated with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from shared import FREE_IMAGES
from small_networks import random_small_network

import ppexport
from ppexport.backends.onnx.collect import calibrate
from ppexport.device.artifact import Artifact, read_artifact
from ppexport.networks.network import Network
from ppexport.quantize.calibration import Calibration, load_calibration
from ppexport.quantize.crops import cut_crops, read_sources

SIZE = (16, 32)


@dataclass
class Calibrated:
    network: Network
    artifact: Artifact
    calibration: Calibration
    path: Path
    model: onnx.ModelProto


def crops_and_sources(count=4):
    sources = read_sources(FREE_IMAGES)
    return sources, cut_crops(sources, SIZE, 2, count)


def small_calibrated(folder: Path, network: Network | None = None) -> Calibrated:
    """*network*, PP-ATD-light if left out, exported in fp32 and calibrated in *folder*."""
    network = network or random_small_network("pp_atd_light", 2)
    artifact = read_artifact(ppexport.export(network, backend="onnx", size=SIZE, out=folder / "fp32"))
    sources, crops = crops_and_sources()
    calibrate(artifact, sources, crops, ["a warning"], folder / "c.npz")
    calibration = load_calibration(folder / "c.npz")
    return Calibrated(network, artifact, calibration, folder / "c.npz", onnx.load(artifact.model_file))


def lr_of(photograph):
    """uint8 (h, w, 3) as a network takes it."""
    return np.ascontiguousarray((photograph / np.float32(255)).transpose(2, 0, 1)[None])
