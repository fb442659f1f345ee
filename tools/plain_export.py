"""A network as plain ONNX: what tools/peers.py and tools/compare_networks.py compare the artifacts with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ppexport.backends.onnx.export_onnx import quiet_exporter
from ppexport.errors import ExportError, first_line
from ppexport.files import atomic_path
from ppexport.networks.atd import attention
from ppexport.networks.atd.attention import Routes


class _OneInput(nn.Module):
    """A network that takes nothing but the picture, which is all that the exporter would pass by position."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, lr: Tensor) -> Any:
        return self.network(lr)


def export_plain(network: nn.Module, size: tuple[int, int], target: Path) -> None:
    """Write *network* without Pure-Pass, for *size* (h, w), multiples of 16, to *target* as ONNX with the least change
    that exports.

    Three places would keep the exporter from its work: the stable argsort of the categories is a sort of the unique
    keys category * n + token, which exports as TopK of all n, that of CAMixerSR's windows a sort that is not stable,
    and the mask of shifted windows, made in place, is a constant. The exporter folds constants, as it does by default:
    the file of ATD-light has 237 MB at 64x64. Raises ExportError.
    """
    lr, tokens = torch.rand(1, 3, *size), torch.arange(size[0] * size[1])
    mask = cache(attention.shift_mask)

    def route(categories: Tensor, pure: Tensor | None, group: int) -> Routes:
        order = (categories.view(-1) * len(tokens) + tokens).sort().indices
        return Routes(order, order, tokens)

    def argsort(scores: Tensor, dim: int, descending: bool, stable: bool) -> Tensor:
        return scores.sort(dim=dim, descending=descending).indices

    def masked(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
        return mask(int(height), int(width), window, shift, device)

    try:
        with (
            torch.no_grad(),
            quiet_exporter(),
            atomic_path(target) as temporary,
            patch.multiple(attention, route=route, shift_mask=masked),
            patch.object(Tensor, "argsort", argsort),
        ):
            # The masks are made in this run, hence constants in the traced one.
            network(lr)
            names: dict[str, Any] = {"input_names": ["lr"], "output_names": ["sr"]}
            torch.onnx.export(_OneInput(network), (lr,), str(temporary), dynamo=False, opset_version=17, **names)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        # A file beyond the 2 GB of protobuf is a RuntimeError or a ValueError.
        raise ExportError(f"the plain network does not export at {size[0]}x{size[1]}: {first_line(error)}") from None
