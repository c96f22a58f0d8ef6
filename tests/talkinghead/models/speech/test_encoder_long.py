"""Long speech in windows: frames stay where they belong, and the blend hides the seams."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.speech.encoder import encode_long, frame_rate, num_frames, window_spans

RATES = st.sampled_from([24.0, 25.0, 29.97, 30.0, 30000 / 1001])


@settings(deadline=None)
@given(st.integers(1, 40_000), RATES, st.sampled_from([6.0, 20.0]), st.sampled_from([0.5, 2.0]))
def test_windows_cover_all_frames_overlap_alike_and_begin_on_samples(
    total: int, fps: float, window_s: float, overlap_s: float
) -> None:
    spans = window_spans(total, fps, window_s, overlap_s)
    assert (spans[0][0], spans[-1][1]) == (0, total)
    overlaps = {end - first for (_, end), (first, _) in pairwise(spans)}
    assert len(overlaps) <= 1
    assert all(abs(overlap - overlap_s * fps) <= 15 for overlap in overlaps)
    if fps != 29.97:  # there a frame begins on a whole sample every 2997 frames only
        assert all((first * 16000 / frame_rate(fps)).denominator == 1 for first, _ in spans)
    assert all(end - first <= window_s * fps for first, end in spans)
    assert all(third >= end for (_, end), (third, _) in zip(spans, spans[2:], strict=False)), "at most two at a time"
    if len(spans) > 1:
        assert min(end - first for first, end in spans) > window_s * fps / 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 600_000), RATES)
def test_every_frame_keeps_its_own_samples(count: int, fps: float) -> None:
    """An encoder that returns the time of each frame must give the same from windows as from the whole."""
    per_frame = 16000 / frame_rate(fps)

    def times(samples: torch.Tensor, frames: int) -> torch.Tensor:
        assert abs(frames - num_frames(samples.shape[1], fps)) <= (fps == 29.97)
        at = torch.arange(frames) * per_frame.numerator // per_frame.denominator
        return samples[:, at].unsqueeze(-1)

    samples = torch.arange(count, dtype=torch.float64)
    out = encode_long(times, samples, fps, window_s=6.0, overlap_s=1.0)
    exact = 1.0 if fps == 29.97 else 1e-6
    torch.testing.assert_close(out, times(samples[None], num_frames(count, fps))[0], rtol=0, atol=exact)


def test_the_blend_rises_evenly_over_the_overlap() -> None:
    calls = iter([0.0, 1.0])

    def constant(samples: torch.Tensor, frames: int) -> torch.Tensor:
        return torch.full((1, frames, 2, 3), next(calls))

    out = encode_long(constant, torch.zeros(9 * 16000), 25.0, window_s=6.0, overlap_s=2.0)[:, 1, 2]
    (_, end), (first, _) = window_spans(225, 25.0, 6.0, 2.0)
    assert not out[:first].any()
    assert (out[end:] == 1).all()
    torch.testing.assert_close(out[first:end], torch.arange(1, 51) / 51)


def test_one_window_is_one_pass(tiny: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Audio2Mesh(tiny, num_vertices=5).eval()
    torch.nn.init.normal_(model.out_fn.weight)
    samples = torch.randn(70_001)
    whole = model(samples[None], num_frames(70_001, 25))[0]
    assert torch.equal(encode_long(model, samples, 25.0), whole)
    pieces = encode_long(model, samples, 25.0, window_s=3.0, overlap_s=1.0)
    assert (
        (pieces - whole).norm() / whole.norm() < 0.4
    )  # a shift by a frame gives over 1; this is what an untrained encoder takes in beyond 3 s


def test_bad_settings_are_told() -> None:
    with pytest.raises(ValueError, match="third"):
        encode_long(lambda *_: torch.zeros(1), torch.zeros(5), 25.0, window_s=4.0, overlap_s=2.0)
    with pytest.raises(ValueError, match="no samples"):
        encode_long(lambda *_: torch.zeros(1), torch.zeros(0), 25.0)
