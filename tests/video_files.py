"""Video files for tests, made with PyAV, and a look at the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ppexport.imaging.video_colour import Colours, Converter

av = pytest.importorskip("av")

BARS = np.array(
    [[255, 255, 255], [255, 255, 0], [0, 255, 255], [0, 255, 0], [255, 0, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]],
    np.uint8,
)
BT601, BT709, BT2020 = Colours(6, 1, 6, 6, False), Colours(1, 1, 1, 1, False), Colours(9, 1, 9, 16, False)


def chart() -> NDArray[np.uint8]:
    """Colour bars of 16 pixels each above a grey ramp, (64, 128, 3)."""
    bars = np.repeat(np.repeat(BARS[None], 32, 0), 16, 1)
    ramp = np.repeat(2 * np.arange(128, dtype=np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    return np.concatenate([bars, ramp])


def moving(count: int, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    """Frames with a square that moves over a gradient."""
    y, x = np.mgrid[:height, :width]
    found = []
    for i in range(count):
        frame = np.stack([4 * y, 3 * x, np.full_like(x, 90)], axis=2).astype(np.uint8)
        left = (3 * i) % (width - 12)
        frame[10:20, left : left + 10] = (250, 240, 30)
        found.append(frame)
    return found


def make_video(
    path: Path,
    frames: Sequence[NDArray[Any]],
    *,
    codec: str = "libx264",
    format: str = "yuv420p",
    colours: Colours = BT601,
    tagged: bool = True,
    rate: int = 25,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    aspect: Fraction | None = None,
    rotation: int | None = None,
    sound: bool = False,
    options: dict[str, str] | None = None,
    attachment: bool = False,
) -> Path:
    """Encode *frames*, levels (H, W, 3), without loss where the codec can."""
    lossless = {"libx264": {"crf": "0"}, "libx265": {"x265-params": "lossless=1:log-level=none"}}
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = format
        stream.options = {**lossless.get(codec, {}), **(options or {})}
        if tagged:
            context = stream.codec_context
            context.colorspace, context.color_range = colours.matrix, colours.range
            context.color_primaries, context.color_trc = colours.primaries, colours.transfer
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        base = time_base or Fraction(1, rate)
        stream.codec_context.time_base = base
        audio: Any = out.add_stream("aac", rate=48000) if sound else None
        if attachment:
            out.add_attachment("font.ttf", "font/ttf", b"abcdef")
        converter = Converter(colours, format)
        for i, levels in enumerate(frames):
            frame = converter.to_frame(levels)
            if not tagged:
                frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = 2, 0, 2, 2
            frame.pts, frame.time_base = (i if pts is None else pts[i]), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio is not None:
            add_sound(out, audio, len(frames) * 48000 // rate)
    return path


def add_sound(out: Any, audio: Any, samples: int) -> None:
    """Add a tone of *samples* samples."""
    for start in range(0, samples, 1024):
        tone = 0.2 * np.sin(np.arange(start, start + 1024) / 20, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        out.mux(audio.encode(frame))
    out.mux(audio.encode(None))


@dataclass
class Seen:
    """What a file holds."""

    kinds: list[tuple[str, str | None]] = field(default_factory=list)
    rgb: list[NDArray[Any]] = field(default_factory=list)
    """The frames in levels from 0 to 255, whole or not."""
    times: list[Fraction] = field(default_factory=list)
    packets: dict[int, list[bytes]] = field(default_factory=dict)
    colours: tuple[int, ...] = ()
    aspect: Fraction | None = None
    rotation: int = 0
    codec: str = ""
    format: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    languages: list[str | None] = field(default_factory=list)
    chapters: list[Any] = field(default_factory=list)


def look(path: Path) -> Seen:
    """Everything in the file *path*; raises where it cannot be decoded."""
    seen = Seen()
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        seen.kinds = [(stream.type, getattr(stream, "name", None)) for stream in container.streams]
        seen.languages = [stream.language for stream in container.streams]
        seen.metadata, seen.chapters = dict(container.metadata), container.chapters()
        seen.codec, seen.format = video.codec_context.codec.canonical_name, video.codec_context.pix_fmt or ""
        seen.aspect = video.sample_aspect_ratio
        for packet in container.demux():
            if packet.stream.type in ("audio", "subtitle") and packet.size:
                seen.packets.setdefault(packet.stream.index, []).append(bytes(packet))
            if packet.stream is not video:
                continue
            for frame in packet.decode():
                assert frame.pts is not None
                seen.times.append(frame.pts * Fraction(video.time_base))
                tags = frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc
                seen.colours, seen.rotation = tuple(map(int, tags)), frame.rotation
                rgb = frame.format.is_rgb
                colours = Colours(0 if rgb else seen.colours[0], *seen.colours[1:], frame.format.name == "gray")
                levels = Converter(colours, "yuv420p").to_rgb(frame) if rgb or colours.matrix != 2 else np.empty(0)
                seen.rgb.append(levels.astype(float) if levels.dtype == np.uint8 else 255.0 * levels)
    return seen
