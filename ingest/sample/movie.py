"""Writes a sample's source file with PyAV: any frame rate, picture size, container and sound format."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_THREADS = 2  # fixed, because the encoder's output depends on it
_BLOCK = 1024


def write_movie(
    path: Path,
    frames: Iterable[np.ndarray],
    rate: Fraction,
    audio: np.ndarray,
    sample_rate: int,
    *,
    audio_codec: str = "aac",
) -> None:
    """Write frames and sound as H.264 (yuv420p) and `audio_codec`; the suffix of `path` says the container.

    Args:
        path: File to write.
        frames: `[H, W, 3]` uint8 RGB each, all of one even size.
        rate: Frames per second.
        audio: `[N]` float32 mono.
        sample_rate: Of `audio`, Hz.
        audio_codec: `aac` or `pcm_s16le`.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "17"})
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = _THREADS
        sound = container.add_stream(audio_codec, rate=sample_rate, layout="mono")
        assert isinstance(sound, av.AudioStream)
        for number, frame in enumerate(frames):
            if number == 0:
                video.height, video.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, 1 / rate
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        for start in range(0, len(audio), _BLOCK):
            block = (audio[start : start + _BLOCK] * 32767).round().astype(np.int16)
            piece = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = sample_rate, start, Fraction(1, sample_rate)
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
