"""How errors of Lmk2Video are weighed, and what is watched."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from shards.loader import collate
from talkinghead.models.noise_schedule import PAPER
from train.lmk2video.config import Lmk2VideoConfig
from train.lmk2video.draws import Draws, WindowDraws
from train.lmk2video.loss import BUCKETS, even_timestep, loss_figures, velocity_loss

SHAPE = (2, 4, 3, 5)
CONFIG = Lmk2VideoConfig()


def drawn(config: Lmk2VideoConfig, slots: range = range(4)) -> Draws:
    draw = WindowDraws(config=config, seed=0, shape=SHAPE)
    return Draws.of(collate([{"slot": slot, "key": str(slot)} | draw({"slot": slot}) for slot in slots]))


def test_loss_is_the_weighted_error_of_frames_that_count() -> None:
    torch.manual_seed(0)
    predicted, velocity = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE)
    timesteps = torch.tensor([10, 500, 999])
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    losses = velocity_loss(predicted, velocity, timesteps, mask, None, 5.0)
    error = (predicted - velocity).square()
    weight = PAPER.min_snr_weight(timesteps)
    assert float(weight[2]) == 1.0 and float(weight[0]) < 0.1
    assert losses["loss"][0] == pytest.approx(float(weight[0] * error[0].mean()), rel=1e-5)
    assert losses["loss"][1] == pytest.approx(float(weight[1] * error[1, 0].mean()), rel=1e-5)
    assert losses["loss"][2] == 0, "a sample of which no frame counts"
    assert losses["velocity_mse"][0] == pytest.approx(float(error[0].mean()), rel=1e-5)
    plain = velocity_loss(predicted, velocity, timesteps, mask, None, None)
    assert torch.equal(plain["loss"], plain["velocity_mse"])


def test_region_weights_are_relative() -> None:
    torch.manual_seed(0)
    predicted, velocity = torch.randn(1, *SHAPE), torch.zeros(1, *SHAPE)
    mask, timesteps = torch.ones(1, 2, dtype=torch.bool), torch.tensor([700])
    region = torch.ones(1, 2, 3, 5)
    alike = velocity_loss(predicted, velocity, timesteps, mask, None, 5.0)["loss"]
    for factor in (1.0, 7.0):
        found = velocity_loss(predicted, velocity, timesteps, mask, region * factor, 5.0)
        torch.testing.assert_close(found["loss"], alike)
    region[0, 0, 1, 2] = 1e6
    found = velocity_loss(predicted, velocity, timesteps, mask, region, None)
    torch.testing.assert_close(found["loss"][0], predicted[0, 0, :, 1, 2].square().mean(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["velocity_mse"][0], predicted.square().mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_both": 0.7, "drop_token": 0.5}, "no more than 1 together"),
        ({"drop_reference": -0.1}, "shares of the samples"),
        ({"width": 4}, "at least 8 pixels"),
        ({"snr_gamma": 0.5}, "snr_gamma"),
        ({"mouth_weight": 0.0}, "above 0"),
        ({"noise_offset": float("nan")}, "noise_offset"),
        ({"min_reference_gap": -1}, "min_reference_gap"),
        ({"encode_chunk": 0}, "encode_chunk"),
        ({"validation_steps": 0}, "validation_steps"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)  # pyright: ignore[reportArgumentType]


# --- what is watched --------------------------------------------------------------------------------------------------


def test_even_timesteps_are_everywhere() -> None:
    for count in (1, 7, 32, 5000):
        found = [even_timestep(number, count) for number in range(count)]
        assert found == sorted(found) and found[0] >= 0 and found[-1] < PAPER.num_train_timesteps
        buckets = torch.tensor(found).mul(BUCKETS).div(PAPER.num_train_timesteps, rounding_mode="floor")
        counts = buckets.bincount(minlength=BUCKETS)
        assert int(counts.max() - counts.min()) <= 1


def test_each_sample_is_in_one_range_and_of_one_kind() -> None:
    config = Lmk2VideoConfig(drop_both=0.25, drop_reference=0.25, drop_token=0.25)
    some = drawn(config, range(400))
    loss = torch.arange(400.0)
    figures = loss_figures(config, loss, some)
    ranges = {name: of for name, (_, of) in figures.items() if name.startswith("loss/t")}
    kinds = {name: of for name, (_, of) in figures.items() if name not in ranges}
    assert list(ranges) == ["loss/t000-249", "loss/t250-499", "loss/t500-749", "loss/t750-999"]
    assert sorted(kinds) == ["loss/with_all", "loss/without_both", "loss/without_reference", "loss/without_token"]
    for parts in (ranges, kinds):
        assert torch.stack(list(parts.values())).sum(dim=0).eq(1).all()
    assert torch.equal(ranges["loss/t250-499"], (some.timesteps >= 250) & (some.timesteps < 500))
    assert torch.equal(kinds["loss/without_both"], some.without_reference & some.without_token)
    assert torch.equal(kinds["loss/without_token"], some.without_token & ~some.without_reference)
    assert all(values is loss for values, _ in figures.values())


def test_conditions_that_are_never_dropped_have_no_figure() -> None:
    def kinds(**shares: float) -> list[str]:
        config = Lmk2VideoConfig(**shares)
        return [name for name in loss_figures(config, torch.zeros(4), drawn(config)) if not name.startswith("loss/t")]

    assert kinds(drop_both=0.1) == ["loss/without_both", "loss/with_all"]
    assert kinds(drop_both=0.0) == []
