"""The sample's clips, drawn and written: three framings of the talking portrait, one without a face, one broken file.

They are written with PyAV, each with its own frame rate, size, container and sound format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data

from ingest.sample import portrait as face
from ingest.sample.expression import Expression, pose_face
from ingest.sample.motion import View, head_motion, portrait_map
from ingest.sample.portrait import portrait_texture
from ingest.sample.speech import Speech, synthesise
from talkinghead.rng import generator

_THREADS = 2  # threads of the encoder; fixed, because its output depends on their number
_BLOCK = 1024  # audio samples per encoded frame: what AAC takes at once


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One talking clip."""

    file: str
    """Name of the file; its stem keys the clip's randomness."""
    view: View
    """Size of the clip, and the part of the portrait that it shows."""
    rate: Fraction
    """Frames per second."""
    seconds: float
    """Length of the clip."""
    sample_rate: int
    """Rate of the sound, Hz."""
    audio_codec: str = "aac"
    """Audio codec, as FFmpeg calls it."""


SCENES = (
    Scene(
        file="astronaut-close.mp4",
        view=View(640, 480, zoom=2.4, x0=93, y0=12),
        rate=Fraction(30),
        seconds=5.0,
        sample_rate=44_100,
    ),
    Scene(
        file="astronaut-portrait.mkv",
        view=View(720, 720, zoom=2.0, x0=46, y0=2),
        rate=Fraction(25),
        seconds=4.4,
        sample_rate=48_000,
        audio_codec="pcm_s16le",
    ),
    Scene(
        file="astronaut-wide.mp4",
        view=View(1280, 720, zoom=2.0, x0=(face.SIZE - 1280 / 2) / 2, y0=4),
        rate=Fraction(30_000, 1001),
        seconds=4.0,
        sample_rate=48_000,
    ),
)
NO_FACE = "rocket.mp4"
"""Name of the clip in which nobody is shown."""
BROKEN = "broken-download.mp4"
"""Name of the file that cannot be opened."""


def scene_frames(scene: Scene, speech: Speech, seed: int) -> Iterator[np.ndarray]:
    """Frames of a talking clip, RGB uint8 `[H, W, 3]`; frame k shows the middle of its interval."""
    # Everything that moves, sampled at the frames' times: mouth from the speech, head from its stress.
    texture = portrait_texture()
    view = scene.view
    times = (np.arange(int(scene.seconds * scene.rate)) + 0.5) / float(scene.rate)
    stress = speech.at(speech.stress(), times)
    opening, rounding = speech.at(speech.opening, times), speech.at(speech.rounding, times)
    motion = head_motion(seed, scene.file, times, stress)
    backdrop = _backdrop(texture, view)
    # Pose the face on the fine texture, then warp the texture into the frame.
    for frame in range(len(times)):
        expression = Expression(opening=opening[frame], rounding=rounding[frame], blink=motion.blink[frame])
        maps = portrait_map(view, motion, frame)
        shown = cv2.remap(pose_face(texture, expression), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if backdrop is not None:
            left, right = (round((edge - view.x0) * view.zoom) for edge in (0, face.SIZE))
            shown[:, :left], shown[:, right:] = backdrop[:, :left], backdrop[:, right:]
        yield shown


def _backdrop(texture: np.ndarray, view: View) -> np.ndarray | None:
    """Filling for the sides of a frame that is wider than the portrait: its blurred, darkened enlargement, RGB uint8
    `[H, W, 3]`; None when the portrait fills the frame."""
    if view.x0 >= 0 and view.x0 + view.width / view.zoom <= face.SIZE:
        return None
    square = cv2.resize(texture, (view.width, view.width), interpolation=cv2.INTER_AREA)
    top = (view.width - view.height) // 2
    blurred = cv2.GaussianBlur(square[top : top + view.height], (0, 0), view.width / 32)
    return (blurred * 0.6).astype(np.uint8)


def _rocket_frames(rate: int, seconds: float) -> Iterator[np.ndarray]:
    """Frames without a face: a slow pan and zoom over scikit-image's rocket launch (SpaceX, public domain)."""
    image = skimage.data.rocket()
    height, width = image.shape[:2]
    for frame in range(int(rate * seconds)):
        # Part of the way, 0 .. 1; the zoom always fills the frame of 640 x 480.
        share = frame / (rate * seconds)
        zoom = max(640 / width, 480 / height) * (1.25 + 0.35 * share)
        left, top = width * (0.05 + 0.1 * share), height * (0.05 + 0.1 * share)
        move = np.array([[zoom, 0, -zoom * left], [0, zoom, -zoom * top]])
        yield cv2.warpAffine(image, move, (640, 480), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def write_sources(folder: Path, seed: int) -> list[Path]:
    """Write every clip of the sample into `folder` and return the files in order."""
    # Three framings of the talking portrait.
    paths = []
    for scene in SCENES:
        speech = synthesise(seed, scene.file, scene.seconds, scene.sample_rate)
        path = folder / scene.file
        frames = scene_frames(scene, speech, seed)
        _write_movie(path, frames, scene.rate, speech.audio, scene.sample_rate, audio_codec=scene.audio_codec)
        paths.append(path)
    # A clip without a face, with the noise of a room as its sound.
    noise = generator(seed, "sample-room").standard_normal(3 * 44_100).astype(np.float32)
    paths.append(folder / NO_FACE)
    _write_movie(paths[-1], _rocket_frames(25, 3.0), Fraction(25), 0.01 * noise, 44_100)
    # A file that is cut off, like a broken download.
    whole = paths[0].read_bytes()
    paths.append(folder / BROKEN)
    paths[-1].write_bytes(whole[: len(whole) * 2 // 3])  # the index of an MP4 is at its end, so it is lost
    return paths


def _write_movie(
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
        frames: Frames, RGB uint8 `[H, W, 3]`, all of one even size.
        rate: Frames per second.
        audio: Mono sound, `[N]` float32, -1 .. 1.
        sample_rate: Rate of `audio`, Hz.
        audio_codec: Audio codec, `aac` or `pcm_s16le`.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "17"})
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = _THREADS
        sound = container.add_stream(audio_codec, rate=sample_rate, layout="mono")
        assert isinstance(sound, av.AudioStream)
        # The frames; the first one decides the size.
        for number, frame in enumerate(frames):
            if number == 0:
                video.height, video.width = frame.shape[:2]
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = number, 1 / rate
            container.mux(video.encode(image))
        container.mux(video.encode(None))  # None: flush what the encoder holds back
        # The sound, as 16-bit blocks: [1, samples].
        for start in range(0, len(audio), _BLOCK):
            block = (audio[start : start + _BLOCK] * 32767).round().astype(np.int16)
            piece = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = sample_rate, start, Fraction(1, sample_rate)
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
