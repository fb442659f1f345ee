"""From a wish to a finished comparison."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from peers.alone import peak_of_one_run
from peers.arithmetic import flop
from peers.cache import Cache, Say
from peers.candidate import Candidate, Image
from peers.child import in_child
from peers.in_torch import Source
from peers.lineup import BOUND, Lineup
from peers.machine import this_machine
from peers.pictures import busy_photo, pure_pixels, with_pure_share
from peers.race import Outcome, Reference, race
from peers.result import Comparison
from peers.saving import saving
from ppexport.cli.console import percent, progress_bar
from ppexport.cli.cost import cost
from ppexport.device.artifact import ONNX_FLAVOURS
from ppexport.device.picture import to_input
from ppexport.errors import InputError
from ppexport.networks.atd.cost import count_macs
from ppexport.networks.card import Card, find_card


@dataclass(frozen=True)
class Wish:
    """What to compare, and for how long."""

    model: str
    size: tuple[int, int]
    """(h, w) of the LR picture."""
    work: Path
    """Folder of exported graphs."""
    keys: frozenset[str]
    """Candidates."""
    pure_share: float = 0.389
    rounds: int = 20
    seconds: float = 600.0
    """After which no further round begins."""
    threads: int = 2
    memory: bool = False
    """Whether to measure the peak memory of every candidate too."""


def open_card(model: str) -> tuple[Card, Path]:
    """Card and folder of *model*. Raises PpexportError for one without weights or without Pure-Pass."""
    card, folder = find_card(model)
    if card.weights is None or card.options is None:
        raise InputError(f"{model} has no {'weights' if card.weights is None else 'Pure-Pass'}: name a PP-ATD-light")
    return card, folder


def references(model: str, pictures: Sequence[Image]) -> list[Reference]:
    """What both PyTorch networks make of *pictures*."""
    made = []
    for name, dense in (("dense", True), ("pure_pass", False)):
        network = Source(model, dense).load()
        with torch.inference_mode():
            made += [Reference(name, lr, network(torch.from_numpy(lr)).numpy()) for lr in pictures]
    return made


def measure_memory(candidates: Sequence[Candidate], outcome: Outcome, say: Say) -> dict[str, int]:
    """Peak bytes of loading and one run of every network that ran, each in its own process."""
    peaks = {}
    for candidate in candidates:
        if candidate.key not in {*outcome.skipped, BOUND}:
            say(f"memory of {candidate.name}")
            peaks[candidate.key] = in_child(peak_of_one_run, candidate)
    return peaks


def compare(wish: Wish, say: Say) -> Comparison:
    """Export what is missing, race, and measure memory if wished. Raises PpexportError."""
    card, _ = open_card(wish.model)
    assert card.options is not None
    options = card.options.model_dump()
    busy = busy_photo(wish.size, options)
    mixed = with_pure_share(busy, wish.pure_share)
    mask, no_mask = pure_pixels(mixed, options), pure_pixels(busy, options)
    shares = float(mask.mean()), float(no_mask.mean())
    say(f"pure picture: {percent(shares[0])} pure; busy picture: {percent(shares[1])}")
    lineup = Lineup(
        Cache(wish.work, wish.model, wish.size), card.scale, to_input(mixed), to_input(busy), wish.threads, say
    )
    heats = lineup.heats(wish.keys)
    candidates = list(dict.fromkeys(c for heat in heats for c in heat.candidates))
    # A candidate that was prepared holds a session, which no other process can be sent.
    unprepared = [copy.copy(candidate) for candidate in candidates]
    torch.set_num_threads(wish.threads)
    pictures = references(wish.model, [lineup.pure, lineup.busy])
    with progress_bar("rounds") as progress:
        outcome = race(heats, pictures, wish.rounds, wish.seconds, say, progress)
    by_key = {candidate.key: candidate for candidate in candidates}
    macs_saved = cost(Source(wish.model, dense=False).load(), wish.size, mask).saving
    savings = [saving(flavour, outcome, by_key, shares[0], macs_saved) for flavour in ONNX_FLAVOURS]
    return Comparison(
        model=card.name,
        scale=card.scale,
        size=wish.size,
        threads=wish.threads,
        machine=this_machine(),
        pure_share=shares[0],
        busy_share=shares[1],
        dense_flop=flop(count_macs(card.scale, wish.size)),
        outcome=outcome,
        candidates=by_key,
        savings=[one for one in savings if one is not None],
        memory=measure_memory(unprepared, outcome, say) if wish.memory else {},
    )
