"""From a wish to measured floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peers.arithmetic import Arithmetic, flop
from peers.cache import Cache, Say
from peers.comparing import open_card
from peers.in_onnxruntime import OurArtifact
from peers.in_torch import Source
from peers.lineup import BOUND
from peers.machine import this_machine
from peers.pictures import busy_photo
from peers.race import Heat, race

from floors.agreement import check
from floors.kernel import Kernel
from floors.part import Part
from floors.parts import parts_of
from floors.result import ARTEFACT, HEAT, Floors
from floors.shape import Shape
from ppexport.cli.console import progress_bar
from ppexport.device.picture import to_input
from ppexport.errors import UnavailableError
from ppexport.networks.atd.cost import count_macs
from ppexport.networks.atd.network import AtdConfig

COPIES = 8
"""Of every formulation in its graph."""


@dataclass(frozen=True)
class Wish:
    """What to measure, and for how long."""

    model: str
    size: tuple[int, int]
    """(h, w) of the LR picture."""
    work: Path
    """Folder of exported graphs."""
    rounds: int = 20
    seconds: float = 900.0
    """After which no further round begins."""
    threads: int = 2
    copies: int = COPIES


def open_kernels(parts: Sequence[Part], threads: int, copies: int) -> tuple[dict[str, list[Kernel]], dict[str, str]]:
    """Part -> its formulations that run here, and key -> why another one does not.

    Raises UnavailableError where the artefact's own formulation does not run.
    """
    opened: dict[str, list[Kernel]] = {}
    skipped: dict[str, str] = {}
    for part in parts:
        kernels = opened[part.key] = []
        for i, formulation in enumerate(part.formulations):
            kernel = Kernel(part, formulation, threads, copies)
            try:
                kernel.prepare()
            except UnavailableError as error:
                if i == 0:
                    raise
                skipped[kernel.key] = str(error)
                continue
            kernels.append(kernel)
    return opened, skipped


def measure(wish: Wish, say: Say) -> Floors:
    """Export what is missing, check that formulations agree, and race. Raises PpexportError."""
    card, _ = open_card(wish.model)
    assert card.options is not None
    parts = parts_of(Shape(AtdConfig(card.scale), wish.size))
    say(f"opening {sum(len(part.formulations) for part in parts)} formulations of {len(parts)} parts")
    kernels, skipped = open_kernels(parts, wish.threads, wish.copies)
    differences: dict[str, float] = {}
    for part in parts:
        differences |= check(kernels[part.key])
    lr = to_input(busy_photo(wish.size, card.options.model_dump()))
    folder = Cache(wish.work, wish.model, wish.size).artifact(Source(wish.model, True), "ort", None, say)
    macs = count_macs(card.scale, wish.size)
    bound = Arithmetic(BOUND, "arithmetic alone, at the rate of sgemm", lr, flop(macs), wish.threads)
    artefact = OurArtifact(ARTEFACT, "ours, ort: dense", lr, folder, wish.threads, None)
    heat = Heat(HEAT, (artefact, bound, *(kernel for part in parts for kernel in kernels[part.key])))
    with progress_bar("rounds") as progress:
        outcome = race([heat], [], wish.rounds, wish.seconds, lambda _: None, progress)
    return Floors(
        model=card.name,
        size=wish.size,
        threads=wish.threads,
        copies=wish.copies,
        machine=this_machine(),
        parts=parts,
        kernels=kernels,
        differences=differences,
        skipped=skipped,
        outcome=outcome,
        network_flop=flop(macs),
        rates=bound.rates,
    )
