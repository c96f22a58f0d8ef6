"""What is random in the loss of Lmk2Video."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from shards.loader import collate
from talkinghead import rng
from talkinghead.models.noise_schedule import draw_noise
from train.lmk2video.config import Lmk2VideoConfig
from train.lmk2video.draws import Draws, WindowDraws
from train.lmk2video.loss import even_timestep

SHAPE = (2, 4, 3, 5)
CONFIG = Lmk2VideoConfig()


def drawn(config: Lmk2VideoConfig = CONFIG, slots: range | list[int] = range(4), seed: int = 0) -> Draws:
    draw = WindowDraws(config=config, seed=seed, shape=SHAPE)
    items = [{"slot": slot, "key": str(slot)} for slot in slots]
    return Draws.of(collate([item | draw(item) for item in items]))


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


def test_given_timesteps_keep_all_conditions_and_all_other_draws() -> None:
    config = Lmk2VideoConfig(drop_both=0.5, drop_reference=0.3, drop_token=0.2)
    draw = WindowDraws(config=config, seed=0, shape=SHAPE)
    items = [{"slot": slot, "key": str(slot), "timestep": even_timestep(slot, 4)} for slot in range(4)]
    some, plain = Draws.of(collate([item | draw(item) for item in items])), drawn(config)
    assert some.timesteps.tolist() == [125, 375, 625, 875]
    assert not some.without_reference.any() and not some.without_token.any()
    assert torch.equal(some.noise, plain.noise) and torch.equal(some.target, plain.target)
    assert plain.without_reference.any() or plain.without_token.any()


def test_draws_are_those_of_every_run_so_far() -> None:
    """Each has a generator of its own, named by a purpose that never changes."""
    config = Lmk2VideoConfig(drop_reference=0.3, drop_token=0.2, drop_both=0.4)
    some = drawn(config, [3, 70], seed=11)
    for row, slot in enumerate((3, 70)):
        codec = rng.generator(11, "codec noise", slot).standard_normal((3, 4, 3, 5), np.float32)
        assert np.array_equal(some.target[row], codec[:2]) and np.array_equal(some.reference[row], codec[2])
        assert torch.equal(some.noise[row], draw_noise(11, (slot,), SHAPE, offset=0.05))
        assert some.timesteps[row] == rng.generator(11, "timestep", slot).integers(1000)
        chance = rng.uniform(11, "conditioning dropout", slot)
        assert bool(some.without_reference[row]) is (chance < 0.7)
        assert bool(some.without_token[row]) is (chance < 0.4 or 0.7 <= chance < 0.9)


def test_processes_that_read_can_draw() -> None:
    draw = WindowDraws(config=CONFIG, seed=4, shape=SHAPE)
    there = pickle.loads(pickle.dumps(draw))({"slot": 9})  # noqa: S301
    assert all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(there[name])) for name, value in draw({"slot": 9}).items()
    )


def test_bytes_of_a_sample_are_as_stated() -> None:
    for frames, stated in ((1, 0.2e6), (16, 2.2e6)):
        fields = WindowDraws(config=CONFIG, seed=4, shape=(frames, 4, 64, 64))({"slot": 9})
        found = sum(value.nbytes for value in fields.values() if torch.is_tensor(value))
        assert found == 4 * (2 * frames + 1) * 4 * 64 * 64 and found == pytest.approx(stated, rel=0.1)
