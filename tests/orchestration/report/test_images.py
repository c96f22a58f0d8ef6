"""Images: an even choice of samples, landmarks drawn where they are, sound as it is."""

from __future__ import annotations

import base64
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.report.images import EmbeddedImage, choose, draw_mesh, sound_envelope
from talkinghead.media.audio import encode_wav
from talkinghead.schema import SampleIndex
from tests.support.report_data import Clip
from tests.support.report_state import index_row


def row(number: int, group: int) -> SampleIndex:
    clip = Clip(key=f"k{number}", person=f"p{group}")
    made = index_row(clip, clip.made[0], number)
    return SampleIndex(**{**vars(made), "split_group": f"p{group}"})


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 12))
def test_a_choice_is_spread_over_groups_and_does_not_depend_on_the_order(groups: list[int], most: int) -> None:
    rows = [row(number, group) for number, group in enumerate(groups)]
    chosen = choose(rows, most)
    assert len(chosen) == min(most, len(rows))
    assert chosen == choose(rows[::-1], most)
    of_all, of_chosen = Counter(groups), Counter(int(entry.split_group[1:]) for entry in chosen)
    full = max(of_chosen.values(), default=0)
    assert all(count >= min(of_all[group], full - 1) for group in of_all for count in [of_chosen[group]])


def test_the_mesh_is_drawn_on_the_face_and_nowhere_else() -> None:
    points = np.random.default_rng(1).uniform(0.3, 0.6, (478, 3)).astype(np.float32)
    image = np.full((200, 100, 3), 128, np.uint8)
    changed = (draw_mesh(image, points) != image).any(axis=2)
    ys, xs = np.nonzero(changed)
    assert xs.min() >= 28 and xs.max() <= 62 and ys.min() >= 58 and ys.max() <= 122
    assert changed.mean() > 0.05


@pytest.mark.parametrize("points", [np.full((478, 3), np.nan), np.full((468, 3), 1e9)], ids=["no face", "far away"])
def test_points_that_cannot_be_drawn_are_left_out(points: np.ndarray) -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    assert (draw_mesh(image, points.astype(np.float32)) == image).all()


def test_a_model_without_irises_is_drawn_without_them() -> None:
    points = np.random.default_rng(1).uniform(0.2, 0.8, (478, 3)).astype(np.float32)
    points[468:] = np.nan
    image = np.zeros((64, 64, 3), np.uint8)
    assert (draw_mesh(image, points) == draw_mesh(image, points[:468])).all()


def test_the_envelope_follows_the_sound() -> None:
    samples = np.zeros(16_000, np.float32)
    samples[8_000:12_000] = 0.25 * np.sin(np.arange(4_000) * 0.3)
    envelope = sound_envelope(encode_wav(samples), 100)
    assert envelope.shape == (100,)
    assert envelope[:50].max() == 0 and envelope[76:].max() == 0
    assert envelope[50:75].min() > 0.9
    assert sound_envelope(encode_wav(np.full(640, 0.0005, np.float32))).max() < 0.1  # silence stays flat
    assert len(sound_envelope(encode_wav(np.zeros(0, np.float32)))) == 0


def test_an_image_is_red_where_the_array_was() -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[..., 0] = 200
    image = EmbeddedImage.of(pixels)
    kind, text = image.uri.split(",")
    assert (kind, image.width, image.height) == ("data:image/webp;base64", 48, 32)
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded[16, 24, 2] > 150 > decoded[16, 24, 0]
