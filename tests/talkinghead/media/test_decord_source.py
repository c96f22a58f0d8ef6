"""Sources read with decord: the frames that PyAV shows at the same times; whatever is not plain is refused."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead.media import decord_source
from talkinghead.media.decord_source import decord_frames
from talkinghead.media.video_source import VideoSource
from tests.support.damaged_clock import number_of, numbered, numbered_video, restamp_mkv
from tests.support.damaged_packets import moving_scene
from tests.support.media_files import write_video

VARIABLE = [int(tick) for tick in np.cumsum(np.random.default_rng(0).integers(20, 120, 40))]
"""Time stamps of a variable rate, milliseconds."""


def variable(path: Path) -> Path:
    options = {"g": "10", "crf": "1", "bf": "2"}
    return write_video(path, numbered(40), ticks=VARIABLE, time_base=Fraction(1, 1000), options=options)


def read(file: Path, damaged: int = 0) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """Time and number of each frame, by PyAV and by decord."""
    with VideoSource(file) as source:
        ours = [(frame.time_s, number_of(frame.image)) for frame in source.frames()]
        times = [time_s for time_s, _ in ours]
        with decord_frames(file, source.info, source.timeline, times, damaged=damaged) as frames:
            size = source.info.width, source.info.height
            return ours, [(frame.time_s, number_of(frame.part(0, 0, *size))) for frame in frames]


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: numbered_video(folder / "b_frames.mp4", 60, bf=2),
        lambda folder: numbered_video(folder / "sound.mkv", 60, bf=2, sound=True),
        lambda folder: variable(folder / "variable.mp4"),
        lambda folder: variable(folder / "variable.mkv"),
        lambda folder: write_video(folder / "vp9.webm", numbered(30), codec="libvpx-vp9", options={"crf": "10"}),
        lambda folder: write_video(folder / "30.mp4", numbered(30), rate=Fraction(30000, 1001), options={"crf": "1"}),
    ],
    ids=["b_frames", "sound", "variable_mp4", "variable_mkv", "vp9", "29.97"],
)
def test_every_time_shows_the_same_frame(make: Callable[[Path], Path], tmp_path: Path) -> None:
    ours, theirs = read(make(tmp_path))
    assert theirs == ours and len({number for _, number in ours}) == len(ours)


def test_some_frames_only_and_one_object_for_one_that_stays(tmp_path: Path) -> None:
    file = variable(tmp_path / "variable.mp4")
    with VideoSource(file) as source:
        ours = [(frame.time_s, number_of(frame.image)) for frame in source.frames()]
        wanted = [ours[number] for number in (3, 3, 17, 18, 18, 39)]
        times = [time_s for time_s, _ in wanted]
        with decord_frames(file, source.info, source.timeline, times, damaged=0) as frames:
            got = list(frames)
            # Also in another order than that of the file, though slower.
            numbers = [number_of(frame.part(0, 0, 64, 64)) for frame in reversed(got)]
    assert numbers[::-1] == [number for _, number in wanted]
    assert [a is b for a, b in pairwise(got)] == [True, False, False, True, False]


def test_pixels_are_those_of_plain_swscale(tmp_path: Path) -> None:
    file = write_video(tmp_path / "scene.mp4", moving_scene(12, 200, 120))
    with av.open(str(file)) as container:
        wanted = [frame.to_ndarray(format="rgb24")[10:100, 20:150] for frame in container.decode(video=0)]
    with VideoSource(file) as source:
        times = [frame.time_s for frame in source.frames()]
        with decord_frames(file, source.info, source.timeline, times, damaged=0) as frames:
            assert all(np.array_equal(f.part(20, 10, 150, 100), w) for f, w in zip(frames, wanted, strict=True))


def refused(file: Path, damaged: int = 0) -> str:
    with (
        VideoSource(file) as source,
        pytest.raises(ValueError, match=r"cannot be read with decord: .*; take engine=pyav") as told,
        decord_frames(file, source.info, source.timeline, [source.info.start_s], damaged=damaged) as frames,
    ):
        next(frames)
    assert file.name in str(told.value) and "\n" not in str(told.value)
    return str(told.value)


def test_damage_and_jumps_are_refused(tmp_path: Path) -> None:
    file = numbered_video(tmp_path / "a.mkv", 60)
    assert "3 of its frames or packets are damaged" in refused(file, damaged=3)
    restamp_mkv(file, lambda _, number, stamp: stamp + 10_000 if number >= 30 else stamp)
    assert "its clock jumps" in refused(file)


def test_images_that_decord_shows_otherwise_are_refused(tmp_path: Path) -> None:
    scene = moving_scene(8, 128, 64)
    aspect = write_video(tmp_path / "aspect.mp4", scene, aspect=Fraction(4, 3))
    assert "its pixels are not square" in refused(aspect)
    deep = write_video(tmp_path / "deep.mp4", scene, pixel_format="yuv420p10le")
    assert "its pixel format is yuv420p10le" in refused(deep)
    full = write_video(tmp_path / "full.mp4", scene, options={"x264-params": "fullrange=on"})
    assert "full range" in refused(full) or "yuvj420p" in refused(full)
    matrix = write_video(tmp_path / "matrix.mp4", scene, options={"x264-params": "colormatrix=smpte240m"})
    assert "neither BT.709's matrix nor BT.601's" in refused(matrix)


def test_turned_images_are_refused(tmp_path: Path) -> None:
    from tests.support.display_matrices import copied, fixed_point

    plain = write_video(tmp_path / "plain.mp4", moving_scene(8, 128, 64))
    turned = copied(plain, tmp_path / "turned.mp4", fixed_point((0, 1, -1, 0)))
    assert "turned or mirrored" in refused(turned)


def test_files_whose_images_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = numbered_video(tmp_path / "a.mp4", 60)
    monkeypatch.setattr(decord_source, "HELD_BYTES", 59 * 3 * 64 * 64)
    assert "all its frames together have more than" in refused(file)


def test_a_time_that_no_packet_has_is_refused(tmp_path: Path) -> None:
    file = numbered_video(tmp_path / "a.mp4", 30)
    with (
        VideoSource(file) as source,
        pytest.raises(ValueError, match=r"no packet has the time of its frame at 0.050 s"),
        decord_frames(file, source.info, source.timeline, [0.05], damaged=0) as frames,
    ):
        next(frames)
