"""CAMixerSR's windows chosen by its weights, by Pure-Pass and at random, as many of each picture by every rule.

`python tools/compare_routers.py CAMixerSR_S.pth Set5=HR_DIR:LR_DIR --share 1 --share 0.5` prints a table for every
share of pure pixels that makes a window easy, which tells how many windows attend. Times are those of the PyTorch
networks, which compute attention for these alone: the medians of turns that the rules take.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ablation import DataSet, parse_data_set
from torch import Tensor

from ppexport.cli.console import check_json, emit_json, fail, people, percent, progress_bar, table
from ppexport.device.picture import to_input, to_uint8
from ppexport.errors import InputError, PpexportError
from ppexport.networks.camixer.camixersr import CAMixerSR, Mixer, PPCAMixerSR
from ppexport.networks.load import load_network
from ppexport.networks.network import pad
from ppexport.networks.pure_pass import easy_windows
from ppexport.parity.evaluation import quality, read_pair

SEED = 0
"""Of the windows chosen at random, which are the same in every run."""


@dataclass
class Row:
    """One rule on one data set: means over the pictures, and the hard windows of all of them."""

    rule: str
    psnr_y: float
    hard: float
    """Share of hard windows, in [0, 1]."""
    giga: float
    """10^9 multiply-adds of a picture, norms included."""
    milliseconds: float


class Rules:
    """The same weights under every rule."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises PpexportError for a file that is not of CAMixerSR."""
        chosen, masked = (
            load_network(arch="camixersr", checkpoint=checkpoint),
            load_network(arch="pp_camixersr", checkpoint=checkpoint),
        )
        assert isinstance(chosen, CAMixerSR)
        assert isinstance(masked, PPCAMixerSR)
        self.chosen, self.masked, self.scale = chosen, masked, chosen.scale

    def by_weights(self, lr: Tensor, count: int, windows: int) -> Tensor:
        """*count* of the *windows* of *lr* (1, 3, h, w), as every block's predictor ranks them."""
        for module in self.chosen.modules():
            if isinstance(module, Mixer):
                # Half a window more, since the number is rounded down.
                module.ratio = min(1.0, (count + 0.5) / windows)
        sr: Tensor = self.chosen(lr)
        return sr

    def by_windows(self, lr: Tensor, easy: Tensor) -> Tensor:
        """All but the *easy* windows (rows, columns) bool."""
        window = self.masked.config.window
        mask = easy.repeat_interleave(window, 0).repeat_interleave(window, 1)
        sr: Tensor = self.masked(lr, mask=mask[None])
        return sr

    def giga(self, size: tuple[int, int], count: int, rule: str) -> float:
        """10^9 multiply-adds of a picture of *size* with *count* hard windows."""
        network = self.chosen if rule == "weights" else self.masked
        colors = self.masked.options.colors if rule == "Pure-Pass" else 0
        macs = network.architecture.cost(self.scale, size, count * self.masked.layout.group, colors)
        return macs.published / 1e9


def measure(rules: Rules, data: DataSet, share: float, turns: int, progress: Callable[[int, int], None]) -> list[Row]:
    """A row for every rule, and one with every window hard."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    rng = np.random.default_rng(SEED)
    for done, pair in enumerate(data.pairs):
        progress(done, len(data.pairs))
        hr, rgb = read_pair(pair, rules.scale)
        lr = torch.from_numpy(to_input(rgb))
        pure = rules.masked.mask_of(pad(lr, rules.masked.layout), None)
        easy = easy_windows(pure, rules.masked.config.window, share=share)[0]
        windows, count = easy.numel(), int((~easy).sum())
        mixed = torch.ones(windows, dtype=torch.bool)
        mixed[torch.from_numpy(rng.permutation(windows)[:count])] = False
        ways: dict[str, tuple[Callable[[], Tensor], int]] = {
            # The weights always choose one window at least.
            "weights": (lambda: rules.by_weights(lr, max(count, 1), windows), max(count, 1)),  # noqa: B023
            "Pure-Pass": (lambda: rules.by_windows(lr, easy), count),  # noqa: B023
            "at random": (lambda: rules.by_windows(lr, mixed.view(easy.shape)), count),  # noqa: B023
            "every window": (lambda: rules.by_windows(lr, torch.zeros_like(easy)), windows),  # noqa: B023
        }
        times: dict[str, list[float]] = {rule: [] for rule in ways}
        pictures = {}
        # The first turn warms up.
        for turn in range(turns + 1):
            for rule, (run, _) in ways.items():
                begin = time.perf_counter()
                with torch.no_grad():
                    pictures[rule] = run()
                if turn:
                    times[rule].append(time.perf_counter() - begin)
        for rule, (_, hard) in ways.items():
            psnr = quality(to_uint8(pictures[rule].numpy()), hr, rules.scale)[0]
            cost = rules.giga((lr.shape[2], lr.shape[3]), hard, rule)
            found.setdefault(rule, []).append((psnr, hard / windows, cost, 1e3 * float(np.median(times[rule]))))
    progress(len(data.pairs), len(data.pairs))
    return [Row(rule, *np.mean(figures, axis=0).tolist()) for rule, figures in found.items()]


def main(
    checkpoint: Annotated[Path, typer.Argument(help="weights of CAMixerSR")],
    data: Annotated[list[str], typer.Argument(help="data sets: NAME=HR_DIR or NAME=HR_DIR:LR_DIR")],
    share: Annotated[
        list[float] | None, typer.Option(help="share of pure pixels that makes a window easy; may be repeated")
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="timed runs of every rule on every picture")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="threads of PyTorch")] = 1,
    json: Annotated[str | None, typer.Option("--json", callback=check_json, help="write the result as JSON")] = None,
) -> None:
    """Compare what chooses the windows of CAMixerSR that attend, at equal numbers of them in every picture."""
    try:
        shares = share or [1.0]
        if not all(0 < s <= 1 for s in shares):
            raise InputError(f"a share of pure pixels is above 0 and at most 1, not {shares}")
        torch.set_num_threads(threads)
        rules, results = Rules(checkpoint), list[dict[str, Any]]()
        for one in [parse_data_set(text, rules.scale) for text in data]:
            for s in shares:
                with progress_bar(f"{one.name}, share {s:g}") as progress:
                    rows = measure(rules, one, s, turns, progress)
                results.append({"data": one.name, "share": s, "rows": [vars(row) for row in rows]})
                cells = [
                    [r.rule, percent(r.hard), f"{r.psnr_y:.3f}", f"{r.giga:.3f}", f"{r.milliseconds:.0f}"] for r in rows
                ]
                columns = ["windows chosen by", "hard", "PSNR-Y dB", "G", "ms"]
                people(json).print(table(f"{one.name}: easy from {s:g} pure", columns, cells))
        emit_json(json, {"checkpoint": checkpoint.name, "turns": turns, "threads": threads, "results": results})
    except PpexportError as error:
        fail(str(error))
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
