"""ATD-light (arXiv 2401.08209), and PP-ATD-light (arXiv 2510.01997), which skips pure pixels with the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppexport.networks.architecture import Architecture, Macs, Routing
from ppexport.networks.atd.groups import COSTLY, INT8_GROUPS, ROUTING
from ppexport.networks.atd.roles import BRANCHES, branch_of

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ppexport.networks.network import Network

LAYER = "layers.*.residual_group.layers.*"
ATTENTION = frozenset({"MatMul", "Gemm", "Mul"})
FFN = frozenset({"Gemm", "MatMul", "Conv", "Erf", "Div", "Mul", "Add"})

HALF = {
    # Attention: everything but bias and softmax; what the router counts is no part of it.
    f"{LAYER}.wqkv": frozenset({"Gemm", "MatMul", "Add"}),
    **{f"{LAYER}.attn_{kind}{part}": ATTENTION for kind in ("win", "aca") for part in ("", ".proj")},
    # The sum that runs through all layers stays fp32; the product that is added to it does not.
    f"{LAYER}.attn_atd.wv": frozenset({"Gemm"}),
    f"{LAYER}.attn_atd.Gemm": frozenset({"MatMul"}),
    **{f"{LAYER}.convffn{part}": FFN for part in ("", ".fc1", ".fc2", ".dwconv", ".dwconv.*")},
    # In a mixed file the product of these layers is int8, and the sum with the bias is a node of its own.
    **{f"{LAYER}.{layer}.Gemm": frozenset({"Add"}) for layer in ("wqkv", "convffn.fc1", "convffn.fc2")},
    "layers.*.conv": frozenset({"Conv"}),
    "conv_after_body": frozenset({"Conv"}),
}
HALF_MODULES = (
    f"{LAYER}.wqkv",
    *(f"{LAYER}.attn_{kind}{part}" for kind in ("win", "aca") for part in ("", ".proj")),
    f"{LAYER}.attn_atd.wv",
    *(f"{LAYER}.convffn{part}" for part in ("", ".fc1", ".fc2", ".dwconv", ".dwconv.*")),
)


class AtdLight(Architecture):
    """ATD-light."""

    name = "atd_light"
    summary = "ATD-light: adaptive token dictionary, category and window attention"
    scales = (2, 3, 4)
    multiple = 16
    twin = "ppexport.twin.atd_twin:make_atd_twin"
    flavours = ("portable", "ort", "tensorrt")
    routing = Routing(LAYER, f"{LAYER}.output", f"{LAYER}.norm1", f"{LAYER}.attn_atd.wk", mask="")
    half = HALF
    branches = BRANCHES
    int8_groups = INT8_GROUPS
    int8_routing = ROUTING
    int8_costly = COSTLY
    half_sums = (f"{LAYER}.attn_atd",)
    half_modules = HALF_MODULES

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained ATD-light."""
        from ppexport.networks.atd.atd_light import ATDLight

        return ATDLight(scale)

    def branch_of(self, module: str, moves: bool) -> tuple[str, str]:
        """Block and branch of an operation (`ppexport.networks.atd.roles`)."""
        return branch_of(module, moves)

    def cost(self, scale: int, size: tuple[int, int], impure: int | None = None, colors: int = 0) -> Macs:
        """Multiply-adds by branch (`ppexport.networks.atd.cost`)."""
        from ppexport.networks.atd.cost import count_macs

        return count_macs(scale, size, impure, colors)


class PPAtdLight(AtdLight):
    """PP-ATD-light."""

    name = "pp_atd_light"
    summary = "PP-ATD-light: ATD-light whose pure pixels skip category attention"
    masks = ("graph", "input")
    routing = Routing(LAYER, f"{LAYER}.output", f"{LAYER}.norm1", f"{LAYER}.attn_atd.wk", mask="pure_pass")

    def options(self) -> type[BaseModel]:
        """Colours, window, cross-shift mask fusion and compensation."""
        from ppexport.networks.card import PurePassOptions

        return PurePassOptions

    def build(self, scale: int, options: BaseModel | None) -> Network:
        """An untrained PP-ATD-light."""
        from ppexport.networks.atd.pp_atd_light import PPATDLight
        from ppexport.networks.card import PurePassOptions

        return PPATDLight(scale, PurePassOptions.model_validate(options or {}))


ARCHITECTURES = (AtdLight(), PPAtdLight())
