"""Real time: how many frames a second, and how often a frame is ready before the next one is due.

`frames.json`, version 1:

    format, version, created, subject, machine
    folder, frames      name of the folder, and how many pictures it holds
    lr_size, sr_size    [height, width] before and after
    tiles               runs of the artefact for one frame
    inside_the_clock    what a frame's time holds
    ns, pure_share      of every frame that was timed, in their order; the sequence is repeated until there are enough
    fps                 frames by the seconds they took
    p50_ms, p90_ms, p99_ms
    deadlines           {"24", "30", "60": {"hit_rate": share of frames ready in time, "p90_holds": bool}}
    sentence            the answer for people
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ppexport.device.job import Job
from ppexport.device.machine import Clock
from ppexport.device.measure import Plan
from ppexport.device.target import Target, open_target
from ppexport.errors import InputError, counted
from ppexport.imaging.images import pictures_in
from ppexport.imaging.upscaling import upscale_array
from ppexport.profile.pictures import read_rgb, share_of
from ppexport.profile.statistics import percentile

FORMAT = "ppexport-frames"
VERSION = 1
LEAST = {"quick": 64, "full": 256, "sustained": 256}
"""Frames that are timed, at least."""
SECONDS = {"quick": 60.0, "full": 600.0, "sustained": 600.0}
"""After so long the sequence is not begun again."""
WARM = 2
RATES = (24, 30, 60)
INSIDE = (
    "one frame from 8-bit pixels to 8-bit pixels in host memory: tiling, conversion, mask, runs, blending; tiles are "
    "prepared and blended while others run. Not inside: decoding and display"
)


def measure_frames(target: Target, folder: Path, plan: Plan) -> dict[str, Any]:
    """Upscale the frames in *folder*, by name. Raises PpexportError, among them for frames of different sizes."""
    files = pictures_in(folder)
    runner, clock = open_target(target), Clock()
    first = read_rgb(files[0])
    for _ in range(WARM):
        upscale_array(runner, first)
    ns: list[int] = []
    shares: list[float | None] = []
    begin = clock.now()
    tiles = 0
    while True:
        for path in files:
            rgb = read_rgb(path)
            if rgb.shape != first.shape:
                raise InputError(
                    f"{path} is {rgb.shape[1]} pixels wide and {rgb.shape[0]} high, {files[0].name} has another size"
                )
            shares.append(share_of(runner.artifact.manifest, rgb))
            start = clock.now()
            report = upscale_array(runner, rgb).report
            ns.append(clock.now() - start)
            tiles = len(report.tiles)
        if len(ns) >= LEAST[plan.name] or (clock.now() - begin) / 1e9 > SECONDS[plan.name]:
            break
    h, w = first.shape[:2]
    s = runner.scale
    return {
        "folder": folder.name,
        "frames": len(files),
        "lr_size": [h, w],
        "sr_size": [h * s, w * s],
        "scale": s,
        "tiles": tiles,
        "inside_the_clock": INSIDE,
        "ns": ns,
        "pure_share": shares,
    }


def answers(measured: dict[str, Any]) -> dict[str, Any]:
    """What the times of *measured* mean."""
    ms = np.asarray(measured["ns"], np.float64) / 1e6
    deadlines = {}
    for rate in RATES:
        hit = float((ms <= 1000 / rate).mean())
        deadlines[str(rate)] = {"hit_rate": hit, "p90_holds": percentile(ms, 90) <= 1000 / rate}
    fps = float(1000 * len(ms) / ms.sum())
    known = [share for share in measured["pure_share"] if share is not None]
    (h, w), (height, width) = measured["lr_size"], measured["sr_size"]
    mix = f" ({100 * float(np.mean(known)):.0f} % pure pixels on average)" if known else ""
    held = [rate for rate in RATES if deadlines[str(rate)]["p90_holds"]]
    real = f"real time at {max(held)} fps" if held else f"no real time at {RATES[0]} fps"
    sentence = (
        f"{fps:.2f} fps at {w}x{h} -> {width}x{height} at x{measured['scale']} (width x height) with this "
        f"content{mix}, {counted(measured['tiles'], 'tile')} a frame; p90 {percentile(ms, 90):.1f} ms: {real}"
    )
    figures = {f"p{p}_ms": percentile(ms, p) for p in (50, 90, 99)}
    return {**measured, "fps": fps, **figures, "deadlines": deadlines, "sentence": sentence}


def print_frames(job: Job) -> None:
    """Print the times of a sequence of frames, whose folder `images` is, as JSON, for the measuring process."""
    print(json.dumps(measure_frames(job.targets[0], job.images, job.plan)))
