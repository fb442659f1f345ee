"""What of a video file cannot be read.

A decoder tells of pieces that it refuses or conceals, and most containers tell of packets that are not whole. FFmpeg's
reader of Matroska and WebM reports nothing: after damaged bytes it continues at the next cluster, and takes the end of
a file that is cut off for the end of the video. So the elements of such a file are looked at here, not their content:
whether each lies inside the one that holds it, whether the file is as long as it says, and whether clusters agree with
their checksum where they have one, as FFmpeg writes it. Of an AVI and an MP4 only the length is looked at, of an FLV
whether every tag says its size twice.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from ppexport.errors import InputError, counted

EBML, SEGMENT, INFO, CLUSTER, VOID, CRC = 0x1A45DFA3, 0x18538067, 0x1549A966, 0x1F43B675, 0xEC, 0xBF
# Besides those: the index, tracks, cues, attachments, chapters and tags.
TOP = frozenset(
    {INFO, CLUSTER, VOID, CRC, EBML, 0x114D9B74, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
)
TIMESTAMP, SIMPLE_BLOCK, BLOCK_GROUP, BLOCK, TIMESTAMP_SCALE = 0xE7, 0xA3, 0xA0, 0xA1, 0x2AD7B1
# Position, size of the last cluster, silent tracks, encrypted block.
IN_CLUSTER = frozenset({TIMESTAMP, SIMPLE_BLOCK, BLOCK_GROUP, VOID, CRC, 0xA7, 0xAB, 0x5854, 0xAF})
BOXES = frozenset({b"ftyp", b"styp", b"moov", b"moof", b"mfra", b"mdat", b"sidx", b"free", b"skip", b"wide", b"uuid"})
CHUNK = 1 << 20


@dataclass
class Damage:
    """What could not be read."""

    first: float | None = None
    """Seconds after which something is damaged; None where nothing is."""
    cut: bool = False
    """Whether the file ends before its content does."""
    missing: int = 0
    """Pictures that the file's index tells of, and that are not there."""
    seconds: float = 0.0
    """Where the last frame ends."""
    sentence: str = ""
    """For people; empty where nothing is damaged. Known once all frames were read."""

    def at(self, seconds: float) -> None:
        """Note damage at *seconds*."""
        self.first = seconds if self.first is None else min(self.first, seconds)

    def finish(self, path: Path, seconds: float | None) -> None:
        """Say what is damaged in the video *path*, whose length should be *seconds*."""
        parts = []
        # The piece in which it was cut is no further damage.
        if self.first is not None and not (self.cut and self.first > self.seconds - 1):
            parts.append(
                f"is damaged, first after {self.first:.1f} seconds: frames or sound are missing or blurred there"
            )
        if self.cut:
            of = f" of {seconds:.1f}" if seconds else ""
            parts.append(f"is cut off: it ends after {self.seconds:.1f}{of} seconds")
        elif self.missing:
            parts.append(f"lacks {counted(self.missing, 'picture')} of which its index tells")
        self.sentence = f"{path} {'; it '.join(parts)}" if parts else ""


class _Element(NamedTuple):
    """The head of an element of EBML."""

    id: int
    begin: int
    """Where its content begins in the file."""
    end: float
    """Where its content ends; infinity where it does not tell its size, and ends before what cannot be inside it."""


def look_at_file(path: Path, format: str, damage: Damage) -> None:
    """Note in *damage* what FFmpeg does not tell of the file *path*, whose container has the name *format* there."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if "matroska" in format:
                _Elements(stream, size, damage).look()
            elif format == "avi":
                damage.cut |= _is_short_riff(stream, size)
            elif "mov" in format:
                damage.cut |= _is_short_mp4(stream, size)
            elif format == "flv":
                _look_at_flv(stream, size, damage)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _is_short_riff(stream: IO[bytes], size: int) -> bool:
    """Whether a file of *size* bytes is shorter than the lists in it; unfinished ones say nothing of their length."""
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        kind, long = struct.unpack("<4sI", stream.read(8))
        if kind != b"RIFF" or long in (0, 0xFFFFFFFF):
            return False
        at += 8 + long + long % 2
    # The padding of an odd length may be missing.
    return at - 1 > size


def _is_short_mp4(stream: IO[bytes], size: int) -> bool:
    """Whether a file of *size* bytes ends inside one of its boxes."""
    at = 0
    while at + 16 <= size:
        stream.seek(at)
        long, kind, large = struct.unpack(">I4sQ", stream.read(16))
        long = large if long == 1 else long
        if kind not in BOXES or long < 8:
            # What somebody appended, or a box that goes to the end.
            return False
        at += long
    return at > size


def _look_at_flv(stream: IO[bytes], size: int, damage: Damage) -> None:
    """Note the first tag after which its size is not repeated: FFmpeg leaves out what is before the next sound one."""
    stream.seek(5)
    at = first = int.from_bytes(stream.read(4), "big") + 4
    while at + 11 < size:
        stream.seek(at)
        head = stream.read(11)
        long, time = int.from_bytes(head[1:4], "big"), int.from_bytes(head[7:8] + head[4:7], "big")
        stream.seek(at + 11 + long)
        again = stream.read(4)
        if at + 15 + long > size and head[0] in (8, 9, 18):
            damage.cut = True
            return
        if int.from_bytes(again, "big") != long + 11:
            # Some programs never write the size, and others append zeros.
            if at > first and any(head):
                damage.at(time / 1000)
            return
        at += 15 + long
    damage.cut |= at < size


class _Elements:
    """A walk through the elements of a file."""

    def __init__(self, stream: IO[bytes], size: int, damage: Damage) -> None:
        self._stream, self._size, self._damage = stream, size, damage
        self._scale, self._time, self._seconds, self._whole = 1_000_000, 0, 0.0, True

    def look(self) -> None:
        """Look at all of them."""
        at: float = 0
        while at < self._size:
            head = self._element(int(at))
            # What follows the last segment is not the video's.
            if head is None or head.id not in (EBML, SEGMENT, VOID):
                return
            if head.id == SEGMENT:
                self._whole = head.end <= self._size
                self._damage.cut |= self._size < head.end < math.inf
                at = self._segment(head.begin, head.end)
            else:
                at = head.end

    def _segment(self, at: float, end: float) -> float:
        """Look at the elements between *at* and *end*; returns where the segment ends."""
        while at < min(end, self._size):
            head = self._element(int(at))
            # Recordings may lie one after the other where the segments do not tell their size.
            if head is not None and head.id == EBML:
                return at
            if head is None or not self._belongs(head, end):
                at = self._wrong(int(at), int(at) + 1, head)
            elif head.id == CLUSTER:
                at = self._cluster(head, end)
            else:
                if head.id == INFO:
                    self._read_scale(head)
                self._damage.cut |= self._size < head.end < math.inf
                at = head.end
        return end

    def _belongs(self, head: _Element, end: float) -> bool:
        """Whether *head* is an element of a segment: a known one, or a later addition, which is followed by one."""
        if head.id in TOP:
            return head.end <= end or head.end == math.inf
        following = self._element(int(head.end)) if head.end < end else None
        return following is not None and following.id in TOP

    def _cluster(self, cluster: _Element, limit: float) -> float:
        """Look at the blocks of *cluster*; returns where to go on."""
        end, at, begun, checksum = min(cluster.end, limit), cluster.begin, self._seconds, b""
        while at < min(end, self._size):
            head = self._element(at)
            if cluster.end == math.inf and head is not None and head.id in TOP - {VOID, CRC}:
                return at
            if head is None or head.id not in IN_CLUSTER or head.end > min(end, self._size):
                return self._wrong(at, at, head)
            if head.id == TIMESTAMP:
                self._time = int.from_bytes(self._read(head.begin, 8)[: int(head.end) - head.begin], "big")
                begun = self._seconds = self._time * self._scale / 1e9
            elif head.id in (SIMPLE_BLOCK, BLOCK_GROUP):
                self._block(head)
            elif head.id == CRC and at == cluster.begin:
                checksum = self._read(head.begin, 4)
            at = int(head.end)
        if checksum and end <= self._size and self._crc(cluster.begin + 6, int(end)) != checksum:
            # A decoder that noted it knows better where.
            noted = self._damage.first
            if noted is None or not begun - 1 <= noted <= self._seconds:
                self._damage.at(begun)
        return end

    def _block(self, head: _Element) -> None:
        """Note the time of the block that *head* is, or of that at the beginning of the group."""
        if head.id == BLOCK_GROUP:
            inside = self._element(head.begin)
            if inside is None or inside.id != BLOCK:
                return
            head = inside
        content = self._read(head.begin, 12)
        # After the number of the track, in as many bytes as its first zeros say.
        skip = 9 - content[0].bit_length() if content else 0
        relative = int.from_bytes(content[skip : skip + 2], "big", signed=True)
        self._seconds = (self._time + relative) * self._scale / 1e9

    def _wrong(self, at: int, begin: int, head: _Element | None) -> float:
        """Note that the element at *at* cannot be; returns where the next cluster is from *begin* on."""
        following = self._search(begin)
        past = self._size - at < 12 if head is None else head.end > self._size
        if past and not self._whole and following >= self._size:
            self._damage.cut = True
        else:
            self._damage.at(self._seconds)
        return following

    def _search(self, begin: int) -> int:
        """Where the next cluster begins; the size of the file where there is none."""
        name = CLUSTER.to_bytes(4, "big")
        while begin < self._size:
            found = self._read(begin, CHUNK).find(name)
            if found >= 0:
                return begin + found
            begin += CHUNK - len(name) + 1
        return self._size

    def _read_scale(self, info: _Element) -> None:
        """Take the unit of timestamps, in nanoseconds, from *info*."""
        at = info.begin
        while at < min(info.end, self._size):
            head = self._element(at)
            if head is None or head.end > info.end:
                return
            if head.id == TIMESTAMP_SCALE:
                self._scale = int.from_bytes(self._read(head.begin, 8)[: int(head.end) - head.begin], "big")
            at = int(head.end)

    def _element(self, at: int) -> _Element | None:
        """The element that begins at *at*; None where none can."""
        head = self._read(at, 12)
        # Numbers begin with as many zeros as there are further bytes, and a one.
        long = 9 - head[0].bit_length() if head else 9
        more = 9 - head[long].bit_length() if len(head) > long else 9
        if long > 4 or more > 8 or len(head) < long + more:
            return None
        mask = (1 << 7 * more) - 1
        size = int.from_bytes(head[long : long + more], "big") & mask
        begin = at + long + more
        return _Element(int.from_bytes(head[:long], "big"), begin, math.inf if size == mask else begin + size)

    def _crc(self, begin: int, end: int) -> bytes:
        """The checksum of a part of the file."""
        value = 0
        for at in range(begin, end, CHUNK):
            value = zlib.crc32(self._read(at, min(CHUNK, end - at)), value)
        return value.to_bytes(4, "little")

    def _read(self, at: int, count: int) -> bytes:
        self._stream.seek(at)
        return self._stream.read(count)
