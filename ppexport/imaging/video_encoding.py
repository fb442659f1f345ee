"""Chooses codec, quality and pixel format of an enlarged video, and encodes frames into packets.

The codec is the source's own where there is an encoder for it, else H.264 (VP9 in WebM). The pixel format is the
nearest one that the encoder has: as many bits as the source, or the next more, or else the most that there are; chroma
as fine as the source's, or finer. Grey becomes 4:2:0 with neutral chroma, which every player shows. RGB of another
codec, such as that of a GIF, becomes 4:2:0 as well in every container but Matroska: phones and browsers show that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ppexport.errors import InputError, first_line
from ppexport.imaging.background import usual_priority
from ppexport.imaging.video import Video, load_av
from ppexport.imaging.video_colour import Converter, is_rgb, subsampling, written_colours

if TYPE_CHECKING:
    import numpy as np
    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext
    from numpy.typing import NDArray

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Suffix of a video that is written -> FFmpeg's muxer."""
GLOBAL_HEADER, QSCALE, LAMBDA = 1 << 22, 1 << 1, 118
WRITABLE = re.compile(r"(yuv4(20|22|44)p|gbrp)((9|10|12|14|16)le)?|bgr0|rgb24")
"""Pixel formats that `Converter` writes."""


class Encoder(NamedTuple):
    """What is known of an encoder of FFmpeg."""

    quality: tuple[int, int, int] | None
    """Best, worst and default value of --crf; None where it has none."""
    options: dict[str, str]
    lossless: bool = False
    qscale: bool = False
    """Whether the quality is a quantiser that is set beside the options."""


ENCODERS = {
    "libx264": Encoder((0, 51, 18), {"preset": "medium"}),
    "libx265": Encoder((0, 51, 20), {"preset": "medium", "x265-params": "log-level=none"}),
    "libsvtav1": Encoder((1, 63, 28), {"preset": "8", "svtav1-params": "color-format=1"}),
    "libvpx-vp9": Encoder((0, 63, 24), {"b": "0", "row-mt": "1", "cpu-used": "4", "deadline": "good"}),
    "ffv1": Encoder(None, {"level": "3", "slicecrc": "1"}, lossless=True),
    "prores_ks": Encoder(None, {}),
    "mpeg4": Encoder((1, 31, 2), {}, qscale=True),
}
ALIASES = {
    "h264": "libx264", "x264": "libx264", "hevc": "libx265", "h265": "libx265", "x265": "libx265", "av1": "libsvtav1",
    "vp9": "libvpx-vp9", "prores": "prores_ks",
}  # fmt: skip
"""Names of codecs that `--codec` takes as well; the encoder of a source's codec where it keeps its own."""
HELD = {
    "mp4": ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4"),
    "mov": ("libx264", "libx265", "prores_ks", "mpeg4"),
    "matroska": tuple(ENCODERS),
    "webm": ("libvpx-vp9", "libsvtav1"),
}
"""Muxer -> encoders whose packets it holds, the default first."""


@dataclass(frozen=True)
class VideoOptions:
    """What a user asks of the result."""

    codec: str | None = None
    crf: int | None = None
    """Quality, smaller is better; what the numbers mean depends on the codec."""


@dataclass(frozen=True)
class Encoding:
    """How the result is encoded."""

    encoder: str
    crf: int | None
    format: str
    """Pixel format."""
    size: tuple[int, int]
    """(H, W)."""
    rate: Fraction
    video: Video
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def depth(self) -> int:
        """Bits of the levels that frames are made of, 8 or 16."""
        from av.video.format import VideoFormat

        return 16 if max(component.bits for component in VideoFormat(self.format).components) > 8 else 8

    def converter(self) -> Converter:
        """A new converter of frames; for one thread."""
        return Converter(self.video.colours, self.format)

    def configure(self, context: VideoCodecContext) -> None:
        """Give a codec context that is not open yet all that it needs to know."""
        known, colours = ENCODERS[self.encoder], written_colours(self.video.colours, self.format)
        context.height, context.width = self.size
        context.pix_fmt, context.framerate, context.time_base = self.format, self.rate, 1 / self.rate
        context.colorspace, context.color_range = colours.matrix, colours.range
        context.color_primaries, context.color_trc = colours.primaries, colours.transfer
        if self.video.aspect is not None:
            context.sample_aspect_ratio = self.video.aspect
        # Headers in one place, so that packets of several encoders make one stream.
        context.flags |= GLOBAL_HEADER
        options = dict(known.options)
        if known.qscale:
            context.flags |= QSCALE
            context.global_quality = LAMBDA * (self.crf or 1)
        elif self.crf is not None:
            options["crf"] = str(self.crf)
        context.options = options

    def open(self) -> VideoCodecContext:
        """A new encoder. Raises InputError where it refuses the size or the format."""
        av = load_av()
        # SVT-AV1 writes its settings to standard error unless the environment asks for errors only.
        os.environ.setdefault("SVT_LOG", "1")
        context: VideoCodecContext = av.CodecContext.create(self.encoder, "w")
        self.configure(context)
        try:
            with usual_priority():
                context.open()
        except (OSError, ValueError) as error:
            (h, w), name = self.size, self.encoder
            raise InputError(
                f"{name} cannot be opened for {w}x{h} pixels in {self.format} ({first_line(error)}): name another "
                f"--codec, one of {', '.join(available())}"
            ) from None
        return context


def available() -> list[str]:
    """The encoders that this machine's PyAV has, of those that are known here."""
    av = load_av()
    found = []
    for name in ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError:
            continue
        found.append(name)
    return found


def choose_encoding(video: Video, target: Path, scale: int, options: VideoOptions) -> Encoding:
    """How *video* times *scale* is encoded into the file *target*.

    Raises InputError for a suffix, codec, quality or size that cannot be, before anything is run.
    """
    muxer = FORMATS.get(target.suffix.lower())
    if muxer is None:
        raise InputError(f"{target}: the extension of an enlarged video is one of {', '.join(FORMATS)}")
    encoder = _choose_encoder(video, target, muxer, options.codec)
    known = ENCODERS[encoder]
    crf = _check_crf(encoder, known, options.crf)
    height, width = (side * scale for side in video.size)
    plain = muxer != "matroska" and known.quality is not None and ALIASES.get(video.codec, video.codec) != encoder
    format, notes = _choose_format(video, encoder, (height, width), plain)
    found = Encoding(encoder, crf, format, (height, width), _plain_rate(video.rate), video, tuple(notes))
    # Once for nothing: what it refuses is known before anything is run.
    found.open()
    return found


def _plain_rate(rate: Fraction) -> Fraction:
    """*rate* in numbers that every encoder takes; it only steers the spending of bits."""
    return max(rate, Fraction(1, 1000)).limit_denominator(1001)


def _choose_encoder(video: Video, target: Path, muxer: str, asked: str | None) -> str:
    there = available()
    if asked is not None:
        encoder = ALIASES.get(asked, asked)
        if encoder not in there:
            raise InputError(f"--codec {asked} is not one that can be encoded here: {', '.join(there)}")
        if encoder not in HELD[muxer]:
            fitting = [name for name in HELD[muxer] if name in there]
            raise InputError(f"{target.suffix} holds no {asked} here, but {', '.join(fitting)}; .mkv holds every codec")
        return encoder
    own = ALIASES.get(video.codec, video.codec)
    fitting = [name for name in (own, *HELD[muxer]) if name in there and name in HELD[muxer]]
    if not fitting:
        raise InputError(f"this machine's PyAV has no encoder for {target.suffix}: {', '.join(there) or 'none at all'}")
    return fitting[0]


def _check_crf(encoder: str, known: Encoder, crf: int | None) -> int | None:
    if known.quality is None:
        if crf is not None:
            why = "it is lossless" if known.lossless else "its profile sets the quality"
            raise InputError(f"{encoder} takes no --crf: {why}")
        return None
    best, worst, default = known.quality
    if crf is not None and not best <= crf <= worst:
        raise InputError(f"--crf of {encoder} goes from {best} (best) to {worst}, not {crf}; {default} if left out")
    return default if crf is None else crf


def _choose_format(video: Video, encoder: str, size: tuple[int, int], plain: bool) -> tuple[str, list[str]]:
    """The nearest pixel format that *encoder* has, and sentences about what it changes; 4:2:0 for RGB where *plain*."""
    from av.video.format import VideoFormat

    av = load_av()
    source = VideoFormat(video.format)
    rgb = source.is_rgb or source.has_palette
    plain = plain and rgb
    chroma = (2, 2) if plain else (1, 1) if rgb else (2, 2) if video.colours.grey else subsampling(source)
    notes = []
    best: tuple[Any, str] | None = None
    for format in av.Codec(encoder, "w").video_formats or ():
        if not WRITABLE.fullmatch(format.name):
            continue
        bits, own = max(component.bits for component in format.components), subsampling(format)
        if is_rgb(format.name):
            own = (1, 1)
        if any(side % step for side, step in zip(size, own, strict=True)):
            continue
        coarser = any(mine > his for mine, his in zip(own, chroma, strict=True))
        extra = sum(his - mine for mine, his in zip(own, chroma, strict=True))
        # In this order: not losing bits, chroma, or a conversion; then no more of each than is needed.
        rank = (
            max(0, video.depth - bits),
            coarser,
            is_rgb(format.name) != (rgb and not plain),
            abs(bits - video.depth),
            extra,
        )
        if best is None or rank < best[0]:
            best = rank, format.name
    if best is None:
        raise InputError(
            f"{encoder} has no pixel format for {size[1]}x{size[0]} pixels, an odd number: name --codec libx264 or ffv1"
        )
    (lost, coarser, converted, _, extra), name = best
    if lost:
        notes.append(f"{encoder} has {video.depth - lost} bits, the source has {video.depth}: --codec ffv1 keeps them")
    if plain:
        shown = "some players do not show" if extra else "players show"
        notes.append(
            f"the source is RGB and {name} is written, in BT.709, which {shown}: .mkv keeps colours finer, and with "
            "--codec ffv1 exactly"
        )
    elif is_rgb(name) and encoder != "ffv1" and ALIASES.get(video.codec, video.codec) != encoder:
        notes.append(f"the source is RGB and {name} is written, which few players show: name a result in .mp4 or .webm")
    elif coarser:
        notes.append(f"{encoder} has no chroma as fine as that of the source's {video.format}: {name} is written")
    elif converted:
        notes.append(
            f"the source is RGB and {name} is written, in BT.709, which some players do not show: a result in .mp4 or "
            ".webm is 4:2:0, which they do, and --codec ffv1 keeps RGB"
        )
    elif extra and not video.colours.grey:
        odd = any(side % step for side, step in zip(size, chroma, strict=True))
        why = "whose chroma needs even sides" if odd else f"which {encoder} does not have"
        notes.append(f"{name} is written for the source's {video.format}, {why}: some players do not show it")
    return name, notes


class Encoded(NamedTuple):
    """A packet of an encoder."""

    frame: int
    """The number of its frame, counted from the encoder's first."""
    key: bool
    data: bytes


class FrameEncoder:
    """Encodes frames one after the other; for one thread."""

    def __init__(self, encoding: Encoding, converter: Converter) -> None:
        self._context = encoding.open()
        self._converter = converter
        self._tick, self.frames = 1 / encoding.rate, 0
        self._before: tuple[NDArray[Any], VideoFrame] | None = None

    @property
    def header(self) -> bytes:
        """What a container's header says of the stream."""
        return bytes(self._context.extradata or b"")

    def encode(self, levels: NDArray[np.generic]) -> Iterator[Encoded]:
        """The packets that the next frame, (H, W, 3) uint8 or uint16, completes."""
        # Where nothing moves the very same array comes again. An encoder holds the samples, not this object.
        if self._before is None or self._before[0] is not levels:
            self._before = levels, self._converter.to_frame(levels)
        frame = self._before[1]
        frame.pts, frame.time_base = self.frames, self._tick
        self.frames += 1
        return self._packets(frame)

    def finish(self) -> Iterator[Encoded]:
        """The packets that are left."""
        return self._packets(None)

    def _packets(self, frame: VideoFrame | None) -> Iterator[Encoded]:
        for packet in self._context.encode(frame):
            yield Encoded(int(packet.pts or 0), bool(packet.is_keyframe), bytes(packet))
