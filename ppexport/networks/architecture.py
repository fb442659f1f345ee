"""What a network is: one `Architecture` for each, found in `ppexport.networks` and through entry points.

A record is read without torch and pydantic, which its methods import when they are called. A new network is one folder
with a list `ARCHITECTURES`; another package names its list in the entry points `ppexport.architectures`. Nothing
outside the network's folder knows the paths of its modules, its number of layers or its class: what needs a place in
the network asks for its role, a pattern of dotted module paths in which `*` stands for a number:

    layers.*.residual_group.layers.*        matches layers.0.residual_group.layers.5, with the place (0, 5)
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ppexport.device.mask import Layout
from ppexport.errors import InputError
from ppexport.plugins import discover

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.networks.network import Network

Place = tuple[int, ...]
"""The numbers in a module's path, such as block and layer."""


@cache
def pattern_of(role: str) -> re.Pattern[str]:
    """The regular expression of a pattern of module paths."""
    return re.compile(r"(\d+)".join(re.escape(part) for part in role.split("*")))


def place_of(role: str, module: str | None) -> Place | None:
    """The numbers in the path *module*, such as (0, 5), where it matches the *role*, else None; "" matches nothing."""
    match = pattern_of(role).fullmatch(module) if role and module is not None else None
    return None if match is None else tuple(map(int, match.groups()))


@dataclass(frozen=True)
class Routing:
    """Where a network routes tokens by their data: roles of the modules that parity looks into."""

    choice: str = ""
    """Its *operator* chooses the category of every token or window; one for each layer, and in their order. "" where
    the mask alone routes, which follows from the image."""
    operator: str = "ArgMax"
    """Of ONNX: "ArgMax", or "Less" where the categories are 1 for windows that attend and 0 for the others."""
    tokens: str = ""
    """Its last sum is what a layer returns, or normalises and returns."""
    norm: str = ""
    """It reads the tokens that a layer chooses from; "" where choices cannot be made again from another's numbers."""
    keys: str = ""
    """It reads the dictionary that a layer chooses from."""
    mask: str = ""
    """Its ArgMax labels pixels, and its comparison tells pure ones; "" without Pure-Pass."""


NORMS = "norms"
"""The branch of `Macs` that counts 5 for every normalised element, which is part of the published counting only."""


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one image."""

    branches: Mapping[str, int]

    @property
    def pure(self) -> int:
        """Multiply-adds of convolutions, linear layers and matmuls."""
        return self.published - self.branches.get(NORMS, 0)

    @property
    def published(self) -> int:
        """The counting of the ATD paper, norms included."""
        return sum(self.branches.values())


Shape = tuple[int, ...]
"""Of a tensor of weights."""


@dataclass(frozen=True)
class Detected:
    """What weights tell of their network."""

    architecture: Architecture
    """With the sizes of their network, where weights of it come in several."""
    scale: float
    """Upscaling factor; one that is no whole number is none."""


def scale_of(shapes: Mapping[str, Shape], last: str) -> float:
    """The scale of a network whose convolution *last* has 3 * scale^2 outputs for a pixel shuffle; 0 where it lacks."""
    return math.sqrt((shapes.get(last) or (0,))[0] / 3)


class Architecture(ABC):
    """One kind of network."""

    name: str
    """As `arch` of a card, such as "pp_atd_light"."""
    summary: str
    scales: tuple[int, ...]
    layout: Layout = Layout()
    """How the input is padded, and what takes slots."""
    any_size = False
    """Whether networks of other sizes, which their weights tell, are of it as well; its name alone tells no cost."""
    twin: str
    """MODULE:FUNCTION that makes the twin from (network, size (h, w), capacity or None, flavour). It is
    named and not imported, because twins are made of networks. Raises TwinError for what the rewrite cannot express."""
    masks: tuple[str, ...] = ("none",)
    """Where the Pure-Pass mask may come from: "graph" and "input", or "none" without one; the first is the default."""
    flavours: tuple[str, ...] = ("portable",)
    """The ways in which its twin can be arranged."""
    routing: Routing | None = None
    """None for a network that computes the same for every image."""
    int8_groups: Mapping[str, str] = {}
    """{name: role}: the convolutions and linear layers that int8 is for, in groups that a recipe names."""
    int8_routing: str = ""
    """The group that chooses the categories: it is measured, to show what its flips cost, and never placed."""
    int8_costly: tuple[str, ...] = ()
    """Groups that are not int8 without a recipe."""
    int8_summed: tuple[str, ...] = ()
    """Groups whose results are all that a block adds to the sum through all blocks: float where results are int8."""
    half: Mapping[str, frozenset[str]] = {}
    """{role: kinds of ONNX operators} that a half-precision file computes in fp16; everything else stays fp32."""
    half_sums: tuple[str, ...] = ()
    """Roles whose Gemm adds its product to the sum through all layers: the sum stays fp32, the product does not."""
    half_modules: tuple[str, ...] = ()
    """Roles of the modules that Core ML and Core AI compute in fp16 as a whole, in a half-precision file."""
    branches: Sequence[str] = ()
    """The names that `branch_of` gives, in the order in which figures list them."""
    branch_patterns: Mapping[str, str] = {".*": "network"}
    """{regular expression of module paths: branch}; the first that matches counts."""
    block: str = ""
    """Role of a block, by whose number figures are summed as well; what is in none is "head and tail"."""

    def options(self) -> type[BaseModel] | None:
        """The model of the card's `options`; None for a network that has none."""
        return None

    def detect(self, shapes: Mapping[str, Shape]) -> Detected | None:
        """What weights with tensors of these *shapes*, by key, are; None for those of another network.

        Several architectures may have the same weights: the first in the registry is the one that they were made for.
        Raises ValueError, which says what is wrong, for weights of this kind that tell no network that can be built.
        """
        return None

    @abstractmethod
    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained network."""

    def branch_of(self, module: str, moves: bool) -> tuple[str, str]:
        """Block and branch of an operation in *module*, "" for the network itself.

        What only *moves* tokens or numbers, and computes nothing on them, may be in another branch.
        """
        place = place_of(self.block, ".".join(module.split(".")[: self.block.count(".") + 1]))
        branch = next(name for pattern, name in self.branch_patterns.items() if re.fullmatch(pattern, module))
        return str(place[0]) if place else "head and tail", branch

    @abstractmethod
    def cost(self, scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
        """Multiply-adds of one LR image of *size* (h, w) by branch, with *impure* tokens to route; None routes all.

        *colors* > 0 adds the Pure-Pass mask's own, of that many colour centres.
        """

    def fixed_tokens(self, size: tuple[int, int], options: Mapping[str, Any]) -> int | None:
        """How many tokens of one LR image of *size* (h, w) are routed, whatever it shows, as `cost` takes it.

        None for all of them. *options* are those of the network, by name.
        """
        return None


@cache
def architectures() -> dict[str, Architecture]:
    """{name: architecture} of all that are registered."""
    lists: Iterable[Iterable[Architecture]] = discover("ppexport.networks", "ARCHITECTURES", "ppexport.architectures")
    return {architecture.name: architecture for several in lists for architecture in several}


def find_architecture(name: str) -> Architecture:
    """The architecture called *name*. Raises InputError with the known names."""
    known = architectures()
    if name not in known:
        raise InputError(f"--arch is one of {', '.join(known)}, not {name!r}")
    return known[name]
