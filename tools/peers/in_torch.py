"""Candidates in PyTorch: the network itself, eager and compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from peers.candidate import Candidate, Image
from ppexport.errors import InputError, UnavailableError, first_line
from ppexport.networks.atd.network import ATDLight
from ppexport.networks.card import find_card
from ppexport.networks.load import load_network


@dataclass(frozen=True)
class Source:
    """A model with weights, by name, and whether it is taken without Pure-Pass."""

    model: str
    dense: bool

    def load(self) -> ATDLight:
        """The network, in eval mode. Raises PpexportError."""
        if not self.dense:
            network = load_network(self.model)
        else:
            card, folder = find_card(self.model)
            if card.weights is None:
                raise InputError(f"{self.model} has no weights to measure with")
            network = load_network(arch="atd_light", scale=card.scale, checkpoint=folder / card.weights.file)
        assert isinstance(network, ATDLight)
        return network


class TorchEager(Candidate):
    """The network in PyTorch, as it is."""

    def __init__(self, key: str, name: str, lr: Image, source: Source, threads: int) -> None:
        super().__init__(key, name, lr)
        self.source, self.threads = source, threads
        self.reference = "dense" if source.dense else "pure_pass"
        self._network: Any = None

    def prepare(self) -> None:
        """Load the weights."""
        torch.set_num_threads(self.threads)
        self._network = self.source.load()

    def run(self) -> Image:
        """One forward pass."""
        with torch.inference_mode():
            sr: Image = self._network(torch.from_numpy(self.lr)).numpy()
        return sr


class TorchCompiled(TorchEager):
    """The network through torch.compile."""

    def prepare(self) -> None:
        """Compile by running once; slow. Raises UnavailableError where that fails."""
        super().prepare()
        self._network = torch.compile(self._network)
        try:
            self.run()
        except Exception as error:  # whatever a compiler's layers raise
            raise UnavailableError(f"torch.compile fails: {type(error).__name__}: {first_line(error)}") from None
