"""Networks and artifacts beside each other: quality, time, size and multiply-adds on the same pictures, in one process.

Every picture is read once and goes through all of them, one after the other; with every picture another one begins, so
that what slows the machine down for a while slows all of them. Before, each upscales a part of the first one, which is
not measured. The clock runs from LR pixels to SR pixels, both of 8 bits: of a network that is a whole picture in
PyTorch, of an artifact all of its tiles in the runtime, with cutting and blending them.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ppexport.backends.backend import find_backend
from ppexport.device.machine import cpu_name, versions
from ppexport.device.runner import Runner
from ppexport.errors import InputError, counted
from ppexport.imaging.bicubic import enlarge_bicubic
from ppexport.imaging.upscaling import TileRun, upscale_array
from ppexport.networks.architecture import Macs, find_architecture
from ppexport.networks.card import Card
from ppexport.networks.cost import cost, labels_and_mask, options_of
from ppexport.parity.evaluation import Evaluation, Pair, Pixels, Score, network_upscaler, quality, read_pair

CLOCK = "from LR pixels to SR pixels, in one process and in turns picture by picture, after a warm-up; median"
PACKAGES = ("torch", "onnxruntime", "numpy")
"""Whose versions are kept beside the figures."""
WARM_UP = 128
"""Pixels of a side, at most, of the part of the first picture that everything upscales before it is timed."""
Tiles = tuple[TileRun, ...]


class Contender(ABC):
    """A network or an artifact that takes part."""

    label: str
    """A short name for tables and plots."""
    scale: int
    bytes: int
    """Of the weights file, or of the artifact's model."""
    runs_in: str
    """What computes, for people: what its times are times of."""
    facts: dict[str, Any]
    """What it is, for JSON."""

    @abstractmethod
    def upscale(self, lr: Pixels) -> tuple[Pixels, Tiles]:
        """LR uint8 (h, w, 3) -> SR uint8 (h * scale, w * scale, 3), and the tiles that an artifact ran."""

    @abstractmethod
    def count(self, lr: Pixels, tiles: Tiles) -> tuple[Macs | None, float | None]:
        """The multiply-adds that this took, with the picture's own mask or the slots of every tile, None where they are
        not known; and the share of pure pixels of the whole picture, None without Pure-Pass.
        """


class NetworkContender(Contender):
    """A network in PyTorch, on whole pictures."""

    def __init__(self, label: str, card: Card, weights: Path, threads: int | None = None) -> None:
        """Load the network of *card* with the file *weights*; *threads* are those of all of this process.

        Raises CheckpointError.
        """
        import torch

        from ppexport.networks.load import load_card

        self.label, self.network = label, load_card(card, weights)
        self.scale, self.bytes = card.scale, weights.stat().st_size
        self._run = network_upscaler(self.network, threads)
        self.runs_in = f"PyTorch on the CPU, whole pictures, {counted(torch.get_num_threads(), 'thread')}"
        self.facts = {
            "model": card.name, "arch": card.arch, "options": options_of(self.network), "backend": None,
            "precision": "fp32",
        }  # fmt: skip

    def upscale(self, lr: Pixels) -> tuple[Pixels, Tiles]:
        """One run of the network."""
        return self._run(lr), ()

    def count(self, lr: Pixels, tiles: Tiles) -> tuple[Macs | None, float | None]:
        """With the picture's own mask."""
        found = labels_and_mask(self.network, lr)
        result = cost(self.network, (lr.shape[0], lr.shape[1]), None if found is None else found[1])
        return result.actual, None if found is None else result.pure_share


class ArtifactContender(Contender):
    """An opened artifact in its usual runtime, in tiles of its size."""

    def __init__(self, label: str, runner: Runner) -> None:
        artifact, m = runner.artifact, runner.artifact.manifest
        model = artifact.model_file
        files = [model] if model.is_file() else [path for path in model.rglob("*") if path.is_file()]
        self.label, self.runner, self.scale = label, runner, runner.scale
        self.bytes = sum(path.stat().st_size for path in files)
        self.runs_in = f"{find_backend(m.backend).usual}, tiles of {m.size[0]}x{m.size[1]}"
        self.facts = {
            "model": m.name, "arch": m.arch, "options": m.options, "backend": m.backend, "precision": m.precision,
            "flavour": m.flavour, "size": m.size, "capacities": len(m.capacities),
        }  # fmt: skip

    def upscale(self, lr: Pixels) -> tuple[Pixels, Tiles]:
        """All tiles of the picture."""
        done = upscale_array(self.runner, lr)
        return done.rgb, done.report.tiles

    def count(self, lr: Pixels, tiles: Tiles) -> tuple[Macs | None, float | None]:
        """Of all tiles, which overlap, with the slots that each had: at full capacity pure pixels save nothing.

        Not known for a network whose sizes its weights tell, which the manifest does not repeat.
        """
        m, architecture, size = self.runner.artifact.manifest, find_architecture(self.facts["arch"]), self.runner.size
        share = None
        if m.mask != "none":
            # A picture may be too small to be padded as its network pads, while a tile of it is not.
            with suppress(InputError):
                share = float(m.pure(lr).mean())
        if architecture.any_size:
            return None, share
        colors = 0 if m.mask == "none" else m.options["colors"]
        fixed = architecture.fixed_tokens(size, m.options)
        branches: dict[str, int] = {}
        for tile in tiles:
            slots = tile.capacity if m.capacities else None
            one = architecture.cost(m.scale, size, slots if fixed is None else fixed, colors)
            for name, count in one.branches.items():
                branches[name] = branches.get(name, 0) + count
        return Macs(branches), share


@dataclass
class Measured:
    """What one contender did, picture by picture."""

    contender: Contender
    scores: list[Score] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    macs: list[Macs | None] = field(default_factory=list)
    pure_shares: list[float | None] = field(default_factory=list)

    @property
    def mean(self) -> Score:
        """Means of PSNR-Y and SSIM-Y."""
        return Evaluation(self.contender.scale, tuple(self.scores)).mean

    @property
    def median_seconds(self) -> float:
        """Of a picture, median over the pictures."""
        return float(np.median(self.seconds))

    @property
    def mean_macs(self) -> float | None:
        """Multiply-adds of a picture in the published counting, mean over the pictures; None where not known."""
        return _mean([None if macs is None else macs.published for macs in self.macs])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = zip(self.scores, self.seconds, self.macs, self.pure_shares, strict=True)
        return {
            "subject": self.contender.label,
            **self.contender.facts,
            "bytes": self.contender.bytes,
            "runs_in": self.contender.runs_in,
            "psnr_y": self.mean.psnr_y,
            "ssim_y": self.mean.ssim_y,
            "seconds": self.median_seconds,
            "macs_published": self.mean_macs,
            "macs_pure": _mean([None if macs is None else macs.pure for macs in self.macs]),
            "pure_share": _mean(self.pure_shares),
            "images": [
                {
                    "name": score.name, "psnr_y": score.psnr_y, "ssim_y": score.ssim_y, "seconds": seconds,
                    "macs_published": None if macs is None else macs.published,
                    "macs_pure": None if macs is None else macs.pure, "pure_share": share,
                }
                for score, seconds, macs, share in rows
            ],
        }  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


@dataclass(frozen=True)
class Contest:
    """All that was measured."""

    scale: int
    source: str
    """The folder of the HR pictures."""
    measured: tuple[Measured, ...]
    machine: dict[str, Any]

    @property
    def pictures(self) -> int:
        """How many there were."""
        return len(self.measured[0].scores)

    @property
    def bicubic(self) -> tuple[float, float]:
        """PSNR-Y and SSIM-Y of bicubic enlargement, means over the pictures."""
        mean = self.measured[0].mean
        return mean.bicubic_psnr_y, mean.bicubic_ssim_y

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        psnr, ssim = self.bicubic
        return {
            "scale": self.scale, "hr": self.source, "pictures": self.pictures, "clock": CLOCK, "machine": self.machine,
            "bicubic": {"psnr_y": psnr, "ssim_y": ssim}, "subjects": [one.to_dict() for one in self.measured],
        }  # fmt: skip


def threads_of(contest: Contest) -> str:
    """How many threads computed, for people."""
    threads = contest.machine["threads"]
    return "with the threads that each chooses" if threads is None else f"with {counted(threads, 'thread')}"


def common_scale(scales: dict[str, int]) -> int:
    """The one scale of {label: scale}. Raises InputError where there are several."""
    if len(set(scales.values())) > 1:
        named = ", ".join(f"{label} x{scale}" for label, scale in scales.items())
        raise InputError(f"subjects that are compared have one scale, but these have several: {named}")
    return next(iter(scales.values()))


def run_contest(
    contenders: Sequence[Contender],
    pairs: Sequence[Pair],
    source: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int | None = None,
) -> Contest:
    """Measure *contenders*, which have one scale, on *pairs*.

    Args:
        contenders: networks and artifacts, opened by the caller.
        pairs: the pictures.
        source: for people, where these lie.
        progress: called with (runs done, runs in all).
        threads: how many the contenders were opened with; None where they choose.

    Raises:
        InputError: as `read_pair`, or a network returns NaN.
        ArtifactError: as `upscale_array`.
    """
    scale = common_scale({contender.label: contender.scale for contender in contenders})
    measured, done, total = [Measured(contender) for contender in contenders], 0, len(contenders) * len(pairs)
    progress(done, total)
    for i, pair in enumerate(pairs):
        hr, lr = read_pair(pair, scale)
        for contender in contenders if i == 0 else ():
            contender.upscale(np.ascontiguousarray(lr[:WARM_UP, :WARM_UP]))
        bicubic, first = quality(enlarge_bicubic(lr, scale), hr, scale), i % len(measured)
        for one in (*measured[first:], *measured[:first]):
            progress(done, total)
            start = time.perf_counter()
            sr, tiles = one.contender.upscale(lr)
            one.seconds.append(time.perf_counter() - start)
            one.scores.append(Score(pair.name, *quality(sr, hr, scale), *bicubic))
            macs, share = one.contender.count(lr, tiles)
            one.macs.append(macs)
            one.pure_shares.append(share)
            done += 1
    progress(done, total)
    machine = {"cpu": cpu_name("/"), "cores": os.cpu_count(), "threads": threads, "versions": versions(PACKAGES)}
    return Contest(scale, str(source), tuple(measured), machine)
