"""The unfinished part of a video: encoded segments in a hidden folder beside the result.

    .out.mp4.part/
        work.json       what the segments are made from (`key`), and their list: name, SHA-256, frames
        00000.packets   one segment, whole or absent: a line of JSON, then the packets of one encoder

A segment's line of JSON has the timestamps of its frames, which the containers that are joined later get without any
rounding, and the encoder's header; then for every packet 13 bytes, little-endian, and its data:

    <Q I B   the frame's number in the segment, bytes of data, 1 where a decoder can begin

Segments begin with an encoder of their own, so that they are joined without encoding anything again. What was not put
into a whole segment when a process ended is computed again by the next one.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

from ppexport.errors import InputError
from ppexport.files import atomic_path, is_plain_name, naming, read_limited_json, sha256_file, write_text
from ppexport.folders import held
from ppexport.imaging.video_encoding import Encoded

WORK = "work.json"
MAX_WORK, MAX_LINE = 1 << 24, 1 << 24
PACKET = struct.Struct("<QIB")


class Segment(NamedTuple):
    """A whole segment."""

    name: str
    sha256: str
    frames: int


@dataclass
class SegmentStore:
    """The folder of an unfinished video, which this process holds."""

    folder: Path
    key: dict[str, Any]
    segments: list[Segment]
    partial: str | None = None
    """The name of the playable file that an interrupted run left beside the result."""

    @property
    def frames(self) -> int:
        """Frames that are done."""
        return sum(segment.frames for segment in self.segments)

    def save(self) -> None:
        """Write the list of segments."""
        content = {"key": self.key, "partial": self.partial, "segments": [list(one) for one in self.segments]}
        write_text(self.folder / WORK, json.dumps(content, indent=1) + "\n")

    @contextmanager
    def writing(self) -> Iterator[SegmentWriter]:
        """A new segment, which is added when the block ends without an error and has frames."""
        path = self.folder / f"{len(self.segments):05d}.packets"
        with atomic_path(path) as temporary, naming(path, temporary):
            writer = SegmentWriter(temporary.with_suffix(".body"))
            try:
                yield writer
                writer.assemble(temporary)
            finally:
                writer.close()
        if writer.pts:
            self.segments.append(Segment(path.name, sha256_file(path), len(writer.pts)))
            self.save()
        else:
            path.unlink(missing_ok=True)

    def packets(self) -> Iterator[tuple[int, Encoded]]:
        """All packets in the order of decoding: the frame's number in the video, and the packet."""
        done = 0
        for segment in self.segments:
            with open(self.folder / segment.name, "rb") as stream:
                _line(stream, segment.name)
                while head := stream.read(PACKET.size):
                    index, size, key = PACKET.unpack(head)
                    yield done + index, Encoded(index, bool(key), stream.read(size))
            done += segment.frames

    def order(self) -> list[int]:
        """The frames' numbers in the video, in the order of decoding."""
        found, done = [], 0
        for segment in self.segments:
            with open(self.folder / segment.name, "rb") as stream:
                _line(stream, segment.name)
                while head := stream.read(PACKET.size):
                    index, size, _ = PACKET.unpack(head)
                    found.append(done + index)
                    stream.seek(size, os.SEEK_CUR)
            done += segment.frames
        return found

    def timestamps(self) -> tuple[list[int], list[int], bytes]:
        """Timestamps and durations of all frames, and the header of their encoders. Raises InputError."""
        pts: list[int] = []
        durations: list[int] = []
        headers = set()
        for segment in self.segments:
            with open(self.folder / segment.name, "rb") as stream:
                line = _line(stream, segment.name)
            pts += line["pts"]
            durations += line["durations"]
            headers.add(bytes.fromhex(line["header"]))
        if len(headers) > 1:
            raise InputError(f"the segments in {self.folder} come from different encoders: remove the folder")
        return pts, durations, headers.pop() if headers else b""

    def remove(self) -> None:
        """Remove what the folder holds, and the folder, which nothing needs any more."""
        for path in self.folder.iterdir():
            path.unlink()
        with suppress(OSError):
            self.folder.rmdir()


class SegmentWriter:
    """Collects the packets of one encoder."""

    def __init__(self, body: Path) -> None:
        self.pts: list[int] = []
        self.durations: list[int] = []
        self.header = b""
        self._path = body
        self._stream = open(body, "wb")  # noqa: SIM115

    def frame(self, pts: int, duration: int) -> None:
        """Note the time of the next frame."""
        self.pts.append(pts)
        self.durations.append(duration)

    def packet(self, packet: Encoded) -> None:
        """Add a packet."""
        self._stream.write(PACKET.pack(packet.frame, len(packet.data), packet.key))
        self._stream.write(packet.data)

    def assemble(self, target: Path) -> None:
        """Write all of it to *target*."""
        self._stream.close()
        line = {"pts": self.pts, "durations": self.durations, "header": self.header.hex()}
        with open(target, "wb") as whole, open(self._path, "rb") as body:
            whole.write(json.dumps(line).encode() + b"\n")
            while block := body.read(1 << 20):
                whole.write(block)
            whole.flush()
            os.fsync(whole.fileno())

    def close(self) -> None:
        """Remove what is unfinished."""
        with suppress(OSError):
            self._stream.close()
        self._path.unlink(missing_ok=True)


def _line(stream: IO[bytes], name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(stream.readline(MAX_LINE))
    except ValueError:
        raise InputError(f"{name} is no segment of a video") from None
    return found


def work_folder(target: Path) -> Path:
    """Where the segments of the video *target* are kept."""
    return target.with_name(f".{target.name}.part")


def _partial(target: Path, number: int) -> str:
    return f"{target.stem}.partial{number if number > 1 else ''}{target.suffix}"


def unused_partial(target: Path) -> Path:
    """A name beside *target* for what plays of it that no file has."""
    return next(path for n in count(1) if not os.path.lexists(path := target.with_name(_partial(target, n))))


def _is_partial(name: str, target: Path) -> bool:
    number = name.removeprefix(f"{target.stem}.partial").removesuffix(target.suffix) or "1"
    return number.isdecimal() and name == _partial(target, int(number))


@contextmanager
def segment_store(target: Path, key: Mapping[str, Any]) -> Iterator[SegmentStore]:
    """The segments of *target*, those that an earlier run with the same *key* left among them.

    Raises InputError where another process writes *target*, or the folder holds work of another command.
    """
    folder = work_folder(target)
    if folder.is_symlink():
        raise InputError(f"{folder} is a link, where ppexport keeps what is unfinished: remove it")
    with held(folder, f"is making {target} in"):
        store = SegmentStore(folder, dict(key), [])
        if (folder / WORK).exists():
            _load(store, target)
        known = {WORK, *(segment.name for segment in store.segments)}
        for path in folder.iterdir():
            # What a process that was killed had begun.
            if path.name not in known and path.suffix in (".packets", ".body"):
                path.unlink()
        yield store


def check_same_work(target: Path, key: Mapping[str, Any]) -> None:
    """Raise InputError where there is unfinished work on *target*, and it is that of a command with another *key*."""
    folder = work_folder(target)
    _check_key(folder, target, _read_work(folder)["key"], key)


def _check_key(folder: Path, target: Path, before: Any, now: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    if before == now:
        return
    if not isinstance(before, dict):
        raise InputError(f"{folder / WORK} is no list of segments: remove {folder}")
    changed = [name for name in {**now, **before} if name not in before or before[name] != now.get(name)]
    if "--codec" in changed:
        # It brings a quality and a pixel format of its own.
        changed = [name for name in changed if name not in ("--crf", "pixel format")]
    said = [
        f"{name} ({before[name]})" if isinstance(before.get(name), (str, int, float)) and name != "input" else name
        for name in changed
    ]
    raise InputError(
        f"{folder} holds unfinished work on {target} with another {' and '.join(said)}: run the same command as before "
        "to continue it, or remove that folder to begin again"
    )


def _read_work(folder: Path) -> dict[str, Any]:
    """The list of segments in *folder*. Raises InputError where it is none."""
    found: Any = read_limited_json(folder / WORK, MAX_WORK, "a list of segments")
    if not isinstance(found, dict) or not {"key", "partial", "segments"} <= set(found):
        raise InputError(f"{folder / WORK} is no list of segments: remove {folder}")
    return found


def _load(store: SegmentStore, target: Path) -> None:
    """Take the segments that are whole; those after the first that is not are computed again."""
    found = _read_work(store.folder)
    partial = found["partial"]
    try:
        listed = [Segment(*entry) for entry in found["segments"]]
    except TypeError:
        raise InputError(f"{store.folder / WORK} is no list of segments: remove {store.folder}") from None
    _check_key(store.folder, target, found["key"], store.key)
    if isinstance(partial, str) and is_plain_name(partial) and _is_partial(partial, target):
        store.partial = partial
    for segment in listed:
        path = store.folder / str(segment.name)
        if not is_plain_name(str(segment.name)) or path.is_symlink() or not path.is_file():
            break
        if sha256_file(path) != segment.sha256:
            break
        store.segments.append(segment)
