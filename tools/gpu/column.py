"""Network and twin in PyTorch on a GPU, on the inputs of parity: do they agree there, and what does a capacity save?"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ppexport.errors import UnavailableError, first_line
from ppexport.files import finite
from ppexport.networks.load import load_network
from ppexport.networks.network import Network, Trace
from ppexport.parity.columns import Column
from ppexport.parity.compare import compare_columns
from ppexport.parity.inputs import ParityInput, parity_inputs
from ppexport.parity.pair import measure
from ppexport.parity.references import NetworkColumn, TwinColumn
from ppexport.parity.run import TWIN_GATE, compute
from ppexport.twin.twin import StaticTwin, make_twin

MODEL = "pp_atd_light_x2"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZE, TIMED_SIZE = (64, 64), (256, 256)
"""(h, w) of the LR images that are compared, and of the one that is timed."""
SHARES = (4, 2, 1)
"""Parts of full capacity that are timed."""
WARM_UP = 3


class Elsewhere:
    """A network or twin of which a copy computes on *device*, by autocast to *dtype*; all else is the original's."""

    def __init__(self, module: nn.Module, device: str, dtype: torch.dtype) -> None:
        self._own, self._copy = module, copy.deepcopy(module).to(device)
        self._device, self._dtype = device, dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, lr: Tensor, trace: Trace, **given: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        """What the copy computes, and its *trace*, as the CPU would have it."""
        moved = {name: None if tensor is None else tensor.to(self._device) for name, tensor in given.items()}
        with autocast(self._device, self._dtype):
            made = self._copy(lr.to(self._device), trace=trace, **moved)
        for rows in (trace.categories, trace.gaps, trace.tokens):
            rows[:] = map(_home, rows)
        return tuple(map(_home, made)) if isinstance(made, tuple) else _home(made)


def _home(tensor: Tensor) -> Tensor:
    """*tensor* on the CPU, where NumPy takes float32."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu()


def autocast(device: str, dtype: torch.dtype) -> torch.autocast:
    """Computing in *dtype* what PyTorch computes in it; nothing for float32."""
    return torch.autocast(device, dtype=dtype, enabled=dtype is not torch.float32)


def _agreement(reference: Column, other: Column, inputs: Sequence[ParityInput]) -> dict[str, Any]:
    """The lowest PSNR of the pictures in dB, and the lowest share of equal categories among the tokens that are routed,
    with the inputs' names.
    """
    decibels, shares = {}, {}
    for item in inputs:
        first, second = reference.samples[item.name], other.samples[item.name]
        decibels[item.name] = measure(first.sr, second.sr).psnr
        if first.categories is not None and second.categories is not None:
            impure = slice(None) if first.pure is None else ~first.pure
            same = (first.categories == second.categories)[:, impure]
            shares[item.name] = float(same.mean()) if same.size else 1.0
    worst, least = min(decibels, key=decibels.__getitem__), min(shares, key=shares.__getitem__, default="")
    found: dict[str, Any] = {"psnr": decibels[worst], "psnr_of": worst, "identical": decibels[worst] == np.inf}
    return {**found, "same_categories": shares.get(least), "same_categories_of": least}


def _milliseconds(run: Callable[[], object], runs: int) -> float:
    """Median time of *run* until the GPU is through."""

    def finish() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    spent = []
    for _ in range(WARM_UP + runs):
        finish()
        begin = time.perf_counter()
        run()
        finish()
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent[WARM_UP:]) * 1e3


def _recorded(run: Callable[[], object]) -> Callable[[], None]:
    """*run* as a CUDA graph, without the time that the CPU takes to launch its kernels."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def time_capacities(network: Network, size: tuple[int, int], device: str, runs: int) -> list[dict[str, Any]]:
    """Milliseconds of the network and of twins with parts of full capacity, for a photograph of *size*.

    On a GPU a twin is also timed as a CUDA graph, which only what has fixed shapes can be.
    """
    lr = torch.from_numpy(parity_inputs(size, network.scale)[0].lr).to(device)
    layout = network.layout
    tokens, rows = layout.tokens(size), []
    for dtype in DTYPES[:2]:

        def timed(module: nn.Module, dtype: torch.dtype = dtype, fixed: bool = True) -> dict[str, Any]:
            moved = copy.deepcopy(module).to(device)

            def run() -> None:
                with torch.no_grad(), autocast(device, dtype):
                    moved(lr)

            found: dict[str, Any] = {"ms": _milliseconds(run, runs)}
            if fixed and device == "cuda":
                try:
                    found["recorded_ms"] = _milliseconds(_recorded(run), runs)
                except RuntimeError as error:
                    found["not_recorded"] = first_line(error)
            return found

        rows.append({"dtype": str(dtype), "what": "network", **timed(network, fixed=False)})
        for share in SHARES:
            capacity = max(layout.group, tokens // share // layout.group * layout.group)
            twin = make_twin(network, size, capacity)
            rows.append({"dtype": str(dtype), "what": "twin", "capacity": capacity, "of": tokens, **timed(twin)})
    return rows


def compare_on(
    device: str,
    network: Network | None = None,
    size: tuple[int, int] = SIZE,
    timed_size: tuple[int, int] = TIMED_SIZE,
    runs: int = 20,
) -> dict[str, Any]:
    """Compare network and twin on *device*, with each other and with themselves on the CPU, and time capacities.

    Args:
        device: of PyTorch, "cuda".
        network: on the CPU; `MODEL` if left out.
        size, timed_size: (h, w) of the LR images.
        runs: of everything that is timed.

    Returns:
        What was measured; "passed" says whether network and twin meet parity's gate in float32 on the device.

    Raises:
        UnavailableError: PyTorch has no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("PyTorch finds no GPU that it can use")
    # TF32 would be a precision of its own; convolutions have it on.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network = network or load_network(MODEL)
    twin, inputs = make_twin(network, size), parity_inputs(size, network.scale)
    capacities = [network.layout.tokens(size)]

    def columns(device: str, dtype: torch.dtype) -> tuple[Column, Column]:
        made = (
            NetworkColumn(cast(Network, Elsewhere(network, device, dtype))),
            TwinColumn(cast(StaticTwin, Elsewhere(twin, device, dtype)), capacities),
        )
        for column in made:
            compute(column, inputs, lambda *_: None)
        return made

    here = columns("cpu", torch.float32)
    passed, rows, text = True, [], ""
    for dtype in DTYPES:
        there = columns(device, dtype)
        row: dict[str, Any] = {
            "dtype": str(dtype),
            "network_and_twin": _agreement(*there, inputs),
            "network_and_cpu": _agreement(here[0], there[0], inputs),
            "twin_and_cpu": _agreement(here[1], there[1], inputs),
        }
        if dtype is torch.float32:
            pair = compare_columns(*there, inputs, TWIN_GATE)
            passed = row["passed"] = pair.passed
            row["reasons"] = {item.name: item.reason for item in pair.rows if not item.passed}
            worst = row["network_and_twin"]
            text = f"{TWIN_GATE.psnr:g} dB are asked of float32, {worst['psnr']:.1f} dB at worst ({worst['psnr_of']})"
        rows.append(row)
    times = time_capacities(network, timed_size, device, runs)
    for dtype in dict.fromkeys(row["dtype"] for row in times):
        twins = [row for row in times if row["dtype"] == dtype and row["what"] == "twin"]
        name = "recorded_ms" if all("recorded_ms" in row for row in twins) else "ms"
        text += (
            f"; {twins[0]['capacity']} of {twins[0]['of']} slots take {twins[0][name] / twins[-1][name]:.2f} of the "
        )
        text += f"time of all in {dtype}"
    about = {"model": MODEL, "device": device, "torch": torch.__version__, "size": size, "timed_size": timed_size}
    found = {**about, "passed": passed, "text": text, "rows": rows, "times": times}
    return cast("dict[str, Any]", finite(found))
