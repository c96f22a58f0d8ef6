"""Writes a video with its speech: H.264 and AAC in MP4, one frame at a time, whole or not at all.

Images and sound are handed to the muxer in step, so that the memory does not grow with the length. The sound comes
from the user's own file at its own rate, not from the 16 kHz that the models attend to, but by the same rules: mended
clock, silence in place of damage, channels that cancel (`talkinghead/media/sound_runs.py`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer

from talkinghead.files.atomic import staged_file
from talkinghead.media.encode import add_h264
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.limits import check_sound
from talkinghead.media.media_file import MediaFile, name_of
from talkinghead.media.pixels import PixelConverter
from talkinghead.media.sound_frames import open_sound, sound_frames
from talkinghead.media.sound_runs import SoundRuns
from talkinghead.media.sound_survey import read_mixes
from talkinghead.media.synthetic import SyntheticNote
from talkinghead.media.timeline import read_timeline
from talkinghead.timebase import SAMPLE_RATE

SMALLEST, LARGEST = 16, 8192
"""Sides of a video in pixels; H.264 levels, and so players, end at 8192."""

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_WIDE_RATE = 32000  # from here on a channel gets 96 kbit/s, below 48


def check_video_size(width: int, height: int) -> None:
    """Raise `ValueError` when H.264 (yuv420p) cannot hold frames of this size in pixels."""
    if width % 2 or height % 2:
        raise ValueError(f"a video of {width}x{height} cannot be encoded: both sides must be even")
    if not (SMALLEST <= width <= LARGEST and SMALLEST <= height <= LARGEST):
        raise ValueError(f"a video of {width}x{height} cannot be encoded: sides must be {SMALLEST} to {LARGEST} pixels")


def write_talking_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    width: int,
    height: int,
    fps: float,
    speech: MediaFile | np.ndarray | None = None,
    settings: EncoderSettings | None = None,
    note: SyntheticNote | None = None,
) -> int:
    """Write a video and its sound; `path` appears, or is replaced, when the video is complete.

    The folder of `path` is made if it is missing. Arguments, result and errors are those of `encode_talking_video`.
    """
    with staged_file(path) as scratch:
        return encode_talking_video(
            scratch, frames, width=width, height=height, fps=fps, speech=speech, settings=settings, note=note
        )


def encode_talking_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    width: int,
    height: int,
    fps: float,
    speech: MediaFile | np.ndarray | None = None,
    settings: EncoderSettings | None = None,
    note: SyntheticNote | None = None,
) -> int:
    """Encode a video and its sound into a scratch file: after an error a part of it is left.

    The same frames, speech and settings give the same bytes.

    Args:
        path: File to write; the name need not end in `.mp4`.
        frames: RGB uint8 `[height, width, 3]`, at least one; consumed one at a time.
        width: Width in pixels, even, `SMALLEST` to `LARGEST`.
        height: Height in pixels, even, `SMALLEST` to `LARGEST`.
        fps: Frames per second; frame `k` is shown from `k / fps` on.
        speech: Sound that begins with the first frame: an audio or video file (mono and stereo stay so, more channels
            become one), or float samples `[N]` at 16 kHz. It is cut where the last frame ends. None: no sound.
        settings: Quality and preset.
        note: Note in the file that the video is synthetic; None: it says nothing. It changes no frame.

    Returns:
        The number of frames.

    Raises:
        ValueError: A size or rate that cannot be encoded, no frame, or a file without audio.
        OSError: The file cannot be written (no space left, no permission).
    """
    check_video_size(width, height)
    if not 1 <= fps <= 240:
        raise ValueError(f"a video of {fps} frames per second cannot be encoded: it must be 1 to 240")
    rate = Fraction(fps).limit_denominator(1001)  # 29.97 becomes 30000/1001
    with contextlib.ExitStack() as stack:
        sound = None if speech is None else _open_sound(speech, stack)
        # A path, not a Python stream: PyAV loses errors in a stream's callbacks, and moving the index to the front
        # needs a file.
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        target = f"file:{path.absolute()}"
        container = stack.enter_context(av.open(target, "w", format="mp4", container_options=options))
        if note is not None:
            container.metadata["comment"] = note.comment
        count = _write(container, frames, (width, height), rate, sound, settings or EncoderSettings())
    # After the file is closed, which moves its index to the front.
    if note is not None:
        note.append(path)
    return count


def _write(
    container: OutputContainer,
    frames: Iterable[np.ndarray],
    size: tuple[int, int],
    rate: Fraction,
    sound: _Sound | None,
    settings: EncoderSettings,
) -> int:
    """Encode frames and sound into an open file; returns the number of frames."""
    width, height = size
    video = add_h264(container, size, rate, settings)
    audio = None if sound is None else _add_audio(container, sound)
    converter = PixelConverter()
    count = 0
    # Frame by frame, each with the sound until its end: the muxer holds back what is ahead of the other stream.
    for image in frames:
        assert image.shape == (height, width, 3) and image.dtype == np.uint8, f"{image.shape} {image.dtype}"
        frame = converter.yuv420(image)
        frame.pts, frame.time_base = count, 1 / rate
        container.mux(video.encode(frame))
        count += 1
        if sound is not None and audio is not None:
            for piece in sound.until(count / rate):
                container.mux(audio.encode(piece))
    if not count:
        raise ValueError("a video needs at least one frame")
    # What the encoders still hold.
    container.mux(video.encode(None))
    if audio is not None:
        container.mux(audio.encode(None))
    return count


def _add_audio(container: OutputContainer, sound: _Sound) -> AudioStream:
    stream = container.add_stream("aac", rate=sound.rate, layout=sound.layout)
    channels = 1 if sound.layout == "mono" else 2
    stream.codec_context.bit_rate = channels * (96_000 if sound.rate >= _WIDE_RATE else 48_000)
    return stream


class _Sound:
    """Sound from time 0 on, handed out piece by piece."""

    def __init__(self, frames: Iterator[AudioFrame], rate: int, layout: str) -> None:
        self.rate = rate
        self.layout = layout
        self._frames = frames
        self._held: AudioFrame | None = None

    def until(self, end_s: Fraction) -> Iterator[AudioFrame]:
        """The sound after the pieces that were handed out, up to `end_s`; nothing where the source has ended."""
        end = round(end_s * self.rate)
        while (frame := self._held or next(self._frames, None)) is not None:
            self._held = None
            # Three cases: the frame begins later (keep it), ends in time (pass it on), or has to be split.
            begin = cast(int, frame.pts)
            if begin >= end:
                self._held = frame
                return
            if begin + frame.samples <= end:
                yield frame
                continue
            yield self._part(frame, 0, end - begin)
            self._held = self._part(frame, end - begin, frame.samples)
            return

    def _part(self, frame: AudioFrame, first: int, end: int) -> AudioFrame:
        values = np.ascontiguousarray(frame.to_ndarray()[:, first:end])
        return _audio_frame(values, self.layout, self.rate, cast(int, frame.pts) + first)


def _audio_frame(values: np.ndarray, layout: str, rate: int, position: int) -> AudioFrame:
    """Float32 `[channels, N]` as a frame that begins at the sample `position`."""
    frame = AudioFrame.from_ndarray(values, format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
    return frame


def _open_sound(speech: MediaFile | np.ndarray, stack: contextlib.ExitStack) -> _Sound:
    """The sound of a file, which `stack` closes, or of samples `[N]` at 16 kHz."""
    if isinstance(speech, np.ndarray):
        return _Sound(_frames_of(speech), SAMPLE_RATE, "mono")
    with open_sound(speech) as (_, stream):
        if stream is None:
            raise UnreadableMediaError("no_audio", f"{name_of(speech)} has no audio stream")
        check_sound(name_of(speech), stream.rate, stream.channels)
        formats = {(stream.rate, stream.channels)}
    timeline = read_timeline(speech)
    mixes = read_mixes(speech, timeline)
    # Rate and channels may change on the way: the best of them, where AAC has it. More than two channels become one.
    formats |= {(rate, channels) for _, channels, rate in mixes}
    rate = max(rate for rate, _ in formats)
    rate = rate if rate in _AAC_RATES else _AAC_RATES[-1]
    channels = 2 if any(channels == 2 for _, channels in formats) else 1
    container, stream = stack.enter_context(open_sound(speech))
    assert stream is not None, "it was there"
    frames = sound_frames(container, stream, timeline, name_of(speech))
    runs = SoundRuns(frames, mixes, name_of(speech), rate=rate, channels=channels, end_s=math.inf)
    layout = "stereo" if channels == 2 else "mono"
    return _Sound(_from_zero(runs, layout, rate), rate, layout)


def _from_zero(runs: SoundRuns, layout: str, rate: int) -> Iterator[AudioFrame]:
    """Sound from the timeline's zero on: a late start is silence, what comes before is cut."""
    position = 0
    for number, piece in enumerate(runs.pieces()):
        if number == 0:
            position = runs.offset
            for begin in range(0, position, rate):
                silence = np.zeros((len(piece), min(rate, position - begin)), np.float32)
                yield _audio_frame(silence, layout, rate, begin)
        kept = piece[:, max(0, -position) :]
        if kept.shape[1]:
            yield _audio_frame(np.ascontiguousarray(kept), layout, rate, max(0, position))
        position += piece.shape[1]


def _frames_of(samples: np.ndarray) -> Iterator[AudioFrame]:
    """Frames of float samples `[N]` at 16 kHz."""
    step = SAMPLE_RATE // 10  # 0.1 s
    for begin in range(0, len(samples), step):
        values = samples[None, begin : begin + step].astype(np.float32)
        yield _audio_frame(np.ascontiguousarray(values), "mono", SAMPLE_RATE, begin)
