"""Crops: listed boxes, squares around faces, and what happens at the frame's border."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.crop import Crop, cut_out, face_crop, listed_crop, whole_frame
from ingest.faces import Sighting, Track
from ingest.settings import IngestSettings
from talkinghead.schema import CatalogRow

SETTINGS = IngestSettings()
NATIVE = IngestSettings(size=0)


def _row(box: tuple[float, float, float, float], width: float | None, height: float | None) -> CatalogRow:
    return CatalogRow(
        key="k", dataset="hdtf", source_id="s", source="s.mp4", box=box, box_width=width, box_height=height,
        split_group="g", licence="l",
    )  # fmt: skip


def _track(*boxes: tuple[float, float, float, float]) -> Track:
    return Track(tuple(Sighting(5 * i, box, 0.9) for i, box in enumerate(boxes)))


def _pixels(crop: Crop, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cut_out(lambda x0, y0, x1, y1: image[y0:y1, x0:x1], width, height, crop)


def test_listed_box_is_scaled_from_its_own_frame_size() -> None:
    row = _row((599, 0, 1011, 412), None, 720)
    assert listed_crop(row, 1280, 720, NATIVE).box == (599, 0, 1011, 412)
    assert listed_crop(row, 1920, 1080, NATIVE).box == (898, 0, 1516, 618)
    normalised = _row((0.25, 0.1, 0.5, 0.5444444), 1.0, 1.0)
    assert listed_crop(normalised, 1920, 1080, NATIVE).box == (480, 108, 960, 588)


def test_listed_box_that_leaves_the_frame_moves_inside_and_says_so() -> None:
    crop = listed_crop(_row((900, -30, 1300, 370), None, 720), 1280, 720, SETTINGS)
    assert crop.box == (880, 0, 1280, 400)
    assert crop.notes == ("box moved by -20, 30 px to lie inside the frame",)


def test_listed_box_larger_than_the_frame_shrinks_and_says_so() -> None:
    crop = listed_crop(_row((200, 0, 976, 776), None, 720), 1280, 720, SETTINGS)
    assert crop.box == (228, 0, 948, 720) and crop.width == crop.height == 512
    assert "larger than the frame" in crop.notes[0]


def test_listed_box_that_is_not_square() -> None:
    row = _row((100, 100, 400, 500), None, 720)
    assert listed_crop(row, 1280, 720, SETTINGS).box == (50, 100, 450, 500)
    native = listed_crop(row, 1280, 720, NATIVE)
    assert native.box == (100, 100, 400, 500) and (native.width, native.height) == (300, 400)


boxes = st.tuples(st.floats(-200, 2000), st.floats(-200, 1200), st.floats(1, 1500), st.floats(1, 1500))


@given(boxes, st.integers(64, 2000), st.integers(64, 1200), st.booleans())
def test_listed_crop_stays_inside_and_keeps_its_aspect(
    box: tuple[float, float, float, float], width: int, height: int, native: bool
) -> None:
    x, y, w, h = box
    crop = listed_crop(_row((x, y, x + w, y + h), None, 720), width, height, NATIVE if native else SETTINGS)
    assert 0 <= crop.x0 < crop.x1 <= max(2, width) and 0 <= crop.y0 < crop.y1 <= max(2, height)
    if not native:
        assert abs((crop.x1 - crop.x0) - (crop.y1 - crop.y0)) <= 1


def test_face_square_has_hdtf_framing() -> None:
    crop = face_crop(_track((900, 400, 1100, 600)), 0, 100, 1920, 1080, SETTINGS)
    assert crop.x1 - crop.x0 == crop.y1 - crop.y0 == 320
    assert (crop.x0 + crop.x1) / 2 == 1000
    assert 500 - crop.y0 == 0.6 * 320, "the face stands below the middle, so that hair is inside"


def test_face_square_covers_the_whole_piece_and_only_it() -> None:
    track = _track((900, 400, 1100, 600), (950, 420, 1150, 620), (100, 100, 300, 300))
    crop = face_crop(track, 0, 10, 1920, 1080, SETTINGS)
    assert crop.x1 - crop.x0 == 400 and crop.x0 <= 900 and crop.x1 >= 1150


def test_face_at_the_border_shifts_and_a_close_up_leaves_the_frame() -> None:
    shifted = face_crop(_track((0, 0, 200, 200)), 0, 10, 1920, 1080, SETTINGS)
    assert shifted.box == (0, 0, 320, 320)
    whole = face_crop(_track((100, 100, 400, 400)), 0, 10, 500, 500, SETTINGS)
    assert whole.box == (10, 0, 490, 480)
    tight = face_crop(_track((20, 40, 250, 262)), 0, 10, 256, 256, SETTINGS)
    assert tight.box == (0, 0, 256, 256)
    close = face_crop(_track((-10, 20, 310, 340)), 0, 10, 300, 400, SETTINGS)
    assert close.x1 - close.x0 == 320 and close.x0 == -10 and close.x1 == 310


@given(st.floats(-50, 1900), st.floats(-50, 1000), st.floats(10, 900), st.integers(64, 2000), st.integers(64, 1200))
def test_face_square_is_square_and_inside_when_it_can_be(x: float, y: float, size: float, width: int, height: int):
    crop = face_crop(_track((x, y, x + size, y + size)), 0, 10, width, height, SETTINGS)
    side = crop.x1 - crop.x0
    assert side == crop.y1 - crop.y0 >= 2
    if side <= min(width, height):
        assert crop.x0 >= 0 and crop.x1 <= width and crop.y0 >= 0 and crop.y1 <= height
    else:
        assert side <= size + 1, "only the face itself may be larger than the frame"


def test_pixels_are_the_box_and_the_border_is_repeated() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    assert np.array_equal(_pixels(Crop(10, 5, 42, 37, 32, 32, "box"), image), image[5:37, 10:42])
    out = _pixels(Crop(-8, 20, 56, 84, 64, 64, "face"), image)
    assert np.array_equal(out[:40, 8:], image[20:60, :56])
    assert (out[:40, :8] == image[20:60, :1]).all() and (out[40:] == out[39]).all()


def test_shrinking_averages() -> None:
    checker = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    small = _pixels(Crop(0, 0, 64, 64, 16, 16, "face"), checker)
    assert np.abs(small.astype(int) - 128).max() <= 1, "no aliasing"


def test_enlarging_keeps_the_mean() -> None:
    image = np.random.default_rng(0).integers(60, 180, (32, 32, 3), dtype=np.uint8)
    large = _pixels(Crop(0, 0, 32, 32, 128, 128, "face"), image)
    assert large.shape == (128, 128, 3) and abs(float(large.mean()) - image.mean()) < 1


def test_native_size_is_even_and_never_resized() -> None:
    crop = listed_crop(_row((10, 10, 61, 73), None, None), 80, 90, NATIVE)
    assert (crop.width, crop.height) == (50, 62)
    image = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    assert np.array_equal(_pixels(crop, image), image[10:72, 10:60])


def test_whole_frame_keeps_the_aspect() -> None:
    crop = whole_frame(1920, 1080, SETTINGS)
    assert (crop.width, crop.height) == (910, 512)
    assert whole_frame(255, 257, NATIVE).box == (0, 0, 254, 256)


@pytest.mark.parametrize(
    "wrong",
    [{"size": 63}, {"size": 32}, {"margin": 0.9}, {"face_center_y": 1.0}, {"max_frames": 40}, {"detect_every": 0}],
)
def test_settings_say_what_is_wrong(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IngestSettings(**wrong)  # pyright: ignore[reportArgumentType]


def test_celebv_hq_square_is_the_official_one() -> None:
    """The square has the box's shorter side and the integer centre of the rounded box, also at native size."""
    row = CatalogRow(
        key="celebv-hq-x",
        dataset="celebv-hq",
        source_id="x",
        source="x.mp4",
        box=(0.1764, 0.0, 0.7122, 0.9015),
        box_width=1.0,
        box_height=1.0,
        split_group="x",
        licence="research",
        attributes='{"box_square": "min"}',
    )
    for size in (512, 0):
        crop = listed_crop(row, 1920, 1080, IngestSettings(size=size))
        # round: x 339..1367, y 0..974; half = min(974, 1028) // 2 = 487; centre (853, 487)
        assert crop.box == (853 - 487, 0, 853 + 487, 974)
