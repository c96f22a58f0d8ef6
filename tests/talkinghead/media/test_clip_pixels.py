"""The conversion of clips to RGB: against the formula in floating point, against swscale, and at its edges."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.media.clip import ClipConverter
from talkinghead.media.encode import encode_mp4
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.pixels import PixelConverter


def frame_of(luma: np.ndarray, blue: np.ndarray, red: np.ndarray, **tags: int) -> VideoFrame:
    """A yuv420p frame of these planes, with the tags of `encode.py` unless others are given."""
    height, width = luma.shape
    frame = VideoFrame(width, height, "yuv420p")
    for plane, values in zip(frame.planes, (luma, blue, red), strict=True):
        rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
        rows[: values.shape[0], : values.shape[1]] = values
        plane.update(rows.tobytes())
    frame.colorspace = tags.get("colorspace", Colorspace.ITU709)
    frame.color_range = tags.get("color_range", ColorRange.MPEG)
    return frame


def planes_of(seed: int, width: int, height: int, grain: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Planes of colours within RGB, in spots of `grain` pixels."""
    rgb = np.random.default_rng(seed).integers(40, 216, (height // grain + 2, width // grain + 2, 3))
    rgb = cv2.resize(rgb.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    luma = rgb @ (0.2126, 0.7152, 0.0722)
    blue, red = (rgb[..., 2] - luma) / 1.8556, (rgb[..., 0] - luma) / 1.5748
    planes = 16 + luma * 219 / 255, *(128 + chroma[::2, ::2] * 224 / 255 for chroma in (blue, red))
    return tuple(np.rint(plane).astype(np.uint8) for plane in planes)  # pyright: ignore[reportReturnType]


def expected(luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
    """BT.709 in floating point; chroma on even columns and between rows, linear between."""

    def full(chroma: np.ndarray) -> np.ndarray:
        height, width = luma.shape
        x, y = np.arange(width) / 2, np.arange(height) / 2 - 0.25
        columns = np.array([np.interp(x, np.arange(chroma.shape[1]), row) for row in chroma])
        return np.array([np.interp(y, np.arange(chroma.shape[0]), column) for column in columns.T]).T

    y, u, v = (luma - 16.0) * 255 / 219, (full(blue) - 128) * 255 / 224, (full(red) - 128) * 255 / 224
    rgb = np.stack([y + 1.5748 * v, y - 0.1873243 * u - 0.4681243 * v, y + 1.8556 * u], axis=-1)
    return np.clip(rgb, 0, 255)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), width=st.integers(8, 70), height=st.integers(8, 60), grain=st.sampled_from([2, 5, 16]))
def test_as_the_formula_says(seed: int, width: int, height: int, grain: int) -> None:
    planes = planes_of(seed, 2 * width, 2 * height, grain)  # any width: lines are longer than the image
    difference = ClipConverter().rgb(frame_of(*planes)) - expected(*planes)
    assert np.abs(difference).max() < 2.8  # chroma is rounded twice, and a step of blue counts for 2.1
    assert np.abs(difference).mean() < 0.6


@pytest.mark.parametrize("grain", [4, 16, 64])
def test_no_colour_is_shifted(grain: int) -> None:
    planes = planes_of(3, 512, 512, grain)
    image = ClipConverter().rgb(frame_of(*planes))
    assert np.abs((image - expected(*planes)).mean(axis=(0, 1))).max() < 0.05
    swscale = PixelConverter().rgb(frame_of(*planes), 512, 512)
    apart = image.astype(float) - swscale
    assert np.abs(apart.mean(axis=(0, 1))).max() < 0.05


def test_greys_stay_grey() -> None:
    luma = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    chroma = np.full((8, 128), 128, np.uint8)
    image = ClipConverter().rgb(frame_of(luma, chroma, chroma)).astype(float)
    assert (image == image[..., :1]).all() and (image == image[:1]).all()
    assert np.abs(image[0, :, 0] - np.clip((np.arange(256) - 16) * 255 / 219, 0, 255)).max() < 0.55
    assert image[0, 16, 0] == 0 and image[0, 235, 0] == 255


def test_into_the_place_that_was_given() -> None:
    frame = frame_of(*planes_of(1, 70, 54, 8))
    images = np.zeros((3, 54, 70, 3), np.uint8)
    converter = ClipConverter()
    converter.rgb(frame, out=images[1])
    assert np.array_equal(images[1], converter.rgb(frame))
    assert not images[[0, 2]].any()


@pytest.mark.parametrize(
    ("tags", "pixel_format"),
    [
        ({"colorspace": Colorspace.ITU601}, "yuv420p"),
        ({"color_range": ColorRange.JPEG}, "yuv420p"),
        ({"colorspace": 2}, "yuv420p"),  # unspecified
        ({}, "yuv444p"),
        ({}, "gray"),
    ],
)
def test_frames_from_elsewhere_are_left_to_swscale(tags: dict[str, int], pixel_format: str) -> None:
    frame = frame_of(*planes_of(2, 64, 48, 8), **tags)
    if pixel_format != "yuv420p":
        frame = frame.reformat(format=pixel_format)
    wanted = PixelConverter().rgb(frame, 64, 48)
    assert np.array_equal(ClipConverter().rgb(frame), wanted)
    out = np.empty_like(wanted)
    assert np.array_equal(ClipConverter().rgb(frame, out=out), wanted) and np.array_equal(out, wanted)


def test_odd_sizes_are_left_to_swscale() -> None:
    frame = VideoFrame.from_ndarray(np.full((31, 33, 3), 99, np.uint8), format="rgb24").reformat(format="yuv420p")
    frame.colorspace, frame.color_range = Colorspace.ITU709, ColorRange.MPEG
    assert np.array_equal(ClipConverter().rgb(frame), PixelConverter().rgb(frame, 33, 31))


def test_our_own_clips_take_the_fast_way(monkeypatch: pytest.MonkeyPatch, media: Path) -> None:
    with av.open(str(media / "video" / "Talking-Face_PC-AVS_00086.mp4")) as container:
        source = [f.to_ndarray(format="rgb24") for _, f in zip(range(4), container.decode(video=0), strict=False)]
    height, width = source[0].shape[:2]
    mp4 = encode_mp4(source, width, height, EncoderSettings())
    with av.open(BytesIO(mp4), "r") as container:
        frames = list(container.decode(video=0))
    exact = [PixelConverter().rgb(frame, width, height) for frame in frames]
    monkeypatch.setattr(PixelConverter, "rgb", None)
    ours = [ClipConverter().rgb(frame) for frame in frames]
    apart = np.array(ours, dtype=float) - np.array(exact)
    assert np.abs(apart.mean(axis=(0, 1, 2))).max() < 0.05 and np.abs(apart).mean() < 0.4
