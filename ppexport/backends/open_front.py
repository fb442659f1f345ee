"""How parity looks into a format that gives outputs only: the same twin is converted once more, with more outputs.

A picture may take minutes in such a runtime. So whatever was computed is kept until the run is complete, and an
interrupted run continues from what was kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ppexport.errors import InputError
from ppexport.files import atomic_path, is_plain_name
from ppexport.networks.architecture import find_architecture
from ppexport.networks.network import Trace
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from ppexport.device.runner import Arrays


class Front(nn.Module):
    """A twin whose inputs are positional: `lr`, and `mask` and `slots` where it has them."""

    outputs: tuple[str, ...] = ("sr", "impure_tokens")

    def __init__(self, twin: StaticTwin) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, lr: Tensor, mask: Tensor | None = None, slots: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the twin gives."""
        out: tuple[Tensor, ...] = self.twin(lr, mask, slots=slots)
        return out


class OpenFront(Front):
    """A twin that also gives what every layer chose, what from, and what it computed."""

    def __init__(self, twin: StaticTwin) -> None:
        super().__init__(twin)
        routing = find_architecture(twin.network.arch).routing
        # What is not chosen by a dictionary cannot be chosen again from it.
        chosen = ("categories", "layers") if routing and routing.choice else ()
        given = ("tokens", "dictionaries") if routing and routing.norm else ()
        # A mask of adaptive colour centres is the host's.
        shown = () if twin.pure_pass is None or twin.pure_pass.adaptive else ("pure", "labels")
        self.inside = (*chosen, *given, *shown)
        self.outputs = (*Front.outputs, *self.inside)

    def look(
        self, lr: Tensor, mask: Tensor | None, slots: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, list[Tensor]]]:
        """The picture, the impure tokens and, by the names in `inside`, what every layer gave, or the mask."""
        trace = Trace()
        sr, impure = self.twin(lr, mask, slots=slots, trace=trace)
        found = {"categories": trace.categories, "layers": trace.tokens}
        found |= {name: [pair[i] for pair in trace.inputs] for i, name in enumerate(("tokens", "dictionaries"))}
        if self.twin.pure_pass is not None and "pure" in self.inside:
            padded = self.twin.pad(lr)
            labels = self.twin.pure_pass.labels(padded).to(torch.int32).reshape(-1)
            found |= {"pure": [self.twin.pure_pass(padded).to(torch.int32)], "labels": [labels]}
        return sr, impure, {name: found[name] for name in self.inside}

    def forward(self, lr: Tensor, mask: Tensor | None = None, slots: Tensor | None = None) -> tuple[Tensor, ...]:
        """Also, as far as the network has them, categories (layers, n), the layers' results (layers, ...), their input
        tokens (layers, n, c) and dictionaries (layers, t, c), the mask (n,) and the labels (n,) that it comes from.
        """
        sr, impure, found = self.look(lr, mask, slots)
        whole = ("pure", "labels")
        return sr, impure, *(found[name][0] if name in whole else torch.stack(found[name]) for name in self.inside)


class KeptResults:
    """A folder of results by name; those of another *key* were made from something else, and are removed."""

    def __init__(self, root: Path, key: str) -> None:
        """*key* is a plain name, that of the folder in *root* that holds everything."""
        self.folder = root / key
        for other in root.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def arrays(self, name: str, run: Callable[[], Arrays]) -> Arrays:
        """What is kept as *name*, else what *run* returns, which then is kept."""
        if not is_plain_name(name):
            raise InputError(f"{name!r} is not a plain name of a result")
        path = self.folder / f"{name}.npz"
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as data:
                    return {key: data[key] for key in data.files}
            except Exception:  # NumPy, zipfile and zlib each raise their own kinds
                # What is damaged is made again.
                path.unlink()
        found = run()
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found)  # type: ignore[arg-type]
        return found
