from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from talkinghead.geometry.guidance import STROKES, draw_guidance

Golden = Callable[[str], dict[str, np.ndarray]]


def test_goldens_bit_for_bit(golden: Golden) -> None:
    data = golden("drawing")
    for case in (f"{number:02d}" for number in range(int(data["n"]))):
        width, height = map(int, data[f"{case}.size_wh"])
        points = data[f"{case}.points"]
        if not data[f"{case}.normalised"]:
            points = points / np.array([width, height])
        image = draw_guidance(points, width, height)
        np.testing.assert_array_equal(image, data[f"{case}.image"], err_msg=case)
        assert np.count_nonzero(image.any(axis=2)) == data[f"{case}.nonblack"]
        np.testing.assert_array_equal(image.sum(axis=(0, 1), dtype=np.int64), data[f"{case}.sum"])


def test_stroke_table() -> None:
    assert sum(len(stroke.segments) for stroke in STROKES) == 114
    assert len({stroke.colour for stroke in STROKES}) == 13
    upper = {stroke.colour for stroke in STROKES if "top" in stroke.name}
    lower = {stroke.colour for stroke in STROKES if "bottom" in stroke.name}
    assert len(upper) == len(lower) == 4 and not upper & lower
    edges = [tuple(sorted(edge)) for stroke in STROKES for edge in stroke.segments.tolist()]
    assert len(set(edges)) == len(edges)


def test_one_call_per_colour_equals_one_line_after_another() -> None:
    """Two-point polylines must stay exactly cv2.line in any OpenCV that is installed."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        lines = rng.integers(-20, 532, (40, 2, 2)).astype(np.int32)
        one, other = np.zeros((512, 512, 3), np.uint8), np.zeros((512, 512, 3), np.uint8)
        cv2.polylines(one, list(lines), False, (1, 2, 3), 2, cv2.LINE_8)
        for start, end in lines.tolist():
            cv2.line(other, end, start, (1, 2, 3), 2, cv2.LINE_8)
        np.testing.assert_array_equal(one, other)


def test_missing_face_and_far_points_draw_nothing() -> None:
    assert not draw_guidance(np.full((478, 3), np.nan), 64, 48).any()
    assert not draw_guidance(np.full((468, 2), 7.0), 64, 48).any()
    assert draw_guidance(np.full((468, 2), 0.5), 64, 48).shape == (48, 64, 3)
    far = np.full((468, 2), 0.5)
    far[:, 0] = 1e30
    assert not draw_guidance(far, 512, 512).any()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="468 or more"):
        draw_guidance(np.zeros((400, 2)), 512, 512)
    with pytest.raises(ValueError, match="512 x -1"):
        draw_guidance(np.zeros((468, 2)), 512, -1)


def test_coordinates_are_rounded_to_float32_before_the_pixel_is_chosen() -> None:
    """A float64 just under a pixel's border belongs to the pixel that its float32 names."""
    grid = np.random.default_rng(0).integers(50, 450, (468, 2)) / 512
    np.testing.assert_array_equal(draw_guidance(grid * (1 - 1e-11), 512, 512), draw_guidance(grid, 512, 512))
