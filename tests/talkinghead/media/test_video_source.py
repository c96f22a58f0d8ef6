"""Frames come out upright, with the right colours, at the right times, from any point on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead.media.video_source import VideoSource
from tests.support.media_files import flat, write_video


def _numbered(count: int, width: int = 64, height: int = 64) -> list[np.ndarray]:
    """Images whose grey level encodes their number."""
    return [flat(width, height, 20 + 4 * i) for i in range(count)]


def _number(image: np.ndarray) -> int:
    return round((float(image.mean()) - 20) / 4)


def _quadrants(width: int, height: int) -> np.ndarray:
    """Image of red, green / blue, white quadrants, which shows turns, mirrors, and wrong colours."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (200, 30, 30)
    image[: height // 2, width // 2 :] = (30, 200, 30)
    image[height // 2 :, : width // 2] = (30, 30, 200)
    image[height // 2 :, width // 2 :] = (220, 220, 220)
    return image


@pytest.mark.parametrize("start", [0.0, 0.1, 0.4, 0.79, 1.0, 1.92, 1.96])
def test_start_in_the_middle_gives_the_frame_shown_there(tmp_path: Path, start: float) -> None:
    file = write_video(tmp_path / "v.mp4", _numbered(50), options={"g": "10", "crf": "1"})
    with VideoSource(file) as source:
        frames = list(source.frames(start))
    shown = int(start * 25 + 1e-6)
    assert _number(frames[0].image) == shown
    assert [round(f.time_s * 25) for f in frames] == list(range(shown, 50))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_every_container_keeps_times(tmp_path: Path, suffix: str) -> None:
    file = write_video(tmp_path / f"v.{suffix}", _numbered(50), options={"g": "10", "crf": "1", "bf": "2"})
    with VideoSource(file) as source:
        first = next(source.frames(1.2))
        assert _number(first.image) == 30 and first.time_s == pytest.approx(1.2, abs=0.002)
        assert [_number(f.image) for f in source.frames()] == list(range(50))


@pytest.mark.parametrize(
    ("codec", "pixel_format", "options"),
    [
        ("libx264", "yuv420p", {"crf": "1"}),
        ("libx264", "yuv444p", {"crf": "1"}),
        ("libx265", "yuv420p10le", {"crf": "1", "x265-params": "log-level=none:pools=1"}),
        ("libsvtav1", "yuv420p", {"crf": "5", "preset": "10", "svtav1-params": "lp=1"}),
        ("libsvtav1", "yuv420p10le", {"crf": "5", "preset": "10", "svtav1-params": "lp=1"}),
    ],
)
def test_codecs_depths_and_colours(tmp_path: Path, codec: str, pixel_format: str, options: dict[str, str]) -> None:
    image = _quadrants(128, 96)
    file = write_video(tmp_path / "v.mp4", [image] * 3, codec=codec, pixel_format=pixel_format, options=options)
    with VideoSource(file) as source:
        decoded = next(source.frames()).image
    for y in (20, 70):
        for x in (25, 100):
            assert np.abs(decoded[y, x].astype(int) - image[y, x]).max() <= 3, f"colour at {x}, {y}"


def test_aspect_ratio_and_odd_sizes(tmp_path: Path) -> None:
    wide = write_video(tmp_path / "wide.mp4", [_quadrants(64, 64)] * 2, aspect=Fraction(2))
    with VideoSource(wide) as source:
        frame = next(source.frames())
        assert frame.image.shape == (64, 128, 3)
        assert frame.part(70, 3, 101, 30).shape == (27, 31, 3)
    odd = write_video(tmp_path / "odd.mkv", [_quadrants(65, 51)] * 2, pixel_format="yuv444p")
    with VideoSource(odd) as source:
        assert next(source.frames()).image.shape == (51, 65, 3)


def test_rotation_of_real_files(media: Path) -> None:
    with VideoSource(media / "derived" / "rot90.mp4") as turned:
        frame = next(turned.frames())
        image = frame.image
        part = frame.part(101, 33, 400, 578)
        assert np.abs(part.astype(int) - image[33:578, 101:400]).max() <= 3
        assert frame.reduced(100, 110).shape == (110, 100, 3)
    with VideoSource(media / "video" / "video-retalking_face_3.mp4") as upright:
        reference = next(upright.frames()).image
    assert np.abs(image.astype(int) - reference).mean() < 4, "the turned copy is upright like its source"


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_part_equals_the_slice_under_every_rotation(tmp_path: Path, degrees: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    plain = write_video(tmp_path / "plain.mp4", [noise] * 2, options={"crf": "1"})
    file = _with_rotation(plain, tmp_path / "turned.mp4", degrees)
    with VideoSource(file) as source:
        assert source.info.rotation == degrees
        frame = next(source.frames())
        assert np.abs(frame.image.astype(int) - np.rot90(_first(plain), -degrees // 90)).max() <= 2
        assert np.abs(frame.part(11, 22, 73, 90).astype(int) - frame.image[22:90, 11:73]).max() <= 3


def _first(file: Path) -> np.ndarray:
    with VideoSource(file) as source:
        return next(source.frames()).image


def _with_rotation(file: Path, out: Path, degrees: int) -> Path:
    """Write the display matrix into the track header (ISO/IEC 14496-12, tkhd: 16.16 and 2.30 fixed point)."""
    one = 0x10000
    rows = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    matrix = [rows[0], rows[1], 0, rows[2], rows[3], 0, 0, 0, 0x40000000]
    data = bytearray(file.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    out.write_bytes(data)
    return out


def test_corrupt_packet_is_counted_and_the_rest_used(media: Path) -> None:
    with VideoSource(media / "hard" / "decord_corrupted.mp4") as source:
        assert len(list(source.frames())) == 49
        assert source.broken_packets == 1


def test_file_that_ends_in_the_middle(tmp_path: Path) -> None:
    file = write_video(tmp_path / "v.ts", _numbered(50, 320, 320), options={"g": "5", "crf": "1", "bf": "0"})
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 6 // 10])
    with VideoSource(file) as source:
        numbers = [_number(f.image) for f in source.frames()]
    assert 20 <= len(numbers) < 50 and numbers[:-1] == list(range(len(numbers) - 1))


def test_unmarked_colour_is_bt601_below_720_lines(tmp_path: Path) -> None:
    file = tmp_path / "v.mp4"
    image = np.full((64, 64, 3), (200, 40, 40), np.uint8)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", dst_colorspace="itu601")
        frame.colorspace = 2
        for _ in range(2):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(_first(file)[32, 32].astype(int) - image[0, 0]).max() <= 3
