"""Speech features: time, normalisation, padding, other encoders."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoConfig

from talkinghead.models.speech.encoder import (
    _features,
    _features_of_rows,
    build_encoder,
    encode_speech,
    freeze_feature_extractor,
    normalise,
    num_frames,
    receptive_field,
    stretch_features,
)
from talkinghead.models.speech.weights import Pretrained, encoder_settings
from tests.support.host_reads import HostReads


def small_config(model_type: str, **settings: Any) -> dict[str, Any]:
    shape = {
        key: value for key, value in Pretrained("tiny").wav2vec_config().items() if key.startswith(("conv", "num_"))
    }
    config = AutoConfig.for_model(
        model_type, **({**shape, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2} | settings)
    )
    return encoder_settings(config)


@settings(deadline=None)
@given(st.integers(0, 50_000_000), st.sampled_from([24.0, 25.0, 29.97, 30.0, 59.94]))
def test_frames_cover_all_samples_and_no_more(samples: int, fps: float) -> None:
    per_frame = Fraction(16000) / Fraction(str(fps))
    frames = num_frames(samples, fps)
    assert (frames - 1) * per_frame < samples <= frames * per_frame or (samples == 0 and frames == 0)


def test_normalised_speech_has_mean_0_and_variance_1_and_silence_is_0() -> None:
    samples = torch.randn(3, 5000) * torch.tensor([[0.01], [1.0], [30.0]]) + 4
    out = normalise(samples)
    assert out.mean(-1).abs().max() < 1e-4
    assert (out.var(-1, correction=0) - torch.tensor([1 - 1e-3, 1, 1])).abs().max() < 1e-3  # 1e-7 next to 1e-4
    assert torch.equal(normalise(torch.full((800,), 0.25)), torch.zeros(800))
    torch.testing.assert_close(normalise(torch.tensor([1.0, 3.0])), torch.tensor([-1.0, 1.0]))  # variance 1, not 2


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 300))
def test_resampling_is_linear_interpolation_between_the_ends(length: int, frames: int) -> None:
    features = torch.arange(2 * length, dtype=torch.float32).reshape(1, 2, length).sin()
    want = functional.interpolate(features, size=frames, mode="linear", align_corners=True)
    torch.testing.assert_close(stretch_features(features, frames), want, rtol=0, atol=1e-6)


@settings(deadline=None)
@given(st.integers(2, 2000))
def test_at_25_fps_every_second_feature_falls_on_a_frame(frames: int) -> None:
    features = torch.arange((frames * 640 - 400) // 320 + 1.0)[None, None]
    assert torch.equal(stretch_features(features, frames)[0, 0], 2 * torch.arange(frames, dtype=torch.float32))


def test_the_first_feature_of_wav2vec2_sees_400_samples() -> None:
    assert receptive_field([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]) == 400


@pytest.mark.parametrize("samples", [1, 2, 399, 400, 401, 16000])
def test_speech_of_any_length_has_features(tiny: dict[str, Any], samples: int) -> None:
    frames = num_frames(samples, 25)
    out = encode_speech(build_encoder(tiny).eval(), torch.randn(2, samples), frames)
    assert out.shape == (2, frames, 128)
    assert out.isfinite().all()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 30), st.integers(0, 12), st.sampled_from(["group", "layer"]))
def test_padding_does_not_reach_the_frames_before_it(frames: int, padding: int, norm: str) -> None:
    """Padding does not change the features: with a group norm over time the zeros would count (wav2vec 2.0 base)."""
    encoder = build_encoder(Pretrained("tiny").wav2vec_config() | {"feat_extract_norm": norm}).eval()
    samples = torch.randn(1, frames * 640, generator=torch.Generator().manual_seed(frames))
    want = encode_speech(encoder, samples, frames)
    mask = torch.arange(frames + padding)[None] < frames
    padded = functional.pad(samples, (0, padding * 640))
    torch.testing.assert_close(
        encode_speech(encoder, padded, frames + padding, mask)[:, :frames], want, rtol=1e-4, atol=1e-4
    )


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=3))
def test_recordings_of_many_lengths_share_a_batch(lengths: list[int]) -> None:
    """With a group norm over time each row is as if alone, also at a rate that shares no grid with the audio."""
    encoder = build_encoder(Pretrained("tiny").wav2vec_config() | {"feat_extract_norm": "group"}).eval()
    generator = torch.Generator().manual_seed(sum(lengths))
    per_frame = Fraction(16000, 30)
    total = max(*lengths, 1)
    mask = torch.arange(total)[None] < torch.tensor(lengths)[:, None]
    samples = torch.zeros(len(lengths), math.ceil(total * per_frame))
    for row, count in enumerate(lengths):
        kept = math.ceil(count * per_frame)
        samples[row, :kept] = torch.randn(kept, generator=generator)
    out = encode_speech(encoder, samples, total, mask)
    assert out.shape == (len(lengths), total, 128) and out.isfinite().all()
    for row, count in enumerate(lengths):
        if count:
            own = samples[row : row + 1, : math.ceil(count * per_frame)]
            torch.testing.assert_close(
                out[row : row + 1, :count], encode_speech(encoder, own, count), rtol=1e-3, atol=1e-4
            )


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.sampled_from([1, 3, 640, 533, 2000]))
def test_rows_of_a_batch_are_convolved_at_once_and_read_by_no_host(lengths: list[int], per_frame: int) -> None:
    """Features and gradients are those of a loop over rows; each convolution is called once, whatever the lengths."""
    encoder = build_encoder(Pretrained("tiny").wav2vec_config() | {"feat_extract_norm": "group"}).train().double()
    total = max(lengths)
    draws = torch.Generator().manual_seed(sum(lengths))
    samples = torch.randn(len(lengths), total * per_frame, generator=draws, dtype=torch.float64)
    mask = torch.arange(total) < torch.tensor(lengths)[:, None]
    weights = torch.randn(len(lengths), total, encoder.config.conv_dim[-1])
    called: list[int] = []
    conv = encoder.feature_extractor.conv_layers[1].conv
    handle = conv.register_forward_hook(lambda *_: called.append(1))
    with HostReads() as reads:
        found = _features_of_rows(encoder, samples, mask)
    handle.remove()
    assert len(called) == 1 and not reads.found, reads
    want = torch.cat(
        [
            functional.pad(_features(encoder, samples[n : n + 1, : count * per_frame], count), (0, 0, 0, total - count))
            for n, count in enumerate(lengths)
        ]
    )
    torch.testing.assert_close(found, want)
    gradients = []
    for features in (found, want):
        encoder.zero_grad()
        (features * weights).sum().backward()
        gradients.append([value.grad for value in encoder.feature_extractor.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm", "data2vec-audio"])
@pytest.mark.parametrize("stable", [False, True])
def test_other_encoders_of_the_same_layout(model_type: str, stable: bool) -> None:
    choices = {"do_stable_layer_norm": stable, "feat_extract_norm": "layer"}
    config = small_config(model_type, **({} if model_type == "data2vec-audio" else choices))
    encoder = build_encoder(config).eval()
    samples = torch.randn(2, 6400)
    mask = torch.tensor([[True] * 10, [True] * 6 + [False] * 4])
    out = encode_speech(encoder, samples, 10, mask)
    assert out.shape == (2, 10, 32)
    changed = samples.clone()
    changed[1, 6 * 640 + 400 :] = 9.0  # after what any frame in the mask sees
    again = encode_speech(encoder, changed, 10, mask)
    torch.testing.assert_close(again[:, :6], out[:, :6], rtol=1e-4, atol=1e-4)
    assert torch.equal(again[0], out[0])


def test_encoders_of_another_layout_are_refused() -> None:
    with pytest.raises(ValueError, match="wav2vec2, hubert"):
        build_encoder({"model_type": "whisper"})
    with pytest.raises(ValueError, match="adapter"):
        build_encoder(small_config("wav2vec2") | {"add_adapter": True})


def test_training_draws_nothing_from_numpy_and_is_the_same_again(tiny: dict[str, Any]) -> None:
    encoder = build_encoder(
        tiny | {"apply_spec_augment": True, "mask_time_prob": 0.9, "mask_feature_prob": 0.9}
    ).train()
    samples = torch.randn(1, 32000)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first, second = (encode_speech(encoder, samples, 50) for _ in range(2))
    assert torch.equal(first, second)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[arg-type]


def test_freezing_the_convolutions(tiny: dict[str, Any]) -> None:
    encoder = build_encoder(tiny).train()
    freeze_feature_extractor(encoder)
    samples = torch.randn(1, 6400)
    encode_speech(encoder, samples, 10).sum().backward()
    graded = {name for name, value in encoder.named_parameters() if value.grad is not None}
    assert not [name for name in graded if name.startswith("feature_extractor.")]
    trainable = {name for name, value in encoder.named_parameters() if value.requires_grad}
    assert trainable == graded, "a parameter without gradient stalls parallel training"


def test_every_trainable_parameter_gets_a_gradient(tiny: dict[str, Any]) -> None:
    encoder = build_encoder(tiny).train()
    encode_speech(encoder, torch.randn(1, 6400), 10).square().sum().backward()
    assert not [name for name, value in encoder.named_parameters() if value.requires_grad and value.grad is None]


def test_the_published_frame_count() -> None:
    assert num_frames(96000, 30) == 180 == math.ceil(96000 / 16000 * 30)
