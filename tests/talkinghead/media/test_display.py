"""All eight orientations of a display matrix, in every way of reading a frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from talkinghead.media.display import ORIENTATIONS, UPRIGHT, Orientation, nearest_orientation
from talkinghead.media.media_file import probe
from talkinghead.media.video_source import VideoSource
from tests.support.display_matrices import MATRICES, Matrix, copied, fixed_point, with_track_matrix
from tests.support.media_files import write_video


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured squares of 8 pixels, 128 x 96, without any symmetry."""
    squares = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return write_video(tmp_path_factory.mktemp("display") / "plain.mp4", [squares] * 2, options={"crf": "1"})


def _first(file: Path) -> np.ndarray:
    with VideoSource(file) as source:
        return next(source.frames()).image


def _moved(image: np.ndarray, matrix: Matrix) -> np.ndarray:
    """The picture as the matrix's definition moves its pixels, one by one."""
    a, b, c, d = matrix
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    shown_x, shown_y = (a * x + c * y).astype(int), (b * x + d * y).astype(int)
    shown_x, shown_y = shown_x - shown_x.min(), shown_y - shown_y.min()
    shown = np.zeros((shown_y.max() + 1, shown_x.max() + 1, 3), np.uint8)
    shown[shown_y, shown_x] = image
    return shown


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_every_matrix_in_every_reading(plain: Path, tmp_path: Path, matrix: Matrix, suffix: str) -> None:
    copied(plain, tmp_path / f"copy.{suffix}")
    file = with_track_matrix(tmp_path / f"copy.{suffix}", tmp_path / f"turned.{suffix}", matrix)
    expected = _moved(_first(plain), matrix)
    with VideoSource(file) as source:
        height, width = expected.shape[:2]
        assert (source.info.width, source.info.height) == (width, height)
        frame = next(source.frames())
        np.testing.assert_array_equal(frame.image, expected)
        for x0, y0, x1, y1 in ((11, 22, 73, 90), (0, 0, width, height), (0, 40, 9, 41), (width - 30, 3, width, 31)):
            difference = frame.part(x0, y0, x1, y1).astype(int) - expected[y0:y1, x0:x1]
            assert np.abs(difference).max() <= 1, f"{x0, y0, x1, y1}"
        with VideoSource(plain) as unturned:
            reduced = _moved(next(unturned.frames()).reduced(64, 48), matrix)
        np.testing.assert_array_equal(frame.reduced(width // 2, height // 2), reduced)


def test_a_mirrored_file_without_a_turn_keeps_its_rotation(plain: Path, tmp_path: Path) -> None:
    """The fault: FFmpeg's angle of a left-right flip is 180°, which alone turns the picture upside down."""
    video = probe(with_track_matrix(plain, tmp_path / "v.mp4", (-1, 0, 0, 1))).video
    assert (video.rotation, video.mirrored) == (0, True)


def test_matroska(plain: Path, tmp_path: Path) -> None:
    for matrix in ((-1, 0, 0, 1), (0, 1, -1, 0)):
        file = copied(plain, tmp_path / "v.mkv", fixed_point(matrix))
        np.testing.assert_array_equal(_first(file), _moved(_first(plain), matrix))


def test_aspect_ratio_is_that_of_the_decoded_frame(plain: Path, tmp_path: Path) -> None:
    wide = write_video(tmp_path / "wide.mp4", [_first(plain)] * 2, aspect=Fraction(2), options={"crf": "1"})
    file = with_track_matrix(wide, tmp_path / "turned.mp4", (0, 1, 1, 0))
    with VideoSource(file) as source:
        assert (source.info.width, source.info.height) == (96, 256)
        frame = next(source.frames())
        np.testing.assert_array_equal(frame.image, _moved(_first(wide), (0, 1, 1, 0)))
        np.testing.assert_array_equal(frame.part(5, 30, 60, 99), frame.image[30:99, 5:60])


def test_the_container_wins_over_the_picture(plain: Path, tmp_path: Path) -> None:
    turn_in_picture = "h264_metadata=display_orientation=insert:rotate=180"
    picture_only = copied(plain, tmp_path / "picture.mp4", None, turn_in_picture)
    assert probe(picture_only).video.orientation == Orientation(180)
    both = copied(plain, tmp_path / "both.mp4", fixed_point((0, 1, -1, 0)), turn_in_picture)
    assert probe(both).video.orientation == Orientation(90)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_matrices_that_are_scaled_and_not_exact(orientation: Orientation) -> None:
    for scale in (0.5, 1, 720):
        for degrees in (-40, -5, 0, 5, 40):
            cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            matrix = scale * orientation.matrix() @ np.array([[cos, sin], [-sin, cos]])
            assert nearest_orientation(matrix) == orientation
    assert nearest_orientation(np.zeros((2, 2))) == UPRIGHT


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_box_and_an_image_go_together(orientation: Orientation) -> None:
    image = np.random.default_rng(1).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    upright = orientation.upright(image)
    x0, y0, x1, y1 = orientation.decoded_box(3, 5, 17, 14, 31, 20)
    np.testing.assert_array_equal(orientation.upright(image[y0:y1, x0:x1]), upright[5:14, 3:17])
