"""The network that an artefact was made from."""

from __future__ import annotations

from pathlib import Path

from ppexport.device.artifact import Artifact
from ppexport.errors import InputError
from ppexport.networks.atd.network import ATDLight
from ppexport.networks.card import bundled_cards, read_card
from ppexport.networks.load import card_of, load_network


def reference_network(artifact: Artifact, checkpoint: Path | None) -> ATDLight:
    """The network behind *artifact*: a bundled model of the same weights, or *checkpoint*, which must match.

    Raises InputError where the weights are not those of the artefact.
    """
    m = artifact.manifest
    expected = m.weights["sha256"]
    if checkpoint is None:
        folder = bundled_cards().get(m.name)
        card = None if folder is None else read_card(folder)
        if card is None or card.weights is None or card.weights.sha256 != expected:
            raise InputError(f"{artifact.path} was made from {m.weights['file']}: give that file with --checkpoint")
        network = load_network(m.name, **m.options)
    else:
        network = load_network(arch=m.arch, scale=m.scale, checkpoint=checkpoint, **m.options)
        found = card_of(network).weights
        if found is None or found.sha256 != expected:
            raise InputError(f"{checkpoint} is not the weights file that {artifact.path} was made from")
    if not isinstance(network, ATDLight):
        raise InputError(f"{artifact.path} is of a network that parity does not know: {type(network).__name__}")
    return network
