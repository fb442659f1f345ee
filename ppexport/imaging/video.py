"""Reads a video frame by frame with PyAV (the extra `video`), whatever its container.

A file is recognised by what it holds, not by its name. Only containers of `CONTAINERS` are opened: FFmpeg also reads
playlists and lists of files, which name other files and addresses, and no video that somebody sent may do that.

Every frame keeps the timestamp that the file says, so that a variable frame rate stays as it is. A frame without one,
or one that does not come after its predecessor's, takes the next possible. What a decoder cannot decode is left out and
noted; the frame before it is then shown longer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppexport.errors import InputError, first_line, imported, require
from ppexport.imaging.formats import format_of
from ppexport.imaging.images import MAX_PIXELS
from ppexport.imaging.video_colour import Colours, colours_of, has_alpha, is_see_through
from ppexport.imaging.video_damage import Damage, look_at_file

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,nut,mxf,ivf,obu,h264,hevc,m4v,"
    "yuv4mpegpipe,rm,dv,vob,gif,apng,wav,mp3,flac,aac,aiff"
)
"""Demuxers that read one file and no other; sound without pictures is among them so that it can be told apart."""
PICTURES = frozenset({"gif", "apng"})
"""Formats of animated pictures, which `read_image` reads."""
LOST = {
    "MASTERING_DISPLAY_METADATA": "the mastering display's brightness (HDR10)",
    "CONTENT_LIGHT_LEVEL": "the content's light level (HDR10)",
    "DYNAMIC_HDR_PLUS": "dynamic HDR10+ metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "A53_CC": "closed captions inside the frames",
}
"""Side data of frames that no encoder here is given, and its name for people."""

TRANSPARENCY = "its transparency is not kept"


class Timed(NamedTuple):
    """A decoded frame."""

    pts: int
    """When it is shown, in units of the video's time base; above that of the frame before."""
    duration: int
    """How long it is shown as far as the file says, in the same unit; 0 where it does not."""
    frame: VideoFrame


@dataclass(frozen=True)
class Video:
    """What a file says of the video stream that is enlarged. Sizes are (H, W) as coded, before any rotation."""

    path: Path
    index: int
    """Of the stream in the file."""
    size: tuple[int, int]
    codec: str
    format: str
    """FFmpeg's name of the pixel format."""
    depth: int
    """Bits of a sample."""
    colours: Colours
    time_base: Fraction
    rate: Fraction
    """Frames a second, on average."""
    aspect: Fraction | None
    """Width of a pixel by its height."""
    matrix: tuple[int, ...] | None
    """The display matrix (rotation and mirroring), as players apply it."""
    frames: int
    """As far as the file says, else estimated from its length; 0 where neither is known."""
    seconds: float | None
    """Length that the file says."""
    maybe_alpha: bool = False
    """Whether frames after the first, which is opaque, may be transparent."""
    notes: tuple[str, ...] = ()
    """Sentences about what is not kept."""


def load_av() -> Any:
    """PyAV. Raises UnavailableError, naming the extra, where it is missing or broken."""
    require("av", "video")
    av = imported("av", "video")
    # Its own lines on standard error are no sentences that a user can act on.
    av.logging.set_level(None)
    return av


def address(path: Path) -> str:
    """*path* for FFmpeg, which would take a name such as concat:a for instructions."""
    return f"file:{os.path.abspath(path)}"


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """The container *path*. Raises InputError where it cannot be read, or is none."""
    av = load_av()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a plain file'}")
        if status.st_size == 0:
            raise InputError(f"{path} is empty")
        # The first words of an error are the system's, those after it FFmpeg's.
        with open(path, "rb"):
            pass
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        container = av.open(address(path), "r", options=options, metadata_errors="replace")
    except (av.error.InvalidDataError, av.error.EOFError, av.error.ArgumentError):
        # The last one is of a format that is none of those.
        if begins_as_picture(path):
            raise InputError(f"{path} is a picture and no video: name a picture to write, such as a .png") from None
        raise InputError(f"{path} is no video, or it is damaged or cut off at its beginning or end") from None
    except (OSError, ValueError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path} cannot be read: {reason}") from None
    with container:
        yield container


def picture_stream(container: InputContainer) -> VideoStream | None:
    """The first stream of moving pictures; a cover is none."""
    for stream in container.streams.video:
        if not stream.disposition & stream.disposition.attached_pic:
            return stream
    return None


def begins_as_picture(path: Path) -> bool:
    """Whether the file *path* begins as a picture does. Raises OSError."""
    with open(path, "rb") as stream:
        return format_of(stream.read(64)) is not None


def is_video(path: Path) -> bool:
    """Whether the file *path* holds a video stream and is no (animated) picture. Never raises; False without PyAV."""
    try:
        # FFmpeg takes an AVIF or HEIC, which is a kind of MP4, for a video.
        if begins_as_picture(path):
            return False
        with opened(path) as container:
            return container.format.name not in PICTURES and picture_stream(container) is not None
    except Exception:
        return False


def read_video(path: Path, max_pixels: int = MAX_PIXELS) -> Video:
    """What the file *path* holds. Decodes its first frame, unless that has more than *max_pixels* pixels.

    Raises InputError for such a file, one that is missing, no video, without a stream of moving pictures or without a
    frame that can be decoded, or in colours that are not converted; UnavailableError without PyAV.
    """
    with opened(path) as container:
        stream = picture_stream(container)
        if stream is None:
            there = sorted({other.type for other in container.streams})
            raise InputError(f"{path} has no video stream, only {', '.join(there) or 'nothing that can be read'}")
        if stream.codec_context is None:
            raise InputError(f"{path}: this machine's PyAV has no decoder for its video stream")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            raise InputError(
                f"{path} has frames of {width}x{height} = {width * height:,} pixels, more than the limit of "
                f"{max_pixels:,}: if you trust it, pass --max-pixels {width * height}"
            )
        timed = next(iter(_decoded(container, stream, Damage())), None)
        if timed is None:
            raise InputError(f"{path} holds no frame that can be decoded: it is empty, cut off or damaged")
        frame, base = timed.frame, stream.time_base or Fraction(1, 1000)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        seconds = float(stream.duration * base) if stream.duration else None
        if seconds is None and container.duration:
            seconds = container.duration / 1e6
        # PyAV's types call this a mapping of texts.
        extra: Any = frame.side_data
        kinds = {data.type.name: bytes(data) for data in extra}
        turned = kinds.get("DISPLAYMATRIX")
        return Video(
            path=path,
            index=stream.index,
            size=(frame.height, frame.width),
            codec=stream.codec_context.codec.canonical_name,
            format=frame.format.name,
            depth=max(component.bits for component in frame.format.components),
            colours=colours_of(frame, str(path)),
            time_base=base,
            rate=Fraction(rate),
            aspect=stream.sample_aspect_ratio or None,
            matrix=None if turned is None else tuple(np.frombuffer(turned, np.int32)[:9].tolist()),
            frames=stream.frames or round((seconds or 0.0) * float(rate)),
            seconds=seconds,
            maybe_alpha=has_alpha(frame.format) and not is_see_through(frame),
            notes=tuple(_losses(frame, set(kinds))),
        )


def _losses(frame: VideoFrame, kinds: set[str]) -> Iterator[str]:
    """Sentences about what the result will lack."""
    for kind in LOST:
        if kind in kinds:
            yield f"{LOST[kind]} is not kept"
    if frame.interlaced_frame:
        yield "its frames are interlaced, and are enlarged as if they were not: deinterlace it first"
    if has_alpha(frame.format) and is_see_through(frame):
        yield TRANSPARENCY


def frames_of(video: Video, damage: Damage, skip: int = 0) -> Iterator[Timed]:
    """The frames of *video* from number *skip* on, in the order in which they are shown.

    What is damaged or missing is noted in *damage*, whose sentence is there after the last frame. Raises InputError
    where a frame has another size than the first, or the file can no longer be read.
    """
    with opened(video.path) as container:
        stream: VideoStream = container.streams[video.index]  # type: ignore[assignment]
        stream.codec_context.thread_type = "AUTO"
        for number, timed in enumerate(_decoded(container, stream, damage)):
            if (timed.frame.height, timed.frame.width) != video.size:
                (h, w), frame = video.size, timed.frame
                raise InputError(
                    f"{video.path} changes its size from {w}x{h} to {frame.width}x{frame.height} at frame {number:,}: "
                    "split it there"
                )
            damage.seconds = float((timed.pts + timed.duration - (stream.start_time or 0)) * video.time_base)
            if number >= skip:
                yield timed
        look_at_file(video.path, container.format.name, damage)
    damage.finish(video.path, video.seconds)


def _decoded(container: InputContainer, stream: VideoStream, damage: Damage) -> Iterator[Timed]:
    """The frames of *stream*, with ascending timestamps."""
    av = load_av()
    base = stream.time_base or Fraction(1, 1000)
    step = max(1, round(1 / (float(stream.average_rate or 25) * float(base))))
    last: int | None = None
    count, at, end, gap = 0, 0.0, 0.0, 1.0
    begin = container.start_time / 1e6 if container.start_time else 0.0
    # With the sound, which may be longer than the pictures.
    packets = container.demux([other for other in container.streams if other.type in ("video", "audio")])
    while True:
        decoded: list[Any] = []
        try:
            packet = next(packets, None)
            if packet is not None and packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet is not None and packet.stream.index == stream.index:
                # Not the one that only asks for the last frames.
                count += packet.size > 0 or packet.dts is not None
                if packet.pts is not None:
                    gap, at = max(gap, float(packet.pts * base) - begin - at), float(packet.pts * base) - begin
                if packet.is_corrupt:
                    damage.at(at)
                decoded = packet.decode()
        except OSError as error:
            raise InputError(f"{container.name.removeprefix('file:')} cannot be read: {error.strerror}") from None
        except av.error.EOFError:
            break
        except (ValueError, av.error.FFmpegError):
            # Where it was the container, and not one packet, the next is None. Threads tell of it some packets later.
            damage.at(0.0 if last is None else float(last * base) - begin)
            continue
        if packet is None:
            break
        for frame in decoded:
            pts = frame.pts
            if pts is None:
                pts = frame.dts if last is None else last + step
            if last is not None and (pts is None or pts <= last):
                pts = last + 1
            last = pts or 0
            if frame.is_corrupt:
                damage.at(float(last * base) - begin)
            yield Timed(last, frame.duration or 0, frame)
    formats = container.format.name.split(",")
    if "mov" in formats or "avi" in formats:
        # Its own count is of pictures that an edit list leaves out, too, or that are only shown for longer.
        damage.missing = max(0, len(stream.index_entries) - count)
    elif "matroska" not in formats and container.duration:
        # A picture may stand still at the end for as long as others did.
        damage.cut |= end < container.duration / 1e6 - gap
