"""`ppexport models`: the bundled models, and the architectures that other weights can have."""

from __future__ import annotations

from ppexport.cli.console import emit_json, people, table
from ppexport.cli.options import Json
from ppexport.errors import require

EXAMPLE = "Example: ppexport models --json -"


def models(json: Json = None) -> None:
    """List the bundled models, and the architectures that a checkpoint of your own can have."""
    require("pydantic", "export")
    from ppexport.backends.options import describe_options
    from ppexport.networks.architecture import architectures
    from ppexport.networks.card import bundled_cards, read_card

    cards = [read_card(folder) for folder in bundled_cards().values()]
    known = architectures().values()
    options = {a.name: {} if (model := a.options()) is None else describe_options(model) for a in known}
    listed = [
        {
            "name": a.name,
            "scales": list(a.scales),
            "summary": a.summary,
            "routes": a.routing is not None,
            "options": options[a.name],
        }
        for a in known
    ]
    emit_json(json, {"models": [card.model_dump(mode="json") for card in cards], "architectures": listed})
    rows = [[c.name, f"x{c.scale}", "bundled" if c.weights else "your own file", c.licence, c.summary] for c in cards]
    console = people(json)
    console.print(table("models", ["name", "scale", "weights", "licence", "summary"], rows, numbers=5))
    rows = [[a.name, ", ".join(f"x{scale}" for scale in a.scales), a.summary] for a in known]
    console.print(table("architectures, for --arch", ["name", "scales", "summary"], rows, numbers=3))
    owners: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, own in options.items():
        owners.setdefault(tuple(own.items()), []).append(name)
    for described, names in owners.items():
        if described:
            console.print(f"{', '.join(names)}, with --option NAME=VALUE:")
        for option, what in described:
            console.print(f"  {option}: {what}")
