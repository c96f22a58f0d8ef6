"""Short drawn files of a face that moves and makes sounds: as many different ones as a test wants, and copies."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from ingest.sample import make_sample
from talkinghead.timebase import SAMPLE_RATE, SAMPLES_PER_FRAME
from tests.support.media_files import write_video

FRAMES = 70
SIDE = 256


@functools.cache
def portrait(folder: Path) -> np.ndarray:
    """A face, RGB uint8 `[SIDE, SIDE, 3]`, out of the embedded sample that is made in a folder."""
    made = folder if folder.is_dir() and any(folder.glob("*.mp4")) else make_sample(folder)
    with av.open(str(sorted(made.glob("*.mp4"))[0])) as container:
        image = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def moving(image: np.ndarray, seed: int, frames: int = FRAMES) -> list[np.ndarray]:
    """Images of a face that wanders, turns and grows, along a path of its own for each seed."""
    draw = np.random.default_rng(seed)
    paths = draw.normal(0, 1, (4, frames + 24)).cumsum(axis=1)
    paths = np.stack([np.convolve(path, np.hanning(9) / 4, "valid")[:frames] for path in paths])
    paths = (paths - paths.mean(axis=1, keepdims=True)) / paths.std(axis=1, keepdims=True)
    made = []
    for x, y, angle, size in paths.T:
        matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), 2.0 * angle, 1.0 + 0.015 * size)
        matrix[:, 2] += 4.0 * x, 3.0 * y
        made.append(cv2.warpAffine(image, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT))
    return made


def voice(seed: int, frames: int = FRAMES) -> np.ndarray:
    """Sound `[1, N]` at 16 kHz: syllables of changing pitch and colour, other ones for each seed."""
    draw = np.random.default_rng(1000 + seed)
    parts, left = [], frames * SAMPLES_PER_FRAME
    while left > 0:
        count = min(left, int(draw.uniform(0.08, 0.3) * SAMPLE_RATE))
        time = np.arange(count) / SAMPLE_RATE
        pitch, colour = draw.uniform(90, 260), draw.uniform(300, 2500)
        tones = [
            np.exp(-(((n * pitch - colour) / 500) ** 2)) * np.sin(2 * np.pi * n * pitch * time) for n in range(1, 20)
        ]
        parts.append(0.2 * np.sum(tones, axis=0) * np.hanning(count) + draw.normal(0, 0.002, count))
        left -= count
    return np.clip(np.concatenate(parts), -1, 1)[None].astype(np.float32)


def write_talk(
    path: Path,
    images: Sequence[np.ndarray],
    sound: np.ndarray | None,
    *,
    quality: int = 20,
    side: int = SIDE,
) -> Path:
    """Encode images and sound; another quality or side gives the same recording in other bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sized = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    options = {"crf": str(quality), "preset": "veryfast"}
    return write_video(path, sized, options=options, audio=sound, audio_rate=SAMPLE_RATE)
