"""Pasted mouths: the video's own pixels around them, the video again where the frame is its own, colours, measures."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.dubbing.mouth_paste import BORDER, MouthPaste, PasteArea
from talkinghead.face.portrait import Crop
from talkinghead.geometry.face_regions import BROWS, EYES, LIPS, LOWER_FACE
from tests.support.motions import a_motion

MOTION = a_motion(30, 3)
POINTS = MOTION.landmarks()


def scene(seed: int = 0, width: int = 320, height: int = 240) -> np.ndarray:
    """A smooth image with texture, RGB uint8."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def box(image: np.ndarray, x0: int = 40, y0: int = 10, x1: int = 280, y1: int = 230) -> Crop:
    return Crop(x0=x0, y0=y0, x1=x1, y1=y1, image_width=image.shape[1], image_height=image.shape[0])


@given(one=st.integers(0, 29), other=st.integers(0, 29))
def test_the_area_is_the_lower_face_of_both(one: int, other: int) -> None:
    """Lips and jaw of both are inside; eyes and brows, and the box's border, are not touched."""
    width, height = 240, 220
    area = PasteArea.of(POINTS[one], POINTS[other], width, height)
    size = (width, height)
    for points in (POINTS[one], POINTS[other]):
        pixels = np.rint(points * size).astype(int)
        inside = pixels[((pixels > 20) & (pixels < np.array(size) - 20)).all(axis=1)]
        lower = [v for v in LOWER_FACE if (pixels[v] == inside).all(axis=1).any()]
        assert len(lower) > 100 and set(LIPS) <= set(lower)
        assert (area.weight[pixels[lower, 1], pixels[lower, 0]] > 0.9).all()
    upper = np.rint(POINTS[one][[*EYES, *BROWS]] * size).astype(int)
    assert (area.weight[upper[:, 1], upper[:, 0]] == 0).all()
    for edge in (area.weight[0], area.weight[-1], area.weight[:, 0], area.weight[:, -1]):
        assert (edge == 0).all()
    assert not (area.skin & (area.weight > 0)).any() and area.skin.sum() > 100
    # From 1 to 0 over the border, without a step of more than a smoothstep's steepest.
    tall = np.ptp(POINTS[one][:, 1]) * height
    steepest = 1.5 / max(2.0, BORDER * tall)
    for axis in (0, 1):
        assert np.abs(np.diff(area.weight, axis=axis)).max() <= 1.6 * steepest


def test_around_the_mouth_every_pixel_is_the_videos() -> None:
    """PSNR is infinite outside of the mask, whatever was rendered; inside, it is the rendered frame."""
    paste = MouthPaste()
    for number in range(4):
        image, crop = scene(number), box(scene())
        rendered = scene(100 + number, 64, 64)
        result = paste(image, rendered, crop, before=POINTS[number], after=POINTS[number + 9])
        area = PasteArea.of(POINTS[number], POINTS[number + 9], crop.width, crop.height)
        touched = np.zeros(image.shape[:2], bool)
        touched[crop.y0 : crop.y1, crop.x0 : crop.x1] = area.weight > 0
        np.testing.assert_array_equal(result[~touched], image[~touched])
        assert (result[touched] != image[touched]).mean() > 0.9
    assert paste.report.frames == 4


@pytest.mark.parametrize("beyond", [False, True])
def test_the_videos_own_crop_gives_the_video_back(beyond: bool) -> None:
    """A renderer that returns the original box changes no pixel by more than a grey level."""
    paste = MouthPaste()
    for number in range(5):
        image = scene(number)
        crop = box(image, -30, 60, 210, 280) if beyond else box(image)
        result = paste(image, crop.cut(image), crop, before=POINTS[number], after=POINTS[number + 9])
        assert np.abs(result.astype(int) - image).max() <= 1
    found = paste.report.describe()
    assert found["seam"] == pytest.approx(found["seam_untouched"], rel=0.01)
    assert found["sharpness_ratio"] == pytest.approx(1, abs=0.01)
    assert found["sharpness_skin"] == pytest.approx(1, abs=0.01) and paste.report.mismatch() is None
    assert found["colour_rendered"] == 0


def test_colours_are_matched() -> None:
    """A rendered frame that is darker, redder and flatter comes out in the video's colours."""
    paste, image = MouthPaste(), scene(1)
    crop = box(image)
    off = np.rint(crop.cut(image) * (0.7, 0.6, 0.55) + (50, 10, 5)).astype(np.uint8)
    result = paste(image, off, crop, before=POINTS[0], after=POINTS[0])
    area = PasteArea.of(POINTS[0], POINTS[0], crop.width, crop.height)
    inside = np.zeros(image.shape[:2], bool)
    inside[crop.y0 : crop.y1, crop.x0 : crop.x1] = area.inside
    assert np.abs(result[inside].mean(axis=0) - image[inside].mean(axis=0)).max() < 2
    assert np.abs(result[inside].astype(int) - image[inside]).mean() < 3
    found = paste.report.describe()
    assert found["colour_rendered"] is not None and found["colour_rendered"] > 20
    assert found["colour_matched"] is not None and found["colour_matched"] < 1


def test_matched_colours_do_not_flicker() -> None:
    """A rendered frame whose brightness jumps is brought over within frames; after a gap at once."""
    image = scene(2)
    crop = box(image)
    own = crop.cut(image)
    dark = (own * 0.5).astype(np.uint8)
    paste = MouthPaste()
    area = PasteArea.of(POINTS[0], POINTS[0], crop.width, crop.height)
    means = []
    for rendered in (own, dark, own, dark):
        result = paste(image, rendered, crop, before=POINTS[0], after=POINTS[0])
        means.append(crop.cut(result)[area.inside].mean())
    # Each jump of the renderer stays one: no statistics of a single frame undo it.
    assert means[0] - means[1] > 10 and means[2] - means[3] > 10
    paste.skip()
    result = paste(image, dark, crop, before=POINTS[0], after=POINTS[0])
    assert abs(crop.cut(result)[area.inside].mean() - means[0]) < 2


def test_a_soft_mouth_and_a_hard_seam_are_measured() -> None:
    grain = np.random.default_rng(0).integers(-20, 21, (240, 320, 1))
    image = np.clip(scene(4) // 2 + 60 + grain, 0, 255).astype(np.uint8)
    crop = box(image)
    own = crop.cut(image)
    soft, torn = MouthPaste(), MouthPaste()
    soft(image, cv2.GaussianBlur(own, (0, 0), 1.5), crop, before=POINTS[0], after=POINTS[0])
    measured = soft.report.describe()
    for name in ("sharpness_ratio", "sharpness_skin"):
        ratio = measured[name]
        assert ratio is not None and ratio < 0.3
    stripes = np.where(np.arange(own.shape[1]) % 8 < 4, 0.3, 1.0)[None, :, None]
    checked = (own * stripes).astype(np.uint8)
    torn(image, checked, crop, before=POINTS[0], after=POINTS[0])
    found = torn.report.describe()
    assert found["seam"] is not None and found["seam_untouched"] is not None
    assert found["seam"] > 1.3 * found["seam_untouched"]


@pytest.mark.parametrize(
    ("blur", "grain", "words"),
    [
        (0.3, 0, None),
        (1.0, 0, r"has 0\.\d+ of the sharpness of the video around it \(softer, below 0\.5"),
        (0.3, 40, r"has \d[\d.]* of the sharpness of the video around it \(sharper, above 2"),
    ],
)
def test_a_renderer_that_is_too_soft_or_too_sharp_is_said(blur: float, grain: int, words: str | None) -> None:
    """Whatever the mouth does: it is compared on the skin, where both show the same."""
    draws = np.random.default_rng(0)
    image = np.clip(scene(4) // 2 + 60 + draws.integers(-20, 21, (240, 320, 1)), 0, 255).astype(np.uint8)
    crop, paste = box(image), MouthPaste()
    rendered = cv2.GaussianBlur(crop.cut(image), (0, 0), blur).astype(int)
    rendered = np.clip(rendered + draws.integers(-grain, grain + 1, (*rendered.shape[:2], 1)), 0, 255).astype(np.uint8)
    rendered[150:190, 90:150] = 20  # a mouth wide open, where the video's is shut
    for number in range(3):
        paste(image, rendered, crop, before=POINTS[number], after=POINTS[number])
    found = paste.report.mismatch()
    assert (found is None) if words is None else (found is not None and re.search(words, found)), found


def test_a_mouth_beyond_the_image_is_left_alone() -> None:
    image = scene(5)
    paste = MouthPaste()
    result = paste(image, scene(6), box(image), before=POINTS[0] + 3, after=POINTS[0] + 3)
    np.testing.assert_array_equal(result, image)
    assert paste.report.frames == 0 and paste.report.describe()["seam"] is None and paste.report.mismatch() is None
