"""A real HDTF clip, and a raw source into which it is put back at its crop box and interval."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

NTSC = Fraction(30_000, 1001)
START_S = 45
SIDE, LEFT, TOP = 650, 639, 46


@dataclass(frozen=True)
class Original:
    """Published clip: RGB images `[300, 650, 650, 3]`, stereo sound `[2, N]` and its rate."""

    images: list[np.ndarray]
    sound: np.ndarray
    rate: int


def read_original(media: Path) -> Original:
    """Path of the clip among the shared media."""
    with av.open(str(media / "video" / "Moore-AnimateAnyone_4.mp4")) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(media / "video" / "Moore-AnimateAnyone_4.mp4")) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].time == 0.0
    return Original(images, np.concatenate([frame.to_ndarray() for frame in frames], axis=1), frames[0].sample_rate)


def write_source(path: Path, original: Original, height: int) -> None:
    """Source with the clip in its place: a still image up to 44.5 s, then other images, the clip from 45 s, others
    again."""
    scale = height / 1080
    width, side, left, top = (round(value * scale) for value in (1920, SIDE, LEFT, TOP))
    background = np.random.default_rng(0).integers(90, 110, (height, width, 3), np.uint8)
    background = cv2.GaussianBlur(background, (0, 0), 8)
    lead = int(NTSC) // 2
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=NTSC, width=width, height=height, pix_fmt="yuv420p")
        video.options = {"preset": "ultrafast", "crf": "14", "g": "30"}
        video.time_base = video.codec_context.time_base = 1 / (NTSC * 1001)
        audio = output.add_stream("aac", rate=original.rate, layout="stereo", bit_rate=256_000)
        for n in [-START_S * 30, *range(-lead, len(original.images) + lead)]:
            image = background
            if 0 <= n < len(original.images):
                image = background.copy()
                clip = original.images[n]
                if side != SIDE:
                    clip = cv2.resize(clip, (side, side), interpolation=cv2.INTER_AREA)
                image[top : top + side, left : left + side] = clip
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            # frame numbers count from 45 s; the still image is at 0
            frame.pts = 0 if n < -lead else START_S * 30_000 + n * 1001
            frame.time_base = Fraction(1, 30_000)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        silence = np.zeros((2, START_S * original.rate), np.float32)
        sound = np.concatenate([silence, original.sound, silence[:, : original.rate // 2]], axis=1)
        for first in range(0, sound.shape[1], 1024):
            piece = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[:, first : first + 1024]), format="fltp", layout="stereo"
            )
            piece.sample_rate, piece.pts, piece.time_base = original.rate, first, Fraction(1, original.rate)
            output.mux(audio.encode(piece))
        output.mux(audio.encode(None))
