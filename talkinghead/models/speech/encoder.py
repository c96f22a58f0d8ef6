"""Speech to one feature vector per video frame, with a wav2vec 2.0-like encoder.

Between the convolutions and the Transformer, the convolutions' features (about 50 a second) are interpolated to the
video's frame rate, so the Transformer works on video frames (as in FaceFormer and AniPortrait).
Speech of any length goes through in overlapping windows (`encode_long`).

Letters:
    B recordings, N audio samples, F features of the convolutions in time, C their channels, T video frames, D width of
    the Transformer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from talkinghead.models.network_settings import declared, refuse_code
from talkinghead.models.weights import StrictModel
from talkinghead.timebase import SAMPLE_RATE

Encode = Callable[[Tensor, int], Tensor]
"""Function (samples `[1, N]`, T) → features of the frames `[1, T, …]`."""
WINDOW_S, OVERLAP_S = 20.0, 2.0
"""Longest window of speech that is encoded at once, and the overlap of neighbours, in seconds."""
Numbers = TypeVar("Numbers", Tensor, np.ndarray)
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
    if encoder.config._attn_implementation == "sdpa":
        encoder.set_attn_implementation(_ATTENTION)
    if hasattr(encoder, "masked_spec_embed"):
        # Only SpecAugment uses it, which `encode_speech` leaves out: data parallelism would wait for its gradient.
        encoder.masked_spec_embed.requires_grad_(False)
    return encoder


_ATTENTION = "sdpa_with_mask"
"""Name of an attention of `transformers`: its `sdpa`, but that it looks into no mask to see whether it can do without
(`padding_mask.all()`), for which a GPU would wait in every step."""


def _mask_unread(*, attention_mask: Tensor | None = None, **about: Any) -> Tensor | None:
    """Mask of attention, out of a mask of frames `[B, T]` or of none."""
    about["allow_is_bidirectional_skip"] = attention_mask is None
    return sdpa_mask(attention_mask=attention_mask, **about)


AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
AttentionMaskInterface.register(_ATTENTION, _mask_unread)


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
    return standardise(samples, *moments(samples))


def moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance `[..., 1]` of recordings `[..., N]`, by which their parts are normalised."""
    return samples.mean(dim=-1, keepdim=True), samples.var(dim=-1, keepdim=True, correction=0)


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
    # the zeros after a recording's end would change its features: each row is normalised by itself.
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
    """`_features` of each row's own samples, with zeros after its end, `[B, T, C]`; all rows at once.

    Lengths stay on the device, so that the host waits for nothing. What a convolution makes of the zeros after a row's
    end counts nowhere: not in the first norm, and not in a frame before the end.
    """
    config, (total, length) = cast(Any, encoder.config), (mask.shape[1], samples.shape[1])
    shape = _Convolutions(tuple(config.conv_kernel), tuple(config.conv_stride))
    # Samples of each row up to its last frame: T frames span all N samples. A row that is shorter than what a feature
    # sees has one feature, of itself and zeros.
    counts = mask.sum(dim=1).clamp(min=1)  # [B] frames
    ends = -(-(counts * length) // total)  # [B] samples
    samples = torch.where(torch.arange(length, device=samples.device) < ends[:, None], samples, 0.0)
    samples = functional.pad(samples, (0, max(0, shape.sees - length)))
    # The first convolution, normalised over each row's own features; then the others.
    first, *others = cast(Any, encoder.feature_extractor).conv_layers
    known = (ends.clamp(min=shape.sees) - shape.kernels[0]) // shape.strides[0] + 1  # [B] features of the first layer
    features = first.activation(_norm_of_rows(first.layer_norm, first.conv(samples[:, None]), known))
    for layer in others:
        features = layer(features)
    # One feature per frame, as `stretch_features` makes them of each row.
    if (stride := shape.stride(length, total)) is not None:
        features = features[..., : (total - 1) * stride + 1 : stride]
    else:
        features = _stretch_rows(features, shape.features(ends.clamp(min=shape.sees)), counts, total)
    return torch.where(torch.arange(total, device=mask.device) < counts[:, None, None], features, 0.0).transpose(1, 2)


def _norm_of_rows(norm: nn.GroupNorm, features: Tensor, known: Tensor) -> Tensor:
    """Group norm of `[B, C, F]` with a group for each channel, over the first `known` `[B]` features of each row."""
    assert norm.num_groups == norm.num_channels == features.shape[1]
    own = torch.arange(features.shape[2], device=features.device) < known[:, None, None]  # [B, 1, F]
    # Sums of thousands of numbers: in single precision at least, as PyTorch's own norm has it.
    wide, count = features.to(torch.promote_types(features.dtype, torch.float32)), known[:, None, None]
    mean = torch.where(own, wide, 0.0).sum(dim=2, keepdim=True) / count
    variance = torch.where(own, wide - mean, 0.0).square().sum(dim=2, keepdim=True) / count
    normal = (wide - mean) * torch.rsqrt(variance + norm.eps)
    return (normal * norm.weight[:, None] + norm.bias[:, None]).to(features.dtype)


@dataclass(frozen=True)
class _Convolutions:
    """Sizes of a stack of convolutions over time, from the first layer on."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def sees(self) -> int:
        """Number of audio samples that one feature sees."""
        return receptive_field(self.kernels, self.strides)

    def features(self, samples: Numbers) -> Numbers:
        """Number of features of so many samples each, for integers of any shape, on the device or in NumPy."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    @functools.cache  # noqa: B019  a handful of sizes, which live as long as the program
    def stride(self, length: int, total: int) -> int | None:
        """Number of features from a frame to the next, where it is the same for rows of any number of frames.

        It is 2 at 25 fps. None where frames fall between features.

        Args:
            length: Number N of samples that the frames span.
            total: T.
        """
        counts = np.arange(1, total + 1)
        last = self.features(np.maximum(-(-counts * length // total), self.sees)) - 1  # of each number of frames
        stride = int(last[-1]) // max(1, total - 1) or 1
        return stride if np.array_equal(last[1:], (counts - 1)[1:] * stride) else None


def _stretch_rows(features: Tensor, lengths: Tensor, counts: Tensor, total: int) -> Tensor:
    """`stretch_features` of rows of several lengths, `[B, C, F]` → `[B, C, T]`; what follows a row's end is arbitrary.

    Args:
        features: Features of the convolutions.
        lengths: Number of features of each row, `[B]`.
        counts: Number of frames of each row, `[B]`.
        total: T.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    last = (lengths - 1)[:, None]
    ratio = last.to(wide.dtype) / (counts - 1).clamp(min=1)[:, None].to(wide.dtype)
    at = torch.minimum(ratio * torch.arange(total, device=wide.device), last.to(wide.dtype))  # [B, T]
    before = at.long()
    ends = [torch.minimum(index, last)[:, None].expand(-1, wide.shape[1], -1) for index in (before, before + 1)]
    first, second = (wide.gather(2, index) for index in ends)
    return torch.lerp(first, second, (at - before)[:, None]).to(features.dtype)


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
    encode: Encode, samples: Tensor, fps: float, *, window_s: float = WINDOW_S, overlap_s: float = OVERLAP_S
) -> Tensor:
    """Features of speech of any length, whole; see `encode_parts`.

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
    # Put in place part by part: only one is in memory next to the result, whose width the first one tells.
    result: Tensor | None = None
    done = 0
    parts = encode_parts(
        encode, lambda first, end: samples[first:end], len(samples), fps, window_s=window_s, overlap_s=overlap_s
    )
    for part in parts:
        if result is None:
            result = part.new_empty(num_frames(len(samples), fps), *part.shape[1:])
        result[done : done + len(part)] = part
        done += len(part)
    assert result is not None and done == len(result)
    return result


@torch.no_grad()
def encode_parts(
    encode: Encode,
    cut: Callable[[int, int], Tensor],
    num_samples: int,
    fps: float,
    *,
    window_s: float = WINDOW_S,
    overlap_s: float = OVERLAP_S,
) -> Iterator[Tensor]:
    """Features of speech of any length, in parts; attention is quadratic in the length, so speech goes in windows.

    Windows begin where a frame begins on a whole sample (every frame at 25 fps, every third at 30; at rates where that
    is rarer than once a second, on the nearest sample), overlap, and are blended linearly over the overlap. Speech that
    fits one window is encoded in one pass.

    Args:
        encode: Function that encodes one window.
        cut: Function that gives the samples `[n]` from a first one to an end, 16 kHz, normalised over the whole
            recording; so no more than a window of them need be in memory.
        num_samples: Number N of samples.
        fps: Frame rate of the result.
        window_s: Longest window in seconds.
        overlap_s: Overlap of neighbours in seconds, at most a third of the window.

    Yields:
        `[n, …]`, in all T = `num_frames(N, fps)` rows, each as soon as no later window changes it.

    Raises:
        ValueError: No samples, or an overlap that does not fit.
    """
    if num_samples == 0:
        raise ValueError("the recording has no samples")
    if not 0 < overlap_s * 3 <= window_s:
        raise ValueError(f"overlap_s {overlap_s} must be above 0 and at most a third of window_s {window_s}")
    # Cut into windows, each from a whole sample on.
    total = num_frames(num_samples, fps)
    spans = window_spans(total, fps, window_s, overlap_s)
    per_frame = SAMPLE_RATE / frame_rate(fps)
    shared: Tensor | None = None  # features of the window before, of the frames that the next one has too
    for number, (first, end) in enumerate(spans):
        last_sample = num_samples if end == total else round(end * per_frame)
        part = encode(cut(round(first * per_frame), last_sample)[None], end - first)[0]  # [t, …]
        # Fade in over the frames shared with the window before. The weights stay off 0 and 1: both windows know them.
        if shared is not None:
            count = len(shared)
            ramp = torch.arange(1, count + 1, device=part.device, dtype=part.dtype) / (count + 1)
            part[:count] = torch.lerp(shared, part[:count], ramp.view(-1, *[1] * (part.ndim - 1)))
        final = len(part) if end == total else spans[number + 1][0] - first
        shared = part[final:].clone()
        yield part[:final]


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
