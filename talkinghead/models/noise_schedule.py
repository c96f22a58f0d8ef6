"""Noise schedule: the share of noise at each timestep, in one configuration for training, inference and samplers.

Letters:
    T timesteps of the schedule, B samples, F frames, C channels, h and w sides of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from talkinghead import rng
from talkinghead.models.device_constant import DeviceConstant

Sampler = Literal["ddim", "dpm++", "euler", "unipc"]
Distillation = Literal["lcm", "tcd"]
"""Kind of a denoiser that was distilled to few steps: a latent consistency model (Luo et al., arXiv 2310.04378), or
trajectory consistency distillation (Zheng et al., arXiv 2402.19159)."""

Key = tuple[int | str, ...]
"""Parts of a random key after seed and purpose that tell samples apart: a slot, or a step and a name."""

_ALLOWED = {
    "beta_schedule": ("scaled_linear", "linear"),
    "prediction_type": ("v_prediction",),
    "timestep_spacing": ("trailing", "leading", "linspace"),
}
# Samplers that can follow a velocity prediction on any of these schedules.
_SAMPLERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}
_CONSISTENCY: dict[Distillation, Any] = {"lcm": LCMScheduler, "tcd": TCDScheduler}
"""Samplers that have the same settings, but need networks distilled for them, by the kind of the distillation."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """Noise schedule and kind of prediction.

    v-prediction (Salimans and Ho, arXiv 2202.00512), with betas rescaled so that the last timestep is pure noise and
    timesteps counted from there (Lin et al., arXiv 2305.08891). With a_t = alphas_cumprod:
    noisy = sqrt(a_t) clean + sqrt(1 - a_t) noise; velocity = sqrt(a_t) noise - sqrt(1 - a_t) clean.

    AniPortrait trains on `scaled_linear` and samples on `linear`; only `COMPAT_INFER` does the latter.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction_type: Literal["v_prediction"] = "v_prediction"
    rescale_betas_zero_snr: bool = True
    timestep_spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    steps_offset: int = 1

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps must be at least 2, not {self.num_train_timesteps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"0 < beta_start <= beta_end < 1 is wanted, not {self.beta_start} and {self.beta_end}")
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")

    @classmethod
    def of(cls, scheduler: SchedulerMixin) -> Self:
        """The schedule of a `diffusers` scheduler.

        Raises:
            ValueError: The scheduler does not predict velocity, or has betas of its own.
        """
        config = dict(getattr(scheduler, "config", {}))
        if config.get("trained_betas") is not None:
            raise ValueError(
                f"{type(scheduler).__name__} has betas of its own, and the networks were not trained on them"
            )
        # The other settings are the dataclass's own, by the same names; its checks refuse what does not fit.
        wanted = cls.__dataclass_fields__
        missing = [name for name in wanted if name not in config]
        if missing:
            raise ValueError(
                f"{type(scheduler).__name__} does not fit: it has no setting {missing[0]}. Use one of"
                f" {', '.join(_SAMPLERS)}"
            )
        return cls(**{name: config[name] for name in wanted})

    def check(self, scheduler: SchedulerMixin) -> None:
        """Check that a sampler has this schedule.

        Raises:
            ValueError: It has another; the message names the settings that differ.
        """
        other = self.of(scheduler)
        differences = [
            f"{name} {getattr(other, name)!r} for {getattr(self, name)!r}"
            for name in self.__dataclass_fields__
            if getattr(other, name) != getattr(self, name)
        ]
        if differences:
            raise ValueError(
                f"{type(scheduler).__name__} does not fit the networks: {'; '.join(differences)}. Make it of the"
                " pipeline's: NewScheduler.from_config(pipeline.scheduler.config)"
            )

    def sampler(self, name: Sampler = "ddim") -> Any:
        """A `diffusers` scheduler with this schedule.

        Raises:
            ValueError: There is no sampler of that name.
        """
        if name not in _SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(_SAMPLERS)}, not {name!r}")
        settings: dict[str, Any] = {field: getattr(self, field) for field in self.__dataclass_fields__}
        if name == "ddim":
            # Clipping to -1 .. 1 is for images; latents go beyond.
            settings["clip_sample"] = False
        return _SAMPLERS[name](**settings)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """Share of the clean image's variance at each timestep, `[T]` float32."""
        return self.sampler("ddim").alphas_cumprod

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio a / (1 - a) of timesteps: `[B]` → `[B]` float32; 0 at the last timestep."""
        share = self._shares.on(timesteps.device)[timesteps]
        return share / (1 - share)

    def min_snr_weight(self, timesteps: Tensor, gamma: float = 5.0) -> Tensor:
        """Weight of each sample's loss: min(SNR + 1, gamma) / (SNR + 1), `[B]` → `[B]` float32.

        Min-SNR weighting (Hang et al., arXiv 2303.09556) of a velocity's error, with SNR + 1 in place of SNR so that
        pure noise keeps weight 1: weight each sample's own mean squared error, then average.
        """
        above = self.snr(timesteps) + 1
        return above.clamp(max=gamma) / above

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents: `[B, …]`, `[B, …]`, `[B]` → `[B, …]`."""
        signal, sigma = self._factors(timesteps, clean)
        return signal * clean + sigma * noise

    def velocity(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Velocity, the denoiser's target: `[B, …]`, `[B, …]`, `[B]` → `[B, …]`."""
        signal, sigma = self._factors(timesteps, clean)
        return signal * noise - sigma * clean

    def clean(self, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        """Clean latents that a predicted velocity implies: `[B, …]`, `[B, …]`, `[B]` → `[B, …]`."""
        signal, sigma = self._factors(timesteps, noisy)
        return signal * noisy - sigma * velocity

    def draw_timestep(self, seed: int, key: Key) -> int:
        """Timestep of a training sample, uniform, one for all its frames."""
        return int(rng.generator(seed, "timestep", *key).integers(self.num_train_timesteps))

    @cached_property
    def _shares(self) -> DeviceConstant:
        return DeviceConstant(self.alphas_cumprod)

    def _factors(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of clean latents and of noise, in the shape and precision that multiply `like`."""
        share = self._shares.on(timesteps.device)[timesteps]
        share = share.reshape(-1, *[1] * (like.ndim - 1))  # [B, 1, 1, 1, 1] for latents [B, F, C, h, w]
        # The roots in float32: close to the last timestep a lower precision would lose the signal.
        return share.sqrt().to(like), (1 - share).sqrt().to(like)


def check_distilled(scheduler: SchedulerMixin, distilled: Distillation | None) -> None:
    """Refuse a sampler that is for distilled networks, where the networks are not.

    Such samplers take the networks' clean latents for final after each of a few long steps, and add new noise. Networks
    that were not distilled give the mean of all images that the noise allows, which is blurred.

    Args:
        scheduler: Sampler of `diffusers`.
        distilled: What the weights say of themselves; None: they are not distilled.

    Raises:
        ValueError: The sampler is for another kind of weights; names the setting that says so.
    """
    for kind, sampler in _CONSISTENCY.items():
        if isinstance(scheduler, sampler) and distilled != kind:
            raise ValueError(
                f"{type(scheduler).__name__} is for weights that were distilled for it, and of these distilled is"
                f" {distilled!r} in model_index.json, not {kind!r}: ordinary weights give blurred, overexposed frames"
                f" with it. Use one of {', '.join(_SAMPLERS)}, or give distilled={kind!r} if the weights are"
            )


def most_steps(scheduler: SchedulerMixin) -> int:
    """Largest number of inference steps of a `diffusers` scheduler: its timesteps, or those of the distillation."""
    consistent = isinstance(scheduler, tuple(_CONSISTENCY.values()))
    config: Any = scheduler.config  # pyright: ignore[reportAttributeAccessIssue]
    return config["original_inference_steps" if consistent else "num_train_timesteps"]


def draw_noise(seed: int, key: Key, shape: Sequence[int], *, offset: float = 0.0) -> Tensor:
    """Noise of a training sample, a function of its own key.

    Args:
        seed: Seed of the training.
        key: Random key of the sample.
        shape: Shape of its latents: `[F, C, h, w]`.
        offset: Strength of a further draw for each channel, the same in all frames and positions ("offset noise"), so
            that the mean of an image is also learnt.

    Returns:
        `[F, C, h, w]` float32, on the CPU.
    """
    # Drawn by NumPy on the CPU: the same numbers on every device and in every version of PyTorch.
    draws = rng.generator(seed, "noise", *key)
    noise = torch.from_numpy(draws.standard_normal(tuple(shape), dtype="float32"))
    if offset:
        # From the same generator, after the noise: without an offset the noise is the same.
        shift = torch.from_numpy(draws.standard_normal((shape[1],), dtype="float32"))
        noise = noise + offset * shift[None, :, None, None]
    return noise


PAPER = NoiseSchedule()
"""Schedule of training, and of inference with networks trained here."""
COMPAT_INFER = NoiseSchedule(beta_schedule="linear")
"""Schedule of AniPortrait's inference, with networks that were trained on `PAPER`."""
