"""Encodes clips: H.264 in MP4, 25 frames per second, closed groups of 25 frames, no audio, reproducible bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.mp4_boxes import index_first
from talkinghead.media.pixels import PixelConverter
from talkinghead.timebase import FPS

GROUP_FRAMES = 25
"""Frames from one key frame to the next: frame `k` decodes from frame `k - k % 25` on."""

_X264 = ":".join(
    [
        f"keyint={GROUP_FRAMES}",
        f"min-keyint={GROUP_FRAMES}",
        "scenecut=0",  # key frames stand at multiples of GROUP_FRAMES and nowhere else
        "open-gop=0",
        "threads=1",  # the bytes depend on the number of threads
        "cpu-independent=1",  # … and must not on the processor
        "colorprim=bt709:transfer=bt709:colormatrix=bt709:fullrange=off",
    ]
)


def encode_mp4(frames: Iterable[np.ndarray], width: int, height: int, settings: EncoderSettings) -> bytes:
    """A clip as the bytes of an MP4 file; the same frames and settings give the same bytes.

    Args:
        frames: RGB uint8 `[height, width, 3]`, at least one.
        width: Even number of pixels (yuv420p has one colour for two pixels).
        height: Even number of pixels.
        settings: Quality and preset.
    """
    if width % 2 or height % 2 or width < 16 or height < 16:
        raise ValueError(f"a clip of {width}x{height} cannot be encoded: both sides must be even and at least 16")
    buffer = io.BytesIO()
    converter = PixelConverter()
    count = 0
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = _add_stream(container, width, height, settings)
        for image in frames:
            assert image.shape == (height, width, 3) and image.dtype == np.uint8, f"{image.shape} {image.dtype}"
            frame = converter.yuv420(image)
            frame.pts, frame.time_base = count, Fraction(1, FPS)
            container.mux(stream.encode(frame))
            count += 1
        if not count:
            raise ValueError("a clip needs at least one frame")
        container.mux(stream.encode(None))
    return index_first(buffer.getvalue())


def _add_stream(container: OutputContainer, width: int, height: int, settings: EncoderSettings) -> VideoStream:
    options = {"crf": str(settings.crf), "preset": settings.preset, "x264-params": _X264}
    stream = container.add_stream("libx264", rate=FPS, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    context.thread_count = 1
    context.time_base = Fraction(1, FPS)
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream
