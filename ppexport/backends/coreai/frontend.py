"""PyTorch twin -> Core AI program, by `coreai-torch`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from ppexport.errors import ExportError, first_line, require
from ppexport.networks.atd import Trace
from ppexport.twin.build import StaticTwin
from ppexport.twin.watching import layer_inputs

EXTRA = "coreai"


class Front(nn.Module):
    """A twin whose inputs are positional: `lr`, and `mask` where it has one."""

    outputs: tuple[str, ...] = ("sr", "impure_tokens")

    def __init__(self, twin: StaticTwin) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, lr: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the twin gives."""
        out: tuple[Tensor, ...] = self.twin(lr, mask)
        return out


class OpenFront(Front):
    """The same, and what every layer chose and chose from, for looking into."""

    def __init__(self, twin: StaticTwin) -> None:
        super().__init__(twin)
        inside = ("categories", "tokens", "dictionaries")
        self.outputs = (*Front.outputs, *inside, *(() if twin.pure_pass is None else ("pure", "labels")))

    def forward(self, lr: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Also categories (layers, n), the layers' input tokens (layers, n, c) and dictionaries (layers, t, c).

        With Pure-Pass also the mask (n,) and the labels (n,) that it comes from.
        """
        trace = Trace()
        with layer_inputs(self.twin) as found:
            sr, impure = self.twin(lr, mask, trace=trace)
        tokens, dictionaries = ([given[i] for given in found] for i in (0, 1))
        inside = (torch.stack(trace.categories), torch.stack(tokens), torch.stack(dictionaries))
        if self.twin.pure_pass is None:
            return sr, impure, *inside
        padded = self.twin.pad(lr)
        pure, labels = self.twin.pure_pass(padded), self.twin.pure_pass.labels(padded)
        return sr, impure, *inside, pure.to(torch.int32), labels.to(torch.int32).reshape(-1)


def example_inputs(twin: StaticTwin, mask: bool) -> tuple[Tensor, ...]:
    """Arguments of `Front` for tracing."""
    lr = torch.zeros(1, 3, *twin.size)
    return (lr, torch.zeros(1, 1, *twin.padded)) if mask else (lr,)


def convert(fronts: Mapping[str, Front], mask: bool) -> Any:
    """One program with a function for each of *fronts*, by name. Raises ExportError, or UnavailableError."""
    require("coreai_torch", EXTRA)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            from coreai_torch import TorchConverter, get_decomp_table

            converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
            for name, front in fronts.items():
                with torch.no_grad():
                    program = torch.export.export(front.eval(), example_inputs(front.twin, mask))
                    program = program.run_decompositions(get_decomp_table())
                converter.add_exported_program(
                    program,
                    input_names=["lr", "mask"] if mask else ["lr"],
                    output_names=list(front.outputs),
                    entrypoint_name=name,
                )
            return converter.to_coreai()
    except (ValueError, TypeError, NotImplementedError, RuntimeError, KeyError, AssertionError) as error:
        raise ExportError(f"coreai-torch cannot convert the twin: {first_line(error)}") from error
