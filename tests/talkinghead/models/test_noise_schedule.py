"""The noise schedule: golden tables, one configuration for every sampler, keyed draws."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from hypothesis import given
from hypothesis import strategies as st

from talkinghead.models.noise_schedule import (
    COMPAT_INFER,
    PAPER,
    NoiseSchedule,
    check_distilled,
    draw_noise,
    most_steps,
)
from tests.support.lmk2video_networks import draw

SCHEDULES = {"train": PAPER, "infer": COMPAT_INFER}


@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_the_golden_tables(shared: Path, name: str) -> None:
    schedule, ddim = SCHEDULES[name], SCHEDULES[name].sampler("ddim")
    with np.load(shared / "goldens" / "scheduler.npz") as golden:

        def check(found: torch.Tensor | float, key: str) -> None:
            want = golden[f"{name}.{key}"]
            # Processors round differently, by the size of the terms: where these cancel, more than the result's digits.
            atol = 1e-6 * max(1.0, float(np.abs(want).max())) if np.ndim(want) > 1 else 2e-7
            np.testing.assert_allclose(np.asarray(found), want, rtol=2e-5, atol=atol, err_msg=key)

        check(schedule.alphas_cumprod, "alphas_cumprod")
        check(ddim.final_alpha_cumprod, "final_alpha_cumprod")
        check(ddim.init_noise_sigma, "init_noise_sigma")
        steps = torch.from_numpy(golden["min_snr.timesteps"])
        check(schedule.snr(steps), "snr")
        check(schedule.min_snr_weight(steps), "min_snr_weight")
        for count in (4, 10, 20, 25, 50):
            ddim.set_timesteps(count)
            np.testing.assert_array_equal(ddim.timesteps, golden[f"{name}.timesteps.{count}"])
        clean, noise = torch.from_numpy(golden["x0"]), torch.from_numpy(golden["noise"])
        for pair in ((999, 479), (0, 719)):
            prefix = f"t{pair[0]}_{pair[1]}"
            check(schedule.add_noise(clean, noise, torch.tensor(pair)), f"{prefix}.noisy")
            check(schedule.velocity(clean, noise, torch.tensor(pair)), f"{prefix}.velocity")
        ddim.set_timesteps(25)
        for step in (999, 959, 519, 79, 39):
            out = ddim.step(noise, step, clean)
            check(out.prev_sample, f"step25.{step}.prev_sample")
            check(out.pred_original_sample, f"step25.{step}.pred_original")


def test_the_last_timestep_is_pure_noise_and_weighs_one() -> None:
    last = torch.tensor([999])
    assert PAPER.snr(last) == 0 and PAPER.min_snr_weight(last) == 1
    clean, noise = draw(1, 2, 4, 3, 3), draw(1, 2, 4, 3, 3, seed=1)
    assert torch.equal(PAPER.add_noise(clean, noise, last), noise)
    assert torch.equal(PAPER.velocity(clean, noise, last), -clean)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=5))
def test_noise_and_velocity_give_the_clean_latents_back(steps: list[int]) -> None:
    timesteps = torch.tensor(steps)
    clean, noise = draw(len(steps), 2, 4, 3, 3), draw(len(steps), 2, 4, 3, 3, seed=1)
    noisy, velocity = PAPER.add_noise(clean, noise, timesteps), PAPER.velocity(clean, noise, timesteps)
    torch.testing.assert_close(PAPER.clean(noisy, velocity, timesteps), clean, rtol=1e-4, atol=1e-5)


def test_weights_belong_to_their_own_samples() -> None:
    # By hand: weight min(snr + 1, 5) / (snr + 1), then the mean of weight times loss; not mean times mean.
    timesteps = torch.tensor([10, 200, 479, 999])
    losses = torch.tensor([4.0, 3.0, 2.0, 1.0])
    share = PAPER.alphas_cumprod.double()[timesteps]
    by_hand = [min(1 / (1 - a), 5) * (1 - a) * loss for a, loss in zip(share.tolist(), losses.tolist(), strict=True)]
    found = (PAPER.min_snr_weight(timesteps) * losses).mean()
    assert float(found) == pytest.approx(sum(by_hand) / 4, rel=1e-5)
    assert float(found) != pytest.approx(float(losses.mean() * PAPER.min_snr_weight(timesteps).mean()), rel=0.05)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler", "unipc"])
def test_every_sampler_ends_at_the_clean_latents(name: str) -> None:
    """A perfect prediction is sampled to its end, from pure noise; all samplers take the same timesteps."""
    sampler = PAPER.sampler(name)  # pyright: ignore[reportArgumentType]
    PAPER.check(sampler)
    assert NoiseSchedule.of(sampler) == PAPER
    sampler.set_timesteps(10)
    assert [int(step) for step in sampler.timesteps] == list(range(999, 0, -100))
    clean = draw(1, 2, 4, 3, 3)
    latents = draw(1, 2, 4, 3, 3, seed=1) * sampler.init_noise_sigma
    for step in sampler.timesteps:
        noisy = sampler.scale_model_input(latents, step)
        share = PAPER.alphas_cumprod[int(step)]
        noise = (noisy - share.sqrt() * clean) / (1 - share).sqrt()
        latents = sampler.step(share.sqrt() * noise - (1 - share).sqrt() * clean, step, latents).prev_sample
    torch.testing.assert_close(latents, clean, rtol=1e-4, atol=1e-5)


def test_a_sampler_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta_schedule 'linear' for 'scaled_linear'.*from_config"):
        PAPER.check(COMPAT_INFER.sampler())
    with pytest.raises(ValueError, match="prediction_type must be one of v_prediction, not 'epsilon'"):
        PAPER.check(DDIMScheduler())
    with pytest.raises(ValueError, match="PNDMScheduler does not fit: it has no setting rescale_betas_zero_snr"):
        PAPER.check(PNDMScheduler())
    with pytest.raises(ValueError, match="betas of its own"):
        PAPER.check(DDIMScheduler(trained_betas=[0.1, 0.2]))
    with pytest.raises(ValueError, match="sampler must be one of ddim"):
        PAPER.sampler("magic")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("kind", "sampler"), [("lcm", LCMScheduler), ("tcd", TCDScheduler)])
def test_consistency_samplers_are_for_weights_that_say_so(kind: Any, sampler: Any) -> None:
    made = sampler.from_config(PAPER.sampler("euler").config)
    PAPER.check(made)
    assert torch.equal(made.alphas_cumprod, PAPER.alphas_cumprod)
    check_distilled(made, kind)
    check_distilled(PAPER.sampler(), kind)
    for other in ({"lcm", "tcd", None}) - {kind}:
        words = rf"{sampler.__name__} is for weights that were distilled .* distilled is {other!r} in model_index\.json"
        with pytest.raises(ValueError, match=words):
            check_distilled(made, other)
    assert most_steps(made) == 50 and most_steps(DDIMScheduler.from_config(made.config)) == 1000


@pytest.mark.parametrize("sampler", [LCMScheduler, TCDScheduler])
def test_consistency_samplers_end_at_the_clean_latents(sampler: Any) -> None:
    """With a perfect prediction, from pure noise in four steps, whatever noise is added in between."""
    made = sampler.from_config(PAPER.sampler().config)
    made.set_timesteps(4)
    assert int(made.timesteps[0]) == 999
    clean, latents = draw(1, 4, 3, 3), draw(1, 4, 3, 3, seed=1)
    for step in made.timesteps:
        share = PAPER.alphas_cumprod[int(step)]
        noise = (latents - share.sqrt() * clean) / (1 - share).sqrt()
        velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
        latents = made.step(velocity, step, latents, generator=torch.Generator().manual_seed(0)).prev_sample
    # TCD ends at timestep 0, where noise has a deviation of 0.03.
    torch.testing.assert_close(latents, clean, rtol=1e-3, atol=0.15 if sampler is TCDScheduler else 1e-4)


def test_survives_being_saved_with_a_checkpoint(tmp_path: Path) -> None:
    COMPAT_INFER.sampler().save_pretrained(tmp_path)
    loaded = DDIMScheduler.from_pretrained(tmp_path)
    assert isinstance(loaded, DDIMScheduler) and NoiseSchedule.of(loaded) == COMPAT_INFER
    assert NoiseSchedule(**dataclasses.asdict(PAPER)) == PAPER


def test_wrong_settings_are_named() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"beta_end": 0.0001}, "beta_start <= beta_end"),
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"timestep_spacing": "even"}, "timestep_spacing must be one of"),
    )
    for wrong, text in cases:
        with pytest.raises(ValueError, match=text):
            NoiseSchedule(**wrong)


def test_draws_depend_on_the_key_alone() -> None:
    keys = [(3, "a"), (3, "b"), (4, "a")]
    shape = (16, 4, 24, 24)
    noise = torch.stack([draw_noise(7, key, shape) for key in keys])
    assert torch.equal(draw_noise(7, keys[1], shape), noise[1])
    assert PAPER.draw_timestep(7, keys[1]) == PAPER.draw_timestep(7, keys[1]) != PAPER.draw_timestep(7, keys[2])
    assert not torch.equal(draw_noise(8, keys[1], shape), noise[1])
    pairs = torch.corrcoef(noise.flatten(1))
    assert (pairs - torch.eye(3)).abs().max() < 0.02
    frames = torch.corrcoef(noise[0].flatten(1))
    assert (frames - torch.eye(16)).abs().max() < 0.1, "each frame has noise of its own"
    assert noise.mean().abs() < 0.01 and (noise.std() - 1).abs() < 0.01
    many = torch.tensor([PAPER.draw_timestep(0, (index,)) for index in range(4000)]).float()
    assert many.min() < 5 and many.max() > 994 and (many.mean() - 499.5).abs() < 15


def test_offset_is_one_number_for_each_sample_and_channel() -> None:
    shape = (2, 4, 3, 3)
    with_offset, without = (
        torch.stack([draw_noise(1, (index,), shape, offset=offset) for index in range(300)]) for offset in (0.05, 0.0)
    )
    shift = with_offset - without
    torch.testing.assert_close(shift, shift[:, :1, :, :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    numbers = shift[:, 0, :, 0, 0]
    assert abs(float(numbers.std()) - 0.05) < 0.004
    assert (torch.corrcoef(numbers.T) - torch.eye(4)).abs().max() < 0.25
