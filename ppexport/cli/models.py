"""`ppexport models`: what is bundled."""

from __future__ import annotations

from ppexport.cli.console import emit_json, people, table
from ppexport.cli.options import Json

EXAMPLE = "Example: ppexport models --json -"


def models(json: Json = None) -> None:
    """The bundled models."""
    from ppexport.networks.card import bundled_cards, read_card

    cards = [read_card(folder) for folder in bundled_cards().values()]
    emit_json(json, [card.model_dump(mode="json") for card in cards])
    rows = [[c.name, f"x{c.scale}", "bundled" if c.weights else "your own file", c.licence, c.summary] for c in cards]
    people(json).print(table("models", ["name", "scale", "weights", "licence", "summary"], rows, numbers=5))
