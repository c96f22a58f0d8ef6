"""Small media files made on the spot, with known images and sounds at known times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter


def flat(width: int, height: int, level: int) -> np.ndarray:
    """One grey image `[H, W, 3]`."""
    return np.full((height, width, 3), level, np.uint8)


def write_video(
    path: Path,
    images: Iterable[np.ndarray],
    *,
    rate: Fraction | int = 25,
    ticks: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    audio: np.ndarray | None = None,
    audio_rate: int = 44100,
    audio_start: int = 0,
    audio_codec: str = "aac",
) -> Path:
    """Encode RGB images `[H, W, 3]` (and audio `[C, N]`, which starts `audio_start` samples late) into a file.

    `ticks` are the images' time stamps in `time_base`; by default they follow each other at `rate`.
    """
    with av.open(str(path), "w") as container:
        video = None
        sound = None
        for number, image in enumerate(images):
            if video is None:
                video = container.add_stream(codec, rate=rate, options=options or {})
                video.height, video.width = image.shape[:2]
                video.pix_fmt = pixel_format
                video.codec_context.colorspace = Colorspace.ITU709
                if time_base is not None:
                    video.codec_context.time_base = time_base
                if aspect is not None:
                    video.codec_context.sample_aspect_ratio = aspect
                if audio is not None:
                    sound = container.add_stream(audio_codec, rate=audio_rate, layout=_layout(audio))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = VideoReformatter().reformat(frame, format=pixel_format, dst_colorspace=Colorspace.ITU709)
            frame.pts = number if ticks is None else ticks[number]
            frame.time_base = time_base or 1 / Fraction(rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            for packet in _encode(sound, audio, audio_rate, audio_start):
                container.mux(packet)
    return path


def write_audio(path: Path, audio: np.ndarray, rate: int, codec: str, sample_format: str) -> Path:
    """Encode float audio `[C, N]` in -1 .. 1 with a PCM or other codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=_layout(audio))
        stream.codec_context.format = sample_format
        for packet in _encode(stream, audio, rate, 0, sample_format):
            container.mux(packet)
    return path


def _layout(audio: np.ndarray) -> str:
    return {1: "mono", 2: "stereo", 4: "quad", 6: "5.1", 8: "7.1"}[len(audio)]


def _encode(stream, audio: np.ndarray, rate: int, start: int, sample_format: str | None = None):
    for begin in range(0, audio.shape[1], 1024):
        values = np.ascontiguousarray(audio[:, begin : begin + 1024].astype(np.float32).T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(values, format="flt", layout=_layout(audio))
        frame.sample_rate, frame.pts, frame.time_base = rate, start + begin, Fraction(1, rate)
        frames = av.AudioResampler(format=sample_format or "fltp", layout=_layout(audio), rate=rate).resample(frame)
        for converted in frames:
            yield from stream.encode(converted)
    yield from stream.encode(None)
