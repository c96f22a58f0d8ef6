"""What is random in the loss of Lmk2Video, and how errors are weighed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from talkinghead.models.noise_schedule import PAPER
from train.lmk2video.config import Lmk2VideoConfig
from train.lmk2video.loss import BUCKETS, Draws, draw, even_timestep, loss_figures, velocity_loss

SHAPE = (2, 4, 3, 5)
CONFIG = Lmk2VideoConfig()


def drawn(config: Lmk2VideoConfig = CONFIG, slots: range | list[int] = range(4), seed: int = 0) -> Draws:
    return draw(config, seed, torch.tensor([*slots]), SHAPE)


def test_draws_are_a_samples_own() -> None:
    """Not the neighbours, the order or the batch decide, but seed and slot."""
    whole = drawn()
    other = drawn(slots=[2, 9])
    for field in dataclasses.fields(Draws):
        assert torch.equal(getattr(whole, field.name)[2], getattr(other, field.name)[0]), field.name
    assert not torch.equal(drawn(seed=1).noise, whole.noise)
    parts = (whole.noise, whole.target)
    assert all(not torch.equal(part[0], part[1]) and not torch.equal(part[0, 0], part[0, 1]) for part in parts)
    assert not torch.equal(whole.noise, whole.target), "noise and the VAE's own noise are different draws"
    assert not torch.equal(whole.target[:, 0], whole.reference)


def test_noise_and_timesteps_are_of_their_distributions() -> None:
    some = drawn(slots=range(2000))
    assert abs(float(some.timesteps.float().mean()) - 499.5) < 20 and int(some.timesteps.max()) == 999
    assert abs(float(some.target.std()) - 1) < 0.01
    # The offset is one number for each sample and channel, in all frames and positions.
    means = some.noise.mean(dim=(1, 3, 4))
    expected = (0.05**2 + 1 / 30) ** 0.5
    assert float(means.std()) == pytest.approx(expected, rel=0.05)


def test_conditions_are_dropped_as_often_as_asked() -> None:
    config = Lmk2VideoConfig(drop_reference=0.2, drop_token=0.1, drop_both=0.15)
    some = drawn(config, range(4000))
    reference, token = some.without_reference, some.without_token
    for found, share in (
        (reference & token, 0.15),
        (reference & ~token, 0.2),
        (token & ~reference, 0.1),
    ):
        assert float(found.float().mean()) == pytest.approx(share, abs=0.025)
    never = Lmk2VideoConfig(drop_both=0.0)
    assert not drawn(never, range(50)).without_reference.any() and not drawn(never, range(50)).without_token.any()
    assert drawn(Lmk2VideoConfig(drop_both=1.0)).without_reference.all()


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


def test_given_timesteps_keep_all_conditions_and_all_other_draws() -> None:
    config = Lmk2VideoConfig(drop_both=0.5, drop_reference=0.3, drop_token=0.2)
    given = torch.tensor([even_timestep(number, 4) for number in range(4)])
    some, plain = draw(config, 0, torch.arange(4), SHAPE, given), drawn(config)
    assert some.timesteps.tolist() == [125, 375, 625, 875]
    assert not some.without_reference.any() and not some.without_token.any()
    assert torch.equal(some.noise, plain.noise) and torch.equal(some.target, plain.target)
    assert plain.without_reference.any() or plain.without_token.any()


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
