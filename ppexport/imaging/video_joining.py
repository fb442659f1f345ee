"""Puts encoded segments and the other streams of their source into one file, without encoding anything.

Copied are sound, subtitles, further pictures, attachments, data, chapters, tags, languages and dispositions, as far as
the container holds them; what it does not hold is named. Frames keep their timestamps in the source's time base; only
Matroska and WebM round to milliseconds, and so do all programs that write them.

Decoding timestamps are computed here, for all segments at once: in the order of decoding packet k has the k-th smallest
timestamp, put off by as many frames as any packet is decoded before its turn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ppexport.errors import InputError, first_line
from ppexport.files import atomic_path, full_disk
from ppexport.imaging.background import usual_priority
from ppexport.imaging.video import Video, address, load_av, opened
from ppexport.imaging.video_encoding import FORMATS, Encoding
from ppexport.imaging.video_segments import SegmentStore

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

OWN_TAGS = {"encoder", "vendor_id", "major_brand", "minor_version", "compatible_brands", "duration"}
"""Tags that say something of the file that holds them, and nothing of what is in it."""
COPIED = (("audio", "subtitle", "video", "attachment", "data", "unknown"), ("audio", "subtitle"), ("audio",), ())
"""Kinds of streams that are copied; fewer where a container takes the header of one and then not its packets."""
KINDS = {"audio": "sound", "subtitle": "subtitles", "video": "another video stream"}


def join(store: SegmentStore, encoding: Encoding, target: Path, *, whole: bool = True) -> tuple[str, ...]:
    """Write *target*, atomically, from the segments of *store* and the source's other streams.

    Args:
        store: has at least one segment.
        encoding: what the segments were encoded with.
        target: the file to write.
        whole: whether the segments are the whole video; else other streams end with it.

    Returns:
        Sentences about streams that turned out to be none that the container holds.

    Raises:
        InputError: the file cannot be written.
    """
    reason = ""
    for copied in COPIED:
        try:
            with opened(encoding.video.path) as source, atomic_path(target) as temporary:
                container = load_av().open(address(temporary), "w", format=FORMATS[target.suffix.lower()])
                with container:
                    _join(store, encoding, source, container, copied, whole)
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error.strerror}{full_disk(error)}") from None
        except ValueError as error:
            # What FFmpeg says of packets that a container does not take. A long run is not lost for them.
            reason = reason or first_line(error)
            continue
        if not reason:
            return ()
        kept = f", but for {' and '.join(KINDS[kind] for kind in copied)}," if copied else ""
        return (f"{target}: the source's other streams{kept} were left out ({reason})",)
    raise InputError(f"{target} cannot be written: {reason}")


def other_streams(video: Video, target: Path) -> tuple[str, ...]:
    """Sentences about streams of *video* that the container *target* cannot hold."""
    with opened(video.path) as source:
        notes: list[str] = []
        for stream in source.streams:
            if stream.index != video.index and not _is_timecode(stream):
                _held(stream, FORMATS[target.suffix.lower()], notes)
        return tuple(notes)


def _is_timecode(stream: Stream) -> bool:
    """Whether *stream* is the clock of a camera, which the muxer writes again from the tag of the pictures."""
    return stream.type == "data" and "timecode" in stream.metadata


def _held(stream: Stream, muxer: str, notes: list[str]) -> bool:
    """Whether the container *muxer* holds a copy of *stream*: tried with a header in memory."""
    av = load_av()
    try:
        trial = av.open(io.BytesIO(), "w", format=muxer)
        try:
            # Attachments alone make no file.
            trial.add_stream("mpeg4" if muxer != "webm" else "libvpx-vp9", rate=25, width=16, height=16)
            _added(trial, stream)
            trial.start_encoding()
            return True
        finally:
            trial.close()
    except (OSError, ValueError, TypeError):
        pass
    what = KINDS.get(stream.type, stream.type)
    name = getattr(stream, "name", None)
    notes.append(f"stream {stream.index} ({what}{f', {name}' if name else ''}) is left out: {muxer} does not hold it")
    return False


def _added(container: OutputContainer, stream: Stream) -> Stream:
    """A stream of *container* for the packets of *stream*."""
    made: Stream = container.add_stream_from_template(stream, opaque=True)
    made.metadata.update(_tags(stream.metadata))
    made.disposition = stream.disposition
    return made


def _join(
    store: SegmentStore,
    encoding: Encoding,
    source: InputContainer,
    container: OutputContainer,
    copied: tuple[str, ...],
    whole: bool,
) -> None:
    """Write all packets in the order of their decoding times."""
    video = encoding.video
    copies: dict[int, Stream] = {}
    pts, durations, header = store.timestamps()
    for stream in source.streams:
        if stream.index == video.index:
            made = _video_stream(container, encoding, header, stream)
        elif (
            stream.type in copied
            and not _is_timecode(stream)
            and _held(stream, container.format.name.split(",")[0], [])
        ):
            copies[stream.index] = _added(container, stream)
    container.metadata.update(_tags(source.metadata))
    container.set_chapters(source.chapters())
    container.start_encoding()
    end = float((pts[-1] + max(durations[-1], 1)) * video.time_base)
    pictures = _timed_packets(store, video.time_base, pts, durations, made)
    others = _other_packets(source, copies, None if whole else end)
    for packet in _by_time(pictures, others):
        container.mux_one(packet)


def _tags(tags: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if name.lower() not in OWN_TAGS}


def _video_stream(container: OutputContainer, encoding: Encoding, header: bytes, stream: Stream) -> VideoStream:
    """The stream of the enlarged pictures, with a header of the encoder that made them."""
    video = encoding.video
    made = cast("VideoStream", container.add_stream(encoding.encoder, rate=encoding.rate))
    encoding.configure(made.codec_context)
    made.time_base = video.time_base
    made.metadata.update(_tags(stream.metadata))
    made.disposition = stream.disposition
    if video.matrix is not None:
        made.set_display_matrix(video.matrix)
    with usual_priority():
        made.codec_context.open()
    if bytes(made.codec_context.extradata or b"") != header:
        raise InputError("the segments come from another version of the encoder: remove their folder and begin again")
    return made


def decoding_times(order: list[int], pts: list[int], ends: list[int]) -> list[int]:
    """When each packet is decoded: ascending, and never after its frame is shown.

    Args:
        order: the frames' numbers in the order of decoding.
        pts: ascending timestamps of the frames.
        ends: when each frame's time is over.

    Returns:
        Timestamps in the order of decoding. The first ones lie so far before the first frame that from the first to the
        end of the last packet as much time passes as the video takes, which is where MP4 gets a track's length from.
    """
    delay = max(place - index for place, index in enumerate(order))
    if not delay:
        return list(pts)
    last = len(pts) - 1
    early = ends[last] - pts[last - delay] - (ends[order[last]] - pts[order[last]])
    return [pts[0] - early + early * place // delay for place in range(delay)] + pts[: len(pts) - delay]


def _timed_packets(
    store: SegmentStore, time_base: Fraction, pts: list[int], durations: list[int], stream: Stream
) -> Iterator[Packet[Any]]:
    from av import Packet

    order, ends = store.order(), [*pts[1:], pts[-1] + max(durations[-1], 1)]
    times = decoding_times(order, pts, ends)
    for time, (index, encoded) in zip(times, store.packets(), strict=True):
        packet = Packet(encoded.data)
        packet.stream, packet.time_base = stream, time_base
        packet.pts, packet.dts, packet.duration = pts[index], time, ends[index] - pts[index]
        packet.is_keyframe = encoded.key
        yield packet


def _other_packets(source: InputContainer, copies: dict[int, Stream], end: float | None) -> Iterator[Packet[Any]]:
    """The packets of the streams that are copied, up to the second *end*."""
    if not copies:
        return
    streams = [stream for stream in source.streams if stream.index in copies and stream.type != "attachment"]
    packets: Iterator[Packet[Any]] = source.demux(*streams) if streams else iter(())
    for packet in packets:
        if packet.size and packet.dts is None and packet.pts is None:
            # A cover has no time.
            packet.pts = packet.dts = 0
        at = packet.dts if packet.dts is not None else packet.pts
        if at is None or packet.size == 0:
            continue
        if end is None or float(at * packet.time_base) < end:
            packet.stream = copies[packet.stream_index]
            yield packet


def _by_time(first: Iterator[Packet[Any]], second: Iterator[Packet[Any]]) -> Iterator[Packet[Any]]:
    """Both, merged by time, each in its own order."""
    one, other = next(first, None), next(second, None)
    while one is not None or other is not None:
        if other is None or (one is not None and _time(one) <= _time(other)):
            yield one  # type: ignore[misc]
            one = next(first, None)
        else:
            yield other
            other = next(second, None)


def _time(packet: Packet[Any]) -> Fraction:
    at = packet.dts if packet.dts is not None else packet.pts
    return (at or 0) * Fraction(packet.time_base)
