"""What content costs: latency against what Pure-Pass finds, and real time on a sequence of frames.

`routing.json`, version 1:

    format, version, created, subject, machine
    images       [{name, pure_share, impure, capacity, ms: [one per round]}]
    capacities   [{capacity, ms: [one per round]}], all on one image that every capacity holds; empty without a set
    line         least squares over the images' medians, ms = at_zero_ms + slope_ms * pure share; saving is what a
                 wholly pure image would save of it, as a share; each {low, middle, high} by bootstrap over images

`frames.json`, version 1:

    format, version, created, subject, machine
    folder, frames      name of the folder, and how many pictures it holds
    lr_size, sr_size    [height, width] before and after
    tiles               runs of the artifact for one frame
    inside_the_clock    what a frame's time holds
    ns, pure_share      of every frame that was timed, in their order; the sequence is repeated until there are enough
    fps                 frames by the seconds they took
    p50_ms, p90_ms, p99_ms
    deadlines           {"24", "30", "60": {"hit_rate": share of frames ready in time, "p90_holds": bool}}
    sentence            the answer for people
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ppexport.device.artifact import read_artifact
from ppexport.device.job import CROPS, Job
from ppexport.device.launch import ask
from ppexport.device.machine import Clock
from ppexport.device.picture import to_input
from ppexport.device.runner import Prepared, Result
from ppexport.device.target import open_target
from ppexport.errors import InputError, counted
from ppexport.imaging.images import pictures_in, read_levels
from ppexport.imaging.upscaling import upscale_array
from ppexport.profile.latency_run import crops_of, save_crops, share_of
from ppexport.profile.result import Profile, follow_up
from ppexport.profile.statistics import PERCENTILES, RESAMPLES, interval_of, percentile

ROUNDS = {"quick": 8, "full": 24, "sustained": 24}
PLACES = 5
"""Crops of every photograph."""
STEPS = 8
"""Capacities of a set that are measured, the largest among them."""
FRAMES = {"quick": 64, "full": 256, "sustained": 256}
"""Frames that are timed, at least."""
SECONDS = {"quick": 60.0, "full": 600.0, "sustained": 600.0}
"""After this time the sequence is not begun again."""
WARM = 2
RATES = (24, 30, 60)
INSIDE = (
    "one frame from 8-bit pixels to 8-bit pixels in host memory: tiling, conversion, mask, runs, blending; tiles are "
    "prepared and blended while others run. Not inside: decoding and display"
)


def profile_routing(job: Job, result: Profile, folder: Path | None) -> list[dict[str, Any]]:
    """Write time against pure share and capacity of every target, on many crops of the pictures in *folder*.

    Returns what is in the files. Raises PpexportError.
    """

    def measure(only: Job, subject: dict[str, Any]) -> dict[str, Any]:
        artifact = only.targets[0].artifact
        manifest = read_artifact(Path(artifact)).manifest
        if not manifest.options:
            raise InputError(f"{artifact} has no Pure-Pass, so its time follows no mask: leave --routing out")
        crops, place = crops_of(manifest, folder, PLACES), job.journal.parent / CROPS
        place.unlink(missing_ok=True)
        save_crops(place, crops)
        try:
            found = ask("ppexport.profile.content:measure_routing", replace(only, images=place))
        finally:
            place.unlink(missing_ok=True)
        shares = [{"name": c.name, "pure_share": c.pure_share} for c in crops]
        images = [{**share, **times} for share, times in zip(shares, found["images"], strict=True)]
        return {"images": images, "capacities": found["capacities"], "line": line(images)}

    return follow_up("routing", job, result, measure)


def profile_frames(job: Job, result: Profile, folder: Path) -> list[dict[str, Any]]:
    """Write real time of every target on the frames in *folder*. Returns what is in the files. Raises PpexportError."""

    def measure(only: Job, subject: dict[str, Any]) -> dict[str, Any]:
        asked = replace(only, images=folder.resolve())
        return answers(ask("ppexport.profile.content:measure_frames", asked))

    return follow_up("frames", job, result, measure)


def spread(values: list[int], count: int) -> list[int]:
    """At most *count* of the ascending *values*, at even distances, the last among them."""
    return [values[i] for i in np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]


def measure_routing(job: Job) -> dict[str, Any]:
    """Times of all images of *job* and of capacities, in rounds, so that all see the same machine.

    This is for the measuring process. Every query follows one of its own kind that is not timed. Raises PpexportError
    as the runner does.
    """
    runner, clock = open_target(job.targets[0]), Clock()
    inputs = [to_input(rgb) for rgb in np.load(job.images, allow_pickle=False)]
    rng = np.random.default_rng(0)
    found: list[dict[str, Any]] = [{"ms": []} for _ in inputs]
    known = runner.artifact.manifest.capacities
    slots: list[dict[str, Any]] = [{"capacity": c, "ms": []} for c in (spread(known, STEPS) if len(known) > 1 else ())]
    pure = np.ones(runner.artifact.manifest.layout.padded(runner.size), np.bool_)
    flat = np.full((1, 3, *runner.size), 0.5, np.float32) * np.array([0.3, 0.7, 1.5], np.float32).reshape(1, 3, 1, 1)

    def timed(run: Callable[[], Result], ms: list[float]) -> Result:
        run()
        begin = clock.now()
        result = run()
        ms.append((clock.now() - begin) / 1e6)
        return result

    for _ in range(ROUNDS[job.plan.name]):
        for i in rng.permutation(len(inputs)):
            result = timed(partial(runner, inputs[i]), found[i]["ms"])
            found[i] |= {"impure": result.impure_tokens, "capacity": result.capacity}
        for i in rng.permutation(len(slots)):
            timed(partial(runner.run, Prepared(flat, pure, slots[i]["capacity"])), slots[i]["ms"])
    return {"images": found, "capacities": slots}


def line(images: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The line through the medians of *images*; None where their pure shares hardly differ."""
    shares = np.array([image["pure_share"] for image in images], np.float64)
    ms = np.array([np.median(image["ms"]) for image in images], np.float64)
    if len(images) < 4 or np.ptp(shares) < 0.1:
        return None

    def fit(chosen: Any) -> tuple[float, float, float]:
        slope, zero = np.polyfit(shares[chosen], ms[chosen], 1)
        return float(zero), float(slope), float(-slope / zero)

    rng = np.random.default_rng(0)
    found: list[tuple[float, float, float]] = []
    while len(found) < RESAMPLES:
        chosen = rng.integers(0, len(images), len(images))
        # A resample of one share only has no slope.
        if np.ptp(shares[chosen]) > 0.05:
            found.append(fit(chosen))
    columns = zip(("at_zero_ms", "slope_ms", "saving"), fit(slice(None)), np.array(found).T, strict=True)
    return {name: vars(interval_of(middle, resamples)) for name, middle, resamples in columns}


def measure_frames(job: Job) -> dict[str, Any]:
    """Upscale the frames in the folder `job.images`, by name, for the measuring process.

    Raises PpexportError, among them for frames of different sizes.
    """
    files = pictures_in(job.images)
    runner, clock = open_target(job.targets[0]), Clock()
    first = read_levels(files[0])
    for _ in range(WARM):
        upscale_array(runner, first)
    ns: list[int] = []
    shares: list[float | None] = []
    begin, tiles = clock.now(), 0
    while len(ns) < FRAMES[job.plan.name] and (clock.now() - begin) / 1e9 <= SECONDS[job.plan.name]:
        for path in files:
            rgb = read_levels(path)
            if rgb.shape != first.shape:
                raise InputError(
                    f"{path} is {rgb.shape[1]} pixels wide and {rgb.shape[0]} high, {files[0].name} has another size"
                )
            shares.append(share_of(runner.artifact.manifest, rgb))
            start = clock.now()
            report = upscale_array(runner, rgb).report
            ns.append(clock.now() - start)
            tiles = len(report.tiles)
    (h, w), s = first.shape[:2], runner.scale
    return {
        "folder": job.images.name, "frames": len(files), "lr_size": [h, w], "sr_size": [h * s, w * s], "scale": s,
        "tiles": tiles, "inside_the_clock": INSIDE, "ns": ns, "pure_share": shares,
    }  # fmt: skip


def answers(measured: dict[str, Any]) -> dict[str, Any]:
    """*measured*, as `measure_frames` returns it, with what its times mean."""
    ms = np.asarray(measured["ns"], np.float64) / 1e6
    figures = {f"{name}_ms": percentile(ms, percent) for name, percent in PERCENTILES.items()}
    deadlines = {
        str(rate): {"hit_rate": float((ms <= 1000 / rate).mean()), "p90_holds": figures["p90_ms"] <= 1000 / rate}
        for rate in RATES
    }
    fps = float(1000 * len(ms) / ms.sum())
    known = [share for share in measured["pure_share"] if share is not None]
    (h, w), (height, width) = measured["lr_size"], measured["sr_size"]
    mix = f" ({100 * float(np.mean(known)):.0f} % pure pixels on average)" if known else ""
    held = [rate for rate in RATES if deadlines[str(rate)]["p90_holds"]]
    real = f"real time at {max(held)} fps" if held else f"no real time at {RATES[0]} fps"
    sentence = (
        f"{fps:.2f} fps at {w}x{h} -> {width}x{height} at x{measured['scale']} (width x height) with this "
        f"content{mix}, {counted(measured['tiles'], 'tile')} a frame; p90 {figures['p90_ms']:.1f} ms: {real}"
    )
    return {**measured, "fps": fps, **figures, "deadlines": deadlines, "sentence": sentence}
