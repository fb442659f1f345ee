"""What model files of all backends say of themselves, and what the functions of a capacity set are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Names of functions need neither, and are for devices too.
    from ppexport.cards import Card
    from ppexport.twin.build import StaticTwin


def model_facts(twin: StaticTwin, card: Card, capacities: Sequence[int]) -> dict[str, str]:
    """The metadata that every model file has, by which a runner knows that it is the manifest's."""
    return {
        "ppexport.name": card.name,
        "ppexport.arch": card.arch,
        "ppexport.scale": str(twin.scale),
        "ppexport.size": f"{twin.size[0]}x{twin.size[1]}",
        "ppexport.capacities": ",".join(map(str, capacities)),
        "ppexport.card_sha256": card.hash(),
    }


def capacity_function(capacity: int) -> str:
    """The function for *capacity* slots in a set."""
    return f"capacity_{capacity}"


def function_name(capacity: int, capacities: Sequence[int]) -> str:
    """The function for *capacity* in a file of *capacities*."""
    return "main" if len(capacities) == 1 else capacity_function(capacity)
