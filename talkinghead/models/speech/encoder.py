"""Speech to one feature vector per video frame, with a wav2vec 2.0-like encoder.

Between the convolutions and the Transformer, the convolutions' features (about 50 a second) are interpolated to the
video's frame rate, so the Transformer works on video frames (as in FaceFormer and AniPortrait).
Speech of any length goes through in overlapping windows (`encode_long`).

Letters:
    B recordings, N audio samples, F features of the convolutions in time, C their channels, T video frames, D width of
    the Transformer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from talkinghead.models.network_settings import declared, refuse_code
from talkinghead.models.weights import StrictModel
from talkinghead.timebase import SAMPLE_RATE

Encode = Callable[[Tensor, int], Tensor]
"""Function (samples `[1, N]`, T) → features of the frames `[1, T, …]`."""
MODEL_TYPES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
"""`model_type` of the encoders that consist of `feature_extractor`, `feature_projection` and `encoder`."""


def encoder_config(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """Configuration of a speech encoder with the settings that its class declares; others are left out.

    Args:
        settings: Settings in the form of `transformers`; `model_type` is one of `MODEL_TYPES`.

    Raises:
        ValueError: Another `model_type`, settings that ask for code, or an adapter, which would change the number of
            frames.
    """
    model_type = settings.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"speech encoder of type {model_type!r} cannot be used: take one of {', '.join(MODEL_TYPES)}")
    refuse_code(settings, "the configuration of the speech encoder")
    if settings.get("add_adapter"):
        raise ValueError("the speech encoder has an adapter (add_adapter), which changes the number of frames")
    # What every model of `transformers` has (kernels of attention, kinds of output) stays as it is by default.
    own = AutoConfig.for_model(model_type).to_dict().keys() - PreTrainedConfig().to_dict().keys() - {"model_type"}
    return AutoConfig.for_model(model_type, **declared(settings, sorted(own)))


def build_encoder(config: Mapping[str, Any]) -> PreTrainedModel:
    """A speech encoder with first weights from PyTorch's global generator.

    Args:
        config: Settings of `encoder_config`.

    Raises:
        ValueError: As `encoder_config` does.
    """
    encoder = AutoModel.from_config(encoder_config(config))
    if hasattr(encoder, "masked_spec_embed"):
        # Only SpecAugment uses it, which `encode_speech` leaves out: data parallelism would wait for its gradient.
        encoder.masked_spec_embed.requires_grad_(False)
    return encoder


def freeze_feature_extractor(encoder: PreTrainedModel) -> None:
    """Keep the convolutions of a speech encoder as they are: no gradients, no activations kept for them."""
    extractor = cast(Any, encoder.feature_extractor)
    extractor.requires_grad_(False)
    extractor._requires_grad = False  # else `transformers` asks for a gradient of the samples, and so keeps activations


def repeated_blocks(encoder: PreTrainedModel) -> list[nn.Module]:
    """The Transformer layers: units of sharding, compiling and activation checkpointing."""
    return list(cast(Any, encoder.encoder).layers)


def normalise(samples: Tensor) -> Tensor:
    """Samples with zero mean and unit variance: (x - mean) / sqrt(var + 1e-7), as the encoders were trained.

    Applied to the whole recording, before any cutting. Silence becomes zeros.

    Args:
        samples: Audio samples `[..., N]` float.

    Returns:
        `[..., N]`, normalised over the last axis.
    """
    mean = samples.mean(dim=-1, keepdim=True)
    variance = samples.var(dim=-1, keepdim=True, correction=0)
    return standardise(samples, mean, variance)


def standardise(samples: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """`normalise` for a part of a recording, from the mean and variance of the whole.

    Args:
        samples: Audio samples `[..., N]` float.
        mean: Mean of the recording `[..., 1]`.
        variance: Variance of the recording `[..., 1]`.
    """
    return (samples - mean) / torch.sqrt(variance + 1e-7)


def num_frames(num_samples: int, fps: float) -> int:
    """Number of frames that audio samples touch: ceil(num_samples / 16000 · fps), without rounding errors."""
    return math.ceil(num_samples * frame_rate(fps) / SAMPLE_RATE)


def frame_rate(fps: float) -> Fraction:
    """A frame rate as a fraction (29.97 is 2997/100); `ValueError` unless it is above 0."""
    if not 0 < fps < 1000:
        raise ValueError(f"fps {fps} is no frame rate: it must be above 0 and below 1000")
    return Fraction(fps).limit_denominator(100_000)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Number of audio samples that one feature of a stack of convolutions sees."""
    # From the last layer, which gives one feature, back to the samples.
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def encode_speech(encoder: PreTrainedModel, samples: Tensor, num_frames: int, mask: Tensor | None = None) -> Tensor:
    """Features of each video frame.

    Args:
        encoder: Speech encoder of `build_encoder`.
        samples: Audio samples `[B, N]`, normalised (`normalise`), zeros where a recording is over. Fewer samples than
            one feature sees are padded with zeros.
        num_frames: T, the video frames that the samples span.
        mask: `[B, T]` bool, True up to a recording's end and False after it; no frame before the end attends to frames
            after it.

    Returns:
        `[B, T, D]`: the last hidden state.
    """
    # Convolutions. With a group norm (wav2vec 2.0 base and its like) the first one is normalised over the whole row, so
    # the zeros after a recording's end would change its features: each row goes alone.
    if mask is not None and getattr(encoder.config, "feat_extract_norm", "layer") == "group":
        features = _features_of_rows(encoder, samples, mask)
    else:
        features = _features(encoder, samples, num_frames)  # [B, T, C]
    # Transformer, on one feature per video frame.
    projected = cast(Any, encoder.feature_projection)(features)  # [B, T, D]
    # wav2vec 2.0 and WavLM also return the normalised features, which only their pre-training uses.
    hidden = projected[0] if isinstance(projected, tuple) else projected
    return cast(Any, encoder.encoder)(hidden, attention_mask=mask).last_hidden_state


def _features(encoder: PreTrainedModel, samples: Tensor, num_frames: int) -> Tensor:
    """Features of the convolutions, one per frame: `[B, N]` → `[B, T, C]`."""
    config = cast(Any, encoder.config)
    missing = receptive_field(config.conv_kernel, config.conv_stride) - samples.shape[-1]
    if missing > 0:
        samples = functional.pad(samples, (0, missing))
    features = cast(Any, encoder.feature_extractor)(samples)
    return stretch_features(features, num_frames).transpose(1, 2)


def _features_of_rows(encoder: PreTrainedModel, samples: Tensor, mask: Tensor) -> Tensor:
    """`_features` of each row's own samples, with zeros after its end, `[B, T, C]`.

    Row by row also where rows are equally long: the number of calls is then the same on every rank.
    """
    total = mask.shape[1]
    rows: list[Tensor] = []
    for row, count in zip(samples, mask.sum(dim=1).tolist(), strict=True):
        # The row's samples up to its last frame: T frames span all N samples.
        count = max(1, int(count))
        own = row[None, : math.ceil(len(row) * count / total)]
        rows.append(functional.pad(_features(encoder, own, count), (0, 0, 0, total - count)))
    return torch.cat(rows)


def stretch_features(features: Tensor, num_frames: int) -> Tensor:
    """Linear interpolation in time that maps first to first and last to last feature, whatever the two rates are.

    Published weights were trained so. Not `motion.resampling.resample_frames`, which keeps the time of each frame.

    Args:
        features: Features of the convolutions `[B, C, F]`.
        num_frames: T, the frames to make.

    Returns:
        `[B, C, T]`.
    """
    length = features.shape[-1]
    stride, rest = divmod(length - 1, num_frames - 1) if num_frames > 1 else (1, 0)
    if rest == 0 and stride > 0:
        # Frames that fall on features (every second one at 25 fps): the numbers of the interpolation, and a gradient
        # that is deterministic on GPUs.
        return features[..., : (num_frames - 1) * stride + 1 : stride]
    return functional.interpolate(features, size=num_frames, mode="linear", align_corners=True)


class SpeechModel(StrictModel):
    """A model whose first part, `audio_encoder`, is a speech encoder."""

    audio_encoder: PreTrainedModel
    _supports_gradient_checkpointing = True

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated layers: units of sharding, compiling and activation checkpointing."""
        return repeated_blocks(self.audio_encoder)

    def freeze_cnn(self) -> None:
        """Keep the convolutions of the speech encoder from training."""
        freeze_feature_extractor(self.audio_encoder)


@torch.no_grad()
def encode_long(
    encode: Encode, samples: Tensor, fps: float, *, window_s: float = 20.0, overlap_s: float = 2.0
) -> Tensor:
    """Features of speech of any length; attention is quadratic in the length, so long speech goes in windows.

    Windows begin where a frame begins on a whole sample (every frame at 25 fps, every third at 30; at rates where that
    is rarer than once a second, on the nearest sample), overlap, and are blended linearly over the overlap. Speech that
    fits one window is encoded in one pass.

    Args:
        encode: Function that encodes one window, such as `Audio2Mesh.forward` or `Audio2Pose.encode`.
        samples: Audio samples `[N]`, 16 kHz, normalised over the whole recording.
        fps: Frame rate of the result.
        window_s: Longest window in seconds.
        overlap_s: Overlap of neighbours in seconds, at most a third of the window.

    Returns:
        `[T, …]`, T = `num_frames(N, fps)`.

    Raises:
        ValueError: No samples, or an overlap that does not fit.
    """
    if samples.numel() == 0:
        raise ValueError("the recording has no samples")
    if not 0 < overlap_s * 3 <= window_s:
        raise ValueError(f"overlap_s {overlap_s} must be above 0 and at most a third of window_s {window_s}")
    # Cut into windows, each from a whole sample on.
    total = num_frames(len(samples), fps)
    spans = window_spans(total, fps, window_s, overlap_s)
    per_frame = SAMPLE_RATE / frame_rate(fps)
    # Encode and blend, window by window: only one is in memory next to the result, whose width the first one tells.
    result: Tensor | None = None
    done = 0
    for first, end in spans:
        last_sample = len(samples) if end == total else round(end * per_frame)
        part = encode(samples[None, round(first * per_frame) : last_sample], end - first)[0]  # [t, …]
        if result is None:
            result = part.new_empty(total, *part.shape[1:])
        # Fade in over the frames shared with the window before. The weights stay off 0 and 1: both windows know them.
        shared = done - first
        if shared > 0:
            ramp = torch.arange(1, shared + 1, device=part.device, dtype=part.dtype) / (shared + 1)
            part[:shared] = torch.lerp(result[first:done], part[:shared], ramp.view(-1, *[1] * (part.ndim - 1)))
        result[first:end] = part
        done = end
    assert result is not None and done == total
    return result


def window_spans(total: int, fps: float, window_s: float, overlap_s: float) -> list[tuple[int, int]]:
    """Windows (first frame, end) over `total` frames: about equally long, each overlapping the next alike."""
    grid = (SAMPLE_RATE / frame_rate(fps)).denominator  # frames from one that begins on a whole sample to the next
    # At odd rates (29.97) such a frame is too rare, and half a sample off does no harm.
    grid = grid if grid <= fps else 1
    longest = int(window_s * fps) // grid * grid
    overlap = max(1, round(overlap_s * fps / grid)) * grid
    if total <= longest:
        return [(0, total)]
    # As few windows as cover everything, rounded up; one grid step less each, since their starts are rounded down.
    count = -(-(total - overlap) // (longest - overlap - grid))
    starts = [(total - overlap) * number // (count * grid) * grid for number in range(count)]
    return [
        (first, total if following is None else following + overlap)
        for first, following in zip(starts, [*starts[1:], None], strict=True)
    ]
