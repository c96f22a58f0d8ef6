"""Encodes clips: H.264 in MP4, 25 frames per second, closed groups of 25 frames, no audio, reproducible bytes.

The index comes first in the file, so that a reader needs no seek to the end before the first frame; FFmpeg's
`faststart` does the same but needs a file on disk. Box layout: ISO/IEC 14496-12.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.pixels import PixelConverter
from talkinghead.timebase import FPS

GROUP_FRAMES = 25
"""Frames from one key frame to the next: frame `k` decodes from frame `k - k % 25` on."""

_CLIP_X264 = (
    f"keyint={GROUP_FRAMES}",
    f"min-keyint={GROUP_FRAMES}",
    "scenecut=0",  # key frames at multiples of GROUP_FRAMES and nowhere else
    "open-gop=0",
)
_X264 = (
    "threads=1",  # the bytes depend on the number of threads
    "cpu-independent=1",  # … and must not on the processor
    "colorprim=bt709:transfer=bt709:colormatrix=bt709:fullrange=off",
)

_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def encode_mp4(frames: Iterable[np.ndarray], width: int, height: int, settings: EncoderSettings) -> bytes:
    """A clip as the bytes of an MP4 file; the same frames and settings give the same bytes.

    Args:
        frames: RGB uint8 `[height, width, 3]`, at least one.
        width: Width in pixels; even, at least 16 (yuv420p has one colour for two pixels).
        height: Height in pixels; even, at least 16.
        settings: Quality and preset.

    Raises:
        ValueError: A side that is odd or too short, or no frames.
    """
    if width % 2 or height % 2 or width < 16 or height < 16:
        raise ValueError(f"a clip of {width}x{height} cannot be encoded: both sides must be even and at least 16")
    buffer = io.BytesIO()
    converter = PixelConverter()
    count = 0
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = add_h264(container, (width, height), Fraction(FPS), settings, _CLIP_X264)
        for image in frames:
            assert image.shape == (height, width, 3) and image.dtype == np.uint8, f"{image.shape} {image.dtype}"
            frame = converter.yuv420(image)
            frame.pts, frame.time_base = count, Fraction(1, FPS)
            container.mux(stream.encode(frame))
            count += 1
        if not count:
            raise ValueError("a clip needs at least one frame")
        container.mux(stream.encode(None))  # the frames that the encoder still holds
    # FFmpeg writes the index when the file is closed, after the frames.
    return index_first(buffer.getvalue())


def add_h264(
    container: OutputContainer,
    size: tuple[int, int],
    rate: Fraction,
    settings: EncoderSettings,
    x264: Iterable[str] = (),
) -> VideoStream:
    """Add a video stream to a file: H.264, yuv420p, BT.709, limited range, reproducible on any machine.

    Args:
        container: File that is being written.
        size: Width and height in pixels, even.
        rate: Frames per second; a frame's time stamp is its number.
        settings: Quality and preset.
        x264: Further options of x264.
    """
    # The colours are named twice: for x264 (in `_X264`), and for the container by the codec context below.
    options = {"crf": str(settings.crf), "preset": settings.preset, "x264-params": ":".join((*x264, *_X264))}
    stream = container.add_stream("libx264", rate=rate, options=options)
    (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
    context = stream.codec_context
    context.thread_count = 1
    context.time_base = 1 / rate
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def index_first(mp4: bytes) -> bytes:
    """An MP4 file with its index (`moov`) before its frames (`mdat`), and chunk offsets to match.

    A file that has this order already is returned as it is.
    """
    boxes = {name: mp4[begin:end] for name, begin, end in _boxes(mp4, 0, len(mp4))}
    if list(boxes).index(b"moov") < list(boxes).index(b"mdat"):
        return mp4
    # The index moves in front of the frames, so they begin later by its length.
    moov = bytearray(boxes.pop(b"moov"))
    _shift_chunks(moov, 0, len(moov), len(moov))
    return b"".join([boxes.pop(b"ftyp"), moov, *boxes.values()])


def _shift_chunks(data: bytearray, begin: int, end: int, shift: int) -> None:
    """Add `shift` to every chunk offset in the boxes of `begin .. end`, at any depth."""
    for name, first, last in _boxes(data, begin, end):
        if name in _CONTAINERS:
            _shift_chunks(data, first + 8, last, shift)
        elif name in (b"stco", b"co64"):  # size, name, version and flags, count (4 bytes each); then the offsets
            (count,) = struct.unpack_from(">I", data, first + 12)
            layout = f">{count}{'I' if name == b'stco' else 'Q'}"
            offsets = struct.unpack_from(layout, data, first + 16)
            struct.pack_into(layout, data, first + 16, *(offset + shift for offset in offsets))


def _boxes(data: bytes | bytearray, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and end of each box from `begin` to `end`."""
    while begin + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, begin)
        if size == 1:  # a 64-bit size follows
            (size,) = struct.unpack_from(">Q", data, begin + 8)
        elif size == 0:  # the last box, to the end of the file
            size = end - begin
        assert 8 <= size <= end - begin, f"box {name!r} of {size} bytes does not fit"
        yield name, begin, begin + size
        begin += size
