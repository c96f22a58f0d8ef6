"""Interlaced video: found by its fields and not by its flag, and read as one picture a frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead.media.deinterlace import FieldOrder, deinterlaced, field_motion, field_order
from talkinghead.media.media_file import probe
from talkinghead.media.pixels import FAST, PixelConverter
from talkinghead.media.video_source import VideoSource
from tests.support.interlaced_video import HEIGHT, WIDTH, flagged, moments, planes, woven, write_fields

STILL_LINES = slice(4, 28)  # of the stripes that do not move
KINDS = [
    ("v.mp4", "libx264", "tff", True),
    ("v.mp4", "libx264", "bff", False),
    ("v.mkv", "libx264", None, True),
    ("v.mkv", "libx264", None, False),
    ("v.mpg", "mpeg2video", "tff", True),
    ("v.ts", "mpeg2video", "bff", False),
]


def _decoded(file: Path) -> list[av.VideoFrame]:
    with av.open(str(file)) as container:
        return list(container.decode(video=0))


def _whole(frames: Iterable[av.VideoFrame], order: FieldOrder | None) -> list[av.VideoFrame]:
    """The deinterlaced frames; each has to keep the mark that came with it."""
    marked = list(deinterlaced(((frame, number) for number, frame in enumerate(frames)), order))
    assert [number for _, number in marked] == list(range(len(marked)))
    return [frame for frame, _ in marked]


def _image(frame: av.VideoFrame) -> np.ndarray:
    return PixelConverter().rgb(frame, WIDTH, HEIGHT)


def _error(images: Sequence[np.ndarray], truth: Sequence[np.ndarray], lines: slice = slice(None)) -> float:
    """Mean absolute difference in levels."""
    pairs = zip(images, truth, strict=True)
    return float(np.mean([np.abs(one.astype(int) - two)[lines].mean() for one, two in pairs]))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return moments(60)


@pytest.mark.parametrize(("name", "codec", "flag", "top_first"), KINDS)
def test_woven_fields_become_the_picture_of_the_first(
    tmp_path: Path, pictures: list[np.ndarray], name: str, codec: str, flag: str | None, top_first: bool
) -> None:
    """With or without a flag. The error against the true pictures is 16 levels woven, 4 to 5 here, and 4 by coding."""
    file = write_fields(tmp_path / name, woven(pictures, top_first), flag, codec)
    video = probe(file).video
    assert video.interlaced and video.field_order == ("top" if top_first else "bottom")
    frames = _decoded(file)
    result = _whole(frames, video.field_order)
    assert [(one.pts, one.duration, one.key_frame) for one in result] == [
        (one.pts, one.duration, one.key_frame) for one in frames
    ]
    truth = pictures[0::2]
    assert _error([_image(frame) for frame in frames], truth) > 12
    images = [_image(frame) for frame in result]
    assert _error(images, truth) < 5.5
    assert _error(images, truth, STILL_LINES) < 2, "what stands still stays sharp"
    teeth = [field_motion(*pair) for pair in pairwise(result)]
    assert max(motion.within for motion in teeth if motion is not None) < 0.5, "they were 6 to 7 levels long"


@pytest.mark.parametrize(("name", "codec"), [("v.mp4", "libx264"), ("v.mpg", "mpeg2video")])
def test_progressive_video_with_a_flag_stays_sharp(
    tmp_path: Path, pictures: list[np.ndarray], name: str, codec: str
) -> None:
    frames = [planes(picture) for picture in pictures[:30]]
    lying = write_fields(tmp_path / name, frames, "tff", codec)
    assert _decoded(lying)[3].interlaced_frame
    assert not probe(lying).video.interlaced
    plain = write_fields(tmp_path / f"plain_{name}", frames, None, codec)
    with VideoSource(lying) as one, VideoSource(plain) as two:
        flags = [frame.image for frame in one.frames()]
        truth = [frame.image for frame in two.frames()]
        assert _error(flags, truth) < 1, "the other encoding; fields scaled one by one differ by more"


def test_a_flag_alone_changes_no_pixel(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    """Swscale converts and scales the fields of a flagged frame one by one; by then they are one picture."""
    same = _decoded(write_fields(tmp_path / "v.mp4", [planes(picture) for picture in pictures[:8]], None))[5]
    frame = flagged(same, "tff")
    assert frame.interlaced_frame and not same.interlaced_frame
    converter = PixelConverter()
    np.testing.assert_array_equal(converter.rgb(frame, WIDTH, HEIGHT), converter.rgb(same, WIDTH, HEIGHT))
    np.testing.assert_array_equal(converter.rgb(frame, 96, 64, FAST), converter.rgb(same, 96, 64, FAST))
    np.testing.assert_array_equal(converter.rgb_part(frame, 20, 11, 90, 77), converter.rgb_part(same, 20, 11, 90, 77))


def test_ordinary_video_is_not_touched(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    file = write_fields(tmp_path / "v.mp4", [planes(picture) for picture in pictures[:20]], None)
    assert not probe(file).video.interlaced
    frames = _decoded(file)
    assert all(one is two for one, two in zip(_whole(frames, None), frames, strict=True))
    taken: list[int] = []

    def counted() -> Iterator[av.VideoFrame]:
        for number, frame in enumerate(frames):
            taken.append(number)
            yield frame

    assert field_order(counted(), flagged=False) is None
    assert len(taken) <= 5, "few frames are looked at"


def test_a_flagged_file_that_begins_still(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    """The flag counts until something moves; frames whose fields fit are kept as they are, the others are not."""
    still = [pictures[0]] * 120
    begins_still = write_fields(tmp_path / "v.mp4", woven(still + pictures, True), "tff")
    video = probe(begins_still).video
    assert video.field_order == "flagged"
    frames = _whole(_decoded(begins_still), video.field_order)
    assert _error([_image(frame) for frame in frames[60:]], pictures[0::2]) < 5.5
    # The same flag, and progressive: what moves stays as it is.
    decoded = _decoded(write_fields(tmp_path / "p.mp4", [planes(p) for p in (still[:60] + pictures[:20])], "tff"))
    kept = [one is two for one, two in zip(_whole(decoded, "flagged"), decoded, strict=True)]
    assert all(kept[60:])


def test_a_cut_does_not_let_teeth_through(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    """At a cut both mixtures of fields are worse than any frame, as in progressive video."""
    other = [255 - picture[:, ::-1] for picture in moments(20, 5.0)]
    sequence = pictures[:20] + other
    file = write_fields(tmp_path / "v.mp4", woven(sequence, True), "tff")
    images = [_image(frame) for frame in _whole(_decoded(file), "top")]
    errors = [np.abs(one.astype(int) - two).mean() for one, two in zip(images, sequence[0::2], strict=True)]
    assert max(errors) < 7, np.round(errors, 1)


def test_film_spread_over_more_frames(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    """Telecine: of five frames two are woven from two pictures; they come out whole, all keep their times."""
    fields: list[np.ndarray] = []
    for number in range(0, 40, 2):  # 24 pictures a second as 3 and 2 fields by turns
        fields += [pictures[number]] * (3 if number % 4 == 0 else 2)
    file = write_fields(tmp_path / "v.mp4", woven(fields, True), "tff")
    video = probe(file).video
    assert video.interlaced
    images = [_image(frame) for frame in _whole(_decoded(file), video.field_order)]
    assert _error(images, fields[0::2]) < 5.5


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_frames(pictures: list[np.ndarray], count: int) -> None:
    frames = [av.VideoFrame.from_ndarray(array, format="yuv420p") for array in woven(pictures[:6], True)][:count]
    for number, frame in enumerate(frames):
        frame.pts = 7 - number
    assert [frame.pts for frame in _whole(frames, "top")] == [7 - number for number in range(count)]
    assert field_order(frames, flagged=False) is None


def test_size_and_format_may_change(pictures: list[np.ndarray]) -> None:
    frames = [av.VideoFrame.from_ndarray(array, format="yuv420p") for array in woven(pictures[:20], True)]
    frames[3:5] = [frame.reformat(width=96, height=64) for frame in frames[3:5]]
    frames[7:] = [frame.reformat(format="yuv422p10le") for frame in frames[7:]]
    for number, frame in enumerate(frames):
        frame.pts = number
    result = _whole(frames, "top")
    assert [(one.width, one.format.name, one.pts) for one in result] == [
        (one.width, one.format.name, one.pts) for one in frames
    ]


def test_ten_bits(pictures: list[np.ndarray]) -> None:
    eight = [av.VideoFrame.from_ndarray(array, format="yuv420p") for array in woven(pictures, False)]
    ten = [frame.reformat(format="yuv422p10le") for frame in eight]
    assert field_order(eight, flagged=False) == field_order(ten, flagged=False) == "bottom"


def test_a_source_gives_whole_pictures(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    """From the start, and from a point in the middle."""
    file = write_fields(tmp_path / "v.ts", woven(pictures, True), "tff", "mpeg2video")
    with VideoSource(file) as source:
        frames = list(source.frames())
        assert _error([frame.image for frame in frames], pictures[0::2]) < 5.5
        assert np.diff([frame.time_s for frame in frames]) == pytest.approx(0.04)
        late = list(source.frames(frames[20].time_s))
        np.testing.assert_array_equal(late[0].image, frames[20].image)
