"""Rows about decoding: PyAV, the default, against decord, on whole clips, on windows of them, and on a source."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from orchestration.bench.material import Material
from orchestration.bench.row import Row
from orchestration.bench.timing import in_turns, one_core
from talkinghead.media import clip, decord_frames
from talkinghead.media.decord_source import decord_frames as frames_by_decord
from talkinghead.media.encode import add_h264
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.media_file import open_media, video_stream
from talkinghead.media.pixels import PixelConverter
from talkinghead.media.video_source import VideoSource
from talkinghead.timebase import FPS

WINDOW = 16
"""Frames of a window, as stage 2 reads them."""
WINDOWS = 4
"""Windows that are read of each clip in a round."""
SOURCE_SIZE = 1920, 1080
"""Width and height of the source in pixels."""
SOURCE_FRAMES = 50
CROP = 600, 180, 1320, 900
"""Box of a face in the source, pixels."""
GOALS = {"decode_clip": 1.7, "decode_clip_plain": 1.2, "decode_window": 1.2, "decode_source": 1.5}
"""Cost of PyAV relative to decord's up to which it stays the default. True colours may cost more; with the same
pixels, and on the windows of training, no more than what turns of a busy machine differ by."""

_ENGINES = "CPU time, one decoding thread each, on one core; PyAV against decord"
_OTHER_COLOURS = ", decord's one level darker"


def decode_rows(material: Material, scratch: Path, repeats: int) -> list[Row]:
    """Measure all rows.

    Args:
        material: Clips to decode.
        scratch: Empty folder for the source.
        repeats: Number of rounds of each comparison.
    """
    clips = [(material.member(sample, "mp4"), sample.num_frames) for sample in material.chosen]
    with one_core():
        return [
            *_clips(clips, repeats),
            _windows(clips, repeats),
            _source(clips[0][0], scratch / "source.mp4", repeats),
        ]


def _clips(clips: list[tuple[bytes, int]], repeats: int) -> list[Row]:
    """Compare whole clips, with the colours that PyAV has here, and with those that decord has."""

    def reader(decode: Callable[[bytes], Iterator[np.ndarray]]) -> Callable[[int], None]:
        def read(_: int) -> None:
            for mp4, num_frames in clips:
                assert sum(1 for _ in decode(mp4)) == num_frames

        return read

    frames = sum(num_frames for _, num_frames in clips)
    what = f"{len(clips)} whole clips, {frames} frames"
    decord = reader(decord_frames.decode_clip)
    return [
        _compared("decode_clip", reader(clip.decode_clip), decord, frames, repeats, what + _OTHER_COLOURS),
        _compared("decode_clip_plain", reader(decode_plainly), decord, frames, repeats, what + ", the same pixels"),
    ]


def decode_plainly(mp4: bytes) -> Iterator[np.ndarray]:
    """Every frame of a clip as swscale converts it by default, RGB uint8 `[H, W, 3]`: decord's pixels, by PyAV."""
    converter = VideoReformatter()
    with open_media(io.BytesIO(mp4)) as container:
        for frame in container.decode(video_stream(container, "clip")):
            yield converter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def _windows(clips: list[tuple[bytes, int]], repeats: int) -> Row:
    # The same windows on both sides, new ones in each round; anywhere in a group of frames, as in training.
    def starts(turn: int) -> Iterator[tuple[bytes, int, int]]:
        draw = np.random.default_rng(turn)
        for mp4, num_frames in clips:
            count = min(WINDOW, num_frames)
            for first in draw.integers(0, num_frames - count + 1, WINDOWS):
                yield mp4, int(first), count

    def reader(decode: Callable[[bytes, int, int], np.ndarray]) -> Callable[[int], None]:
        def read(turn: int) -> None:
            for mp4, first, count in starts(turn):
                decode(mp4, first, count)

        return read

    frames = sum(count for _, _, count in starts(0))
    what = f"{WINDOWS * len(clips)} random windows of {WINDOW} frames, {frames} frames{_OTHER_COLOURS}"
    ours, theirs = reader(clip.decode_window), reader(decord_frames.decode_window)
    return _compared("decode_window", ours, theirs, frames, repeats, what)


def _source(mp4: bytes, path: Path, repeats: int) -> Row:
    """Compare the second pass of ingest, which cuts the face out of every frame, without scaling and encoding it."""
    frames = write_source(mp4, path)
    with VideoSource(path) as source:
        times = [frame.time_s for frame in source.frames()]
        assert len(times) == frames

        def ours(_: int) -> None:
            for frame in source.frames():
                frame.part(*CROP)

        def theirs(_: int) -> None:
            with frames_by_decord(path, source.info, source.timeline, times, damaged=0) as shown:
                for frame in shown:
                    frame.part(*CROP)

        width, height = SOURCE_SIZE
        what = (
            f"second pass over a source of {width}x{height}, {frames} frames, of each a face of 720x720{_OTHER_COLOURS}"
        )
        return _compared("decode_source", ours, theirs, frames, repeats, what)


def write_source(mp4: bytes, path: Path) -> int:
    """Write the first frames of a clip, enlarged, as a source of `SOURCE_SIZE`; returns their number."""
    converter, count = PixelConverter(), 0
    with av.open(str(path), "w") as container:
        stream = add_h264(container, SOURCE_SIZE, Fraction(FPS), EncoderSettings())
        for image in islice(clip.decode_clip(mp4), SOURCE_FRAMES):
            frame = converter.yuv420(cv2.resize(image, SOURCE_SIZE))
            frame.pts, frame.time_base = count, Fraction(1, FPS)
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count


def _compared(
    name: str, ours: Callable[[int], None], theirs: Callable[[int], None], frames: int, repeats: int, what: str
) -> Row:
    costs = in_turns({"pyav": ours, "decord": theirs}, repeats)
    return Row(
        name=name,
        ours=1000 * costs["pyav"].cpu / frames,
        baseline=1000 * costs["decord"].cpu / frames,
        unit="ms per frame",
        better="lower",
        goal=GOALS[name],
        note=f"{what}; {_ENGINES}",
    )
