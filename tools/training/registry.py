"""The networks that can be trained, and their weights files in the published key names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ppexport.errors import InputError
from ppexport.files import atomic_path
from ppexport.networks.atd.network import ATDLight
from ppexport.networks.atd.pp_network import PPATDLight
from ppexport.networks.checkpoint import load_state, read_state

NETWORKS: dict[str, Callable[[int], ATDLight]] = {"atd_light": ATDLight, "pp_atd_light": PPATDLight}
"""Architecture name -> builder that takes the scale. A network maps (b, 3, h, w) in [0, 1] to (b, 3, sh, sw)."""

OUTPUT_LAYER = "upsample.0."
"""The only parameters whose shape depends on the scale."""


def build(arch: str, scale: int) -> ATDLight:
    """A freshly initialised network. Raises InputError for an unknown architecture or scale."""
    if arch not in NETWORKS:
        raise InputError(f"{arch!r} is no network of the toolkit: choose one of {', '.join(sorted(NETWORKS))}")
    try:
        return NETWORKS[arch](scale)
    except ValueError as error:
        raise InputError(str(error)) from None


def load_weights(network: ATDLight, path: Path) -> None:
    """Load the checkpoint at *path* whole. Raises CheckpointError when it belongs to another network or scale."""
    load_state(network, read_state(path), str(path))


def start_from(network: ATDLight, path: Path) -> bool:
    """Load *path* into *network*, leaving its last convolution alone when the checkpoint is of another scale.

    Returns whether everything was loaded. Raises CheckpointError when anything else differs.
    """
    weights, own = read_state(path), network.state_dict()
    fresh = {
        name: value
        for name, value in own.items()
        if name.startswith(OUTPUT_LAYER) and name in weights and weights[name].shape != value.shape
    }
    load_state(network, weights | fresh, str(path))
    return not fresh


def write_weights(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write *weights* to a .safetensors file atomically."""
    with atomic_path(path) as temporary:
        # Not save_file: it replaces the file by one that only its owner can read.
        temporary.write_bytes(save({k: v.detach().contiguous() for k, v in weights.items()}, metadata=metadata))
