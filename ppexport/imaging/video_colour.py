"""Colours of video frames: Y'CbCr of every matrix and range to RGB levels, and back to the same.

8 bits are converted by libswscale, with full chroma interpolation and accurate rounding: colours come back within one
level. Of more bits it only resamples the chroma; the matrix is applied here, in float32, because libswscale takes white
for 65280 of 65535 in limited range and for something else in full range, which a network would see as another picture.

The result has the tags of the source: matrix, range, primaries, transfer. A video without a matrix tag is BT.601 up to
576 lines and BT.709 above, as players guess; since they would guess again from the size of the result, it is tagged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppexport.device.picture import to_levels
from ppexport.errors import InputError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.format import VideoFormat
    from av.video.plane import VideoPlane
    from av.video.reformatter import VideoReformatter

    from ppexport.imaging.images import Pixels

RGB, BT709, UNSPECIFIED, FCC, BT470BG, SMPTE170M, SMPTE240M, BT2020, BT2020_CONSTANT = 0, 1, 2, 4, 5, 6, 7, 9, 10
LIMITED, FULL = 1, 2
NAMES = {
    BT709: "BT.709",
    FCC: "FCC",
    BT470BG: "BT.601",
    SMPTE170M: "BT.601",
    SMPTE240M: "SMPTE 240M",
    BT2020: "BT.2020",
}
LUMA = {
    BT709: (0.2126, 0.0722), FCC: (0.30, 0.11), BT470BG: (0.299, 0.114), SMPTE170M: (0.299, 0.114),
    SMPTE240M: (0.212, 0.087), BT2020: (0.2627, 0.0593),
}  # fmt: skip
"""Matrix -> weights of red and blue in luma."""
SD_LINES = 576
"""Most lines of a video that is BT.601 where no tag says otherwise."""
# BICUBIC, FULL_CHR_H_INT, FULL_CHR_H_INP and ACCURATE_RND of av.video.reformatter.Interpolation.
ACCURATE = 0x4 | 0x2000 | 0x4000 | 0x40000
GREY = frozenset({"gray", "gray9le", "gray10le", "gray12le", "gray14le", "gray16le", "ya8", "ya16le", "monob", "monow"})


class Colours(NamedTuple):
    """How the numbers of a video stand for colours, as H.273 numbers them."""

    matrix: int
    range: int
    primaries: int
    transfer: int
    grey: bool
    """Whether there is no chroma."""

    @property
    def text(self) -> str:
        """For people, such as "BT.709, limited range"."""
        name = "RGB" if self.matrix == RGB else NAMES[self.matrix]
        return f"{name}, {'full' if self.range == FULL else 'limited'} range"


def colours_of(frame: VideoFrame, where: str) -> Colours:
    """The colours of *frame*, guessed where no tag says. Raises InputError, naming *where*, for a matrix of no use."""
    grey = frame.format.name in GREY
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    if frame.format.is_rgb or frame.format.has_palette:
        return Colours(RGB, FULL, primaries, transfer, False)
    matrix, sd = int(frame.colorspace), frame.height <= SD_LINES
    if matrix in (UNSPECIFIED, 3, RGB):
        matrix = SMPTE170M if sd else BT709
    elif matrix == BT2020_CONSTANT:
        raise InputError(f"{where} has BT.2020 colours of constant luminance, which are not converted here")
    elif matrix not in LUMA:
        raise InputError(f"{where} has colours of matrix {matrix} (H.273), which are not converted here")
    if primaries == UNSPECIFIED:
        guesses = {BT709: 1, BT2020: 9, SMPTE240M: 7, BT470BG: 5, SMPTE170M: 5 if frame.height == SD_LINES else 6}
        primaries = guesses.get(matrix, UNSPECIFIED)
    if transfer == UNSPECIFIED:
        # MP4 has no place for a matrix alone. BT.2020 may be HDR: its curve is not guessed.
        transfer = {BT709: 1, SMPTE240M: 7, BT470BG: 6, SMPTE170M: 6}.get(matrix, UNSPECIFIED)
    tagged = int(frame.color_range)
    full = tagged == FULL or frame.format.name.startswith("yuvj") or (grey and tagged not in (LIMITED, FULL))
    return Colours(matrix, FULL if full else LIMITED, primaries, transfer, grey)


def matrix_of(colours: Colours) -> NDArray[np.float32]:
    """(3, 3): rows Y in [0, 1], Cb and Cr in [-0.5, 0.5] of R, G, B in [0, 1]."""
    red, blue = LUMA[colours.matrix]
    green = 1 - red - blue
    y = np.array([red, green, blue])
    cb, cr = (np.array([0, 0, 1.0]) - y) / (2 * (1 - blue)), (np.array([1.0, 0, 0]) - y) / (2 * (1 - red))
    return np.stack([y, cb, cr]).astype(np.float32)


def steps(colours: Colours, bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factors and offsets (3,) of the samples of *bits* bits: sample = value * factor + offset."""
    unit = 1 << (bits - 8)
    if colours.range == FULL:
        top = (1 << bits) - 1
        return np.full(3, top, np.float32), np.array([0, 128 * unit, 128 * unit], np.float32)
    return np.array([219, 224, 224], np.float32) * unit, np.array([16, 128, 128], np.float32) * unit


class Converter:
    """Converts frames of one video; for one thread. *format* is the pixel format of the frames that are written."""

    def __init__(self, colours: Colours, format: str) -> None:
        from av.video.reformatter import VideoReformatter

        # One for every direction: a context is made anew whenever its formats change.
        self._in, self._out, self._last = VideoReformatter(), VideoReformatter(), VideoReformatter()
        self.colours, self.format = colours, format
        # RGB that is written as Y'CbCr needs a matrix.
        self.written = written_colours(colours, format)

    def to_rgb(self, frame: VideoFrame) -> Pixels:
        """*frame* as (H, W, 3): uint8 levels of at most 8 bits, else float32 in [0, 1]."""
        bits = max(component.bits for component in frame.format.components)
        if self.colours.grey:
            return self._from_grey(frame, bits)
        if bits <= 8:
            return self._levels(frame)
        if self.colours.matrix == RGB:
            red, green, blue = _planes(self._resampled(self._in, frame, f"gbrp{bits}le"), (2, 0, 1))
            rgb: NDArray[np.float32] = np.stack([red, green, blue], axis=2).astype(np.float32)
            rgb /= np.float32((1 << bits) - 1)
            return rgb
        factor, offset = steps(self.colours, bits)
        planes = _planes(self._resampled(self._in, frame, f"yuv444p{bits}le"), (0, 1, 2))
        values = (np.stack(planes, axis=2).astype(np.float32) - offset) / factor
        rgb = values @ np.linalg.inv(matrix_of(self.colours).astype(np.float64)).astype(np.float32).T
        return np.clip(rgb, 0, 1, out=rgb)

    def _from_grey(self, frame: VideoFrame, bits: int) -> Pixels:
        """Of frames without chroma libswscale does not regard the range."""
        bits = max(bits, 8)
        format = "gray" if bits == 8 else f"gray{bits}le"
        if frame.format.name != format:
            frame = self._resampled(self._in, frame, format)
        factor, offset = steps(self.colours, bits)
        (samples,) = _planes(frame, (0,))
        values = np.clip((samples.astype(np.float32) - offset[0]) / factor[0], 0, 1)
        return np.repeat((to_levels(values) if bits == 8 else values)[..., None], 3, axis=2)

    def _levels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        sws, of = {BT470BG: 5, SMPTE170M: 5}, self.colours
        made = self._in.reformat(
            frame, format="rgb24", src_colorspace=None if of.matrix == RGB else sws.get(of.matrix, of.matrix),
            src_color_range=of.range, dst_color_range=FULL, interpolation=ACCURATE, threads=1,
        )  # fmt: skip
        levels: NDArray[np.uint8] = np.ascontiguousarray(made.to_ndarray())
        return levels

    def _resampled(self, by: VideoReformatter, frame: VideoFrame, format: str) -> VideoFrame:
        """*frame* in another *format* of the same matrix and range, whatever they are."""
        return by.reformat(frame, format=format, interpolation=ACCURATE, threads=1)

    def to_frame(self, levels: NDArray[Any]) -> VideoFrame:
        """A frame of `format` of *levels* (H, W, 3), uint8 or uint16."""
        from av import VideoFrame

        of = self.written
        if of.grey:
            made = self._to_grey(levels)
        elif levels.dtype == np.uint8:
            frame = VideoFrame.from_ndarray(levels, format="rgb24")
            if of.matrix == RGB:
                return self._out.reformat(frame, format=self.format, interpolation=ACCURATE, threads=1)
            sws = {BT470BG: 5, SMPTE170M: 5}.get(of.matrix, of.matrix)
            made = self._out.reformat(
                frame, format=self.format, dst_colorspace=sws, src_color_range=FULL,
                dst_color_range=of.range, interpolation=ACCURATE, threads=1,
            )  # fmt: skip
        else:
            made = self._deep(levels)
        if made.format.name != self.format:
            made = self._resampled(self._last, made, self.format)
        # libswscale knows one BT.601, and tags two videos alike that had different tags.
        made.colorspace, made.color_range = of.matrix, of.range
        made.color_primaries, made.color_trc = of.primaries, of.transfer
        return made

    def _to_grey(self, levels: NDArray[Any]) -> VideoFrame:
        """Luma of *levels* with neutral chroma."""
        from av import VideoFrame

        height, width = levels.shape[:2]
        frame = VideoFrame(width, height, self.format)
        bits = frame.format.components[0].bits
        factor, offset = steps(self.written, bits)
        luma = levels.astype(np.float32) @ matrix_of(self.written)[0] / np.float32(np.iinfo(levels.dtype).max)
        _fill(frame.planes[0], luma * factor[0] + offset[0], bits)
        for plane in frame.planes[1:]:
            _fill(plane, np.full((plane.height, plane.width), offset[1], np.float32), bits)
        return frame

    def _deep(self, levels: NDArray[np.uint16]) -> VideoFrame:
        """4:4:4 or planar RGB of as many bits as `format` has, of 16-bit *levels*."""
        from av import VideoFrame
        from av.video.format import VideoFormat

        bits = max(component.bits for component in VideoFormat(self.format).components)
        height, width = levels.shape[:2]
        rgb = levels.astype(np.float32) / np.float32(65535)
        if self.written.matrix == RGB:
            frame = VideoFrame(width, height, f"gbrp{bits}le")
            values = rgb[..., (1, 2, 0)] * np.float32((1 << bits) - 1)
        else:
            frame = VideoFrame(width, height, f"yuv444p{bits}le")
            factor, offset = steps(self.written, bits)
            values = (rgb @ matrix_of(self.written).T) * factor + offset
        for plane, part in zip(frame.planes, np.moveaxis(values, 2, 0), strict=True):
            _fill(plane, part, bits)
        frame.colorspace, frame.color_range = self.written.matrix, self.written.range
        return frame


def written_colours(colours: Colours, format: str) -> Colours:
    """What *colours* become in *format*: RGB in a format of Y'CbCr takes BT.709, limited range."""
    if colours.matrix != RGB or is_rgb(format):
        return colours
    primaries = 1 if colours.primaries == UNSPECIFIED else colours.primaries
    return colours._replace(matrix=BT709, range=LIMITED, primaries=primaries)


def is_rgb(format: str) -> bool:
    """Whether the pixel *format* holds red, green and blue."""
    from av.video.format import VideoFormat

    return VideoFormat(format).is_rgb


def _planes(frame: VideoFrame, order: tuple[int, ...]) -> list[NDArray[Any]]:
    """The planes of *frame*, samples (H, W) each, in *order*."""
    kind = np.dtype("<u2" if frame.format.components[0].bits > 8 else np.uint8)
    planes = [frame.planes[i] for i in order]
    return [np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width] for plane in planes]


def _fill(plane: VideoPlane, values: NDArray[np.float32], bits: int) -> None:
    """Write *values* (H, W), rounded to samples of *bits* bits, into *plane*."""
    kind = np.dtype("<u2" if bits > 8 else np.uint8)
    rows = np.zeros((plane.height, plane.line_size // kind.itemsize), kind)
    rows[:, : plane.width] = np.clip(values + np.float32(0.5), 0, (1 << bits) - 1)
    plane.update(rows.tobytes())


def subsampling(format: VideoFormat) -> tuple[int, int]:
    """By how much chroma is coarser than luma, (down, across), each 1, 2 or 4."""
    return 16 // format.chroma_height(16), 16 // format.chroma_width(16)


def has_alpha(format: VideoFormat) -> bool:
    """Whether frames of the pixel *format* may be transparent. FFmpeg makes those of every GIF so."""
    return format.has_palette or any(component.is_alpha for component in format.components)


def is_see_through(frame: VideoFrame) -> bool:
    """Whether any pixel of *frame*, which has an alpha channel, is not opaque."""
    return bool(frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255)
