"""What is compared: a model's own Pure-Pass options, each factor changed alone, and no Pure-Pass at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppexport.networks.atd.network import ATDLight
from ppexport.networks.atd.pp_network import PPATDLight, PurePassOptions
from ppexport.networks.card import Options

FACTORS: dict[str, dict[Any, str]] = {
    "compensation": {"value": "compensation value", "zero": "compensation zero", "normed": "compensation normed"},
    "csmf": {True: "CSMF on", False: "CSMF off"},
    "colors": {6: "K 6", 8: "K 8"},
    "window": {4: "w 4", 8: "w 8", 16: "w 16"},
}
"""The fields of `ppexport.networks.card.Options`, and the values that are compared with what a table calls them."""


@dataclass(frozen=True)
class Variant:
    """One row of the ablation; *options* is None without Pure-Pass."""

    name: str
    options: Options | None


def describe(options: Options) -> str:
    """All four factors in a few words."""
    mixing = f"{options.compensation}, CSMF {'on' if options.csmf else 'off'}"
    return f"{mixing}, K {options.colors}, w {options.window}"


def variants(default: Options) -> list[Variant]:
    """*default* first, then every other value of every factor alone, and the same weights without Pure-Pass last."""
    # Every factor has the default among its values: under its options it is found once.
    names = {default: f"default ({describe(default)})"}
    for factor, values in FACTORS.items():
        for value, name in values.items():
            names.setdefault(default.model_copy(update={factor: value}), name)
    return [*(Variant(name, options) for options, name in names.items()), Variant("no Pure-Pass", None)]


def with_options(network: ATDLight, options: Options | None) -> ATDLight:
    """A network with the weights of *network* under other *options*; None: as ATD-light, where no pixel is pure."""
    scale = network.config.scale
    made = ATDLight(scale) if options is None else PPATDLight(scale, PurePassOptions(**options.model_dump()))
    made.load_state_dict(network.state_dict())
    return made.eval()
