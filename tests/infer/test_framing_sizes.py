"""Sizes of videos: wanted ones, refused ones, and how sides that are not given are chosen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.framing import frame_size, video_size


def sized(width: int | None = None, height: int | None = None, **settings: Any) -> tuple[int, int]:
    given: dict[str, Any] = {"trained": (512, 512), "aspect": None, "step": 64, "preview": False}
    return frame_size(width, height, **(given | settings))


def test_what_suits_the_rest() -> None:
    assert sized() == (512, 512) and sized(trained=(96, 128), step=32) == (96, 128)
    assert sized(768, 512) == (768, 512)
    assert sized(256) == (256, 256) and sized(height=640, trained=(256, 512)) == (320, 640)
    assert sized(aspect=16 / 9) == (704, 384), "about as many pixels as were trained"
    assert sized(256, aspect=0.5) == (256, 512)
    assert sized(preview=True) == (256, 256) and sized(1024, 512, preview=True) == (256, 128)
    assert sized(64, 64, preview=True) == (64, 64)
    assert sized(step=8) == (512, 512) and sized(aspect=16 / 9, step=8) == (680, 384)


@given(aspect=st.floats(0.2, 5), step=st.sampled_from([32, 64]), trained=st.integers(1, 12), preview=st.booleans())
def test_always_multiples(aspect: float, step: int, trained: int, preview: bool) -> None:
    side = trained * step
    width, height = sized(trained=(side, side), aspect=aspect, step=step, preview=preview)
    assert width > 0 and height > 0 and width % step == height % step == 0
    assert not preview or max(width, height) <= 256


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [(100, None, "--width is 100.*64 or 128"), (64, 65, "--height is 65.*64 or 128"), (1, None, "take 64")],
)
def test_refused(width: int | None, height: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sized(width, height)


def test_sizes_of_drawn_videos() -> None:
    assert video_size(653, 660, None, None) == (652, 660)
    assert video_size(653, 660, 512, None) == (512, 516)
    assert video_size(653, 660, None, 256) == (252, 256)
    assert video_size(653, 660, 512, 512) == (512, 512)
    for size in [(20, 10, None, None), (640, 480, 33, None), (640, 480, 20000, None), (640, 480, 64, 0)]:
        with pytest.raises(ValueError, match="--width"):
            video_size(*size)
