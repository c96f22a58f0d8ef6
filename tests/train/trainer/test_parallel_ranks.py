"""Several ranks train like one, wrapped either way."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shards.microbatches import BucketedMicrobatches
from tests.support import toy_task
from tests.support.training import Ranks, assert_same, lines, recipe, train
from train.config import ParallelConfig
from train.trainer.parallel import parallelise

ROUNDING = 2e-5  # of float32 sums in another order, through Adam's division, over a few steps


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of one rank with the recipe."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return train(folder, recipe()) | {"folder": folder}


def fsdp2(**options: Any) -> dict[str, Any]:
    return {"strategy": "fsdp2", **options}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_like_one(ranks: Ranks, alone: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    first, second = ranks.run(train, tmp_path / "run", recipe(parallel={"strategy": strategy}))
    assert_same(first, second)
    assert_same(first, alone, ROUNDING)
    mine, theirs = (
        load_file(tmp_path / "run/out/weights.safetensors"),
        load_file(alone["folder"] / "out/weights.safetensors"),
    )
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=ROUNDING, atol=ROUNDING)
    for line, other in zip(lines(tmp_path / "run"), lines(alone["folder"]), strict=True):
        for name in ("step", "epoch", "loss", "absolute", "learning_rate", "gradient_norm", "skipped"):
            assert line[name] == pytest.approx(other[name], rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [("ddp", "ddp"), ("fsdp2", "fsdp2"), ("ddp", "fsdp2"), ("fsdp2", "ddp")])
def test_two_ranks_resume(ranks: Ranks, tmp_path: Path, before: str, after: str) -> None:
    noisy = {"dropout": 0.2}
    (whole, _) = ranks.run(train, tmp_path / "whole", recipe(noisy, parallel={"strategy": before}))
    ranks.run(train, tmp_path / "run", recipe(noisy, steps=4, parallel={"strategy": before}))
    (first, second) = ranks.run(train, tmp_path / "run", recipe(noisy, parallel={"strategy": after}))
    assert_same(first, second)
    assert_same(first, whole, 0.0 if before == after else ROUNDING)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_without_averaging_the_weights_are_what_is_exported(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    """Also where shards are uneven (9 rows on two ranks), and after a resume."""
    chosen = recipe({"width": 9}, ema={"decay": 0.0}, parallel={"strategy": strategy})
    whole, _ = ranks.run(train, tmp_path / "whole", chosen)
    ranks.run(train, tmp_path / "run", dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, steps=4)))
    first, second = ranks.run(train, tmp_path / "run", chosen)
    assert_same(first, second)
    assert_same(first, whole)
    exported = load_file(tmp_path / "run/out/weights.safetensors")
    assert first["ema"] == {}
    assert all(torch.equal(value, exported[name]) for name, value in first["module"].items())


def test_one_rank_goes_on_where_two_ended_and_the_other_way(
    ranks: Ranks, alone: dict[str, Any], tmp_path: Path
) -> None:
    ranks.run(train, tmp_path / "shrunk", recipe(steps=4, parallel=fsdp2()))
    assert_same(train(tmp_path / "shrunk", recipe()), alone, ROUNDING)
    train(tmp_path / "grown", recipe(steps=4))
    first, _ = ranks.run(train, tmp_path / "grown", recipe(parallel=fsdp2()))
    assert_same(first, alone, ROUNDING)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("fault", ["bad_loss", "bad_gradient"])
def test_all_ranks_skip_what_is_bad_on_one(ranks: Ranks, tmp_path: Path, fault: str, strategy: str) -> None:
    chosen = recipe({fault: (11,)}, parallel={"strategy": strategy}, log={"every": 1})
    first, second = ranks.run(train, tmp_path / "run", chosen)  # slot 11: step 3, the last sample of rank 1
    assert_same(first, second)
    assert first["skipped"] == second["skipped"] == 1
    (event,) = [line for line in lines(tmp_path / "run") if "event" in line]
    assert (event["step"], event["event"]) == (3, "skipped")
    assert event["what"] == fault.removeprefix("bad_")
    bad = key_of_slot(11)
    assert bad in event["keys"]
    assert len(event["keys"]) == (2 if (fault, strategy) == ("bad_gradient", "fsdp2") else 1)
    alone = train(tmp_path / "alone", recipe({fault: (11,)}))
    assert_same(first, alone, ROUNDING)


def key_of_slot(slot: int) -> str:
    return toy_task.ToyDataset(toy_task.Config(), 0)[slot]["key"]


def test_ranks_draw_different_noise_and_dropout(ranks: Ranks, tmp_path: Path) -> None:
    chosen = recipe({"dropout": 0.5, "noise": 1.0}, steps=2)
    first, second = ranks.run(draws, tmp_path / "run", chosen)
    assert not {*first["noise"]} & {*second["noise"]}
    assert not {*first["dropout"]} & {*second["dropout"]}
    assert ranks.run(draws, tmp_path / "again", chosen) == [first, second]


def draws(path: Path, chosen: Any) -> dict[str, list[float]]:
    """What a rank draws: noise of its samples, and a number from the global generator within each loss."""
    found: dict[str, list[float]] = {"noise": [], "dropout": []}

    class Spy(toy_task.ToyTask):
        def loss(self, module: Any, batch: Any, **about: Any) -> Any:
            found["dropout"].append(float(torch.rand(())))
            result = super().loss(module, batch, **about)
            found["noise"] += result.losses["loss"].tolist()
            return result

    outcome = train(path, chosen, task=Spy(chosen.config, "none", path / "task"))
    assert outcome["error"] is None
    return found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_options_change_nothing_but_rounding(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    plain = {"precision": "bf16"}
    expected = train(tmp_path / "alone", recipe({"dropout": 0.2}, microbatch=1, parallel=plain))
    options = plain | {"strategy": strategy, "activation_checkpointing": True}
    first, second = ranks.run(train, tmp_path / "run", recipe({"dropout": 0.2}, microbatch=1, parallel=options))
    assert_same(first, second)
    # bf16 rounds a last bit of a float32 sum up to 2^-8; FSDP2's weights of norms, and what goes into a block, as well.
    assert_same(first, expected, 5e-3 if strategy == "fsdp2" else 2e-3)


def test_gradients_in_bf16_are_near_and_resume_exactly(ranks: Ranks, alone: dict[str, Any], tmp_path: Path) -> None:
    """Each rank's gradient, and their sum, is rounded to 8 bits: near those of one process, and not equal."""
    rough = {"gradients": "bf16"}
    whole, other = ranks.run(train, tmp_path / "whole", recipe(parallel=rough))
    assert_same(whole, other)
    assert_same(whole, alone, 0.02)
    with pytest.raises(AssertionError):
        assert_same(whole, alone, ROUNDING)
    ranks.run(train, tmp_path / "run", recipe(steps=4, parallel=rough))
    first, _ = ranks.run(train, tmp_path / "run", recipe(parallel=rough))
    assert_same(first, whole)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_an_idle_parameter_is_named_on_any_number_of_ranks(ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    for outcome in ranks.run(train_with_idle, tmp_path / "run", recipe(parallel={"strategy": strategy})):
        assert "the loss does not depend on idle" in outcome["error"]


def train_with_idle(path: Path, chosen: Any) -> dict[str, Any]:
    """Train a module with a parameter that nothing uses."""
    task = toy_task.make(chosen.config, "none", path)
    module = task.build()
    module.register_parameter("idle", torch.nn.Parameter(torch.zeros(2)))
    task.build = lambda: module  # type: ignore[method-assign]
    return train(path, chosen, task=task)


def test_wrapping_for_ranks_warns_of_nothing(ranks: Ranks) -> None:
    """What PyTorch no longer likes would be said on every rank."""
    assert ranks.run(wrapping_warnings) == [[], []]


def wrapping_warnings() -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parallelise(toy_task.ToyModel(toy_task.Config()), ParallelConfig(), torch.device("cpu"), 2)
    return [str(warning.message) for warning in caught]


@pytest.mark.slow
def test_three_ranks_resume_with_the_same_bits(tmp_path: Path) -> None:
    """From three on the order of a sum over the ranks matters; it follows the layout of DDP's buckets."""
    three = Ranks(3, tmp_path)
    large = {"width": 96, "num_blocks": 6}
    whole, *_ = three.run(train, tmp_path / "whole", recipe(large, global_batch=6))
    three.run(train, tmp_path / "run", recipe(large, global_batch=6, steps=4))
    resumed, *_ = three.run(train, tmp_path / "run", recipe(large, global_batch=6))
    three.stop()
    assert_same(resumed, whole)


def test_microbatches_of_unequal_sizes_weigh_by_their_samples(ranks: Ranks, tmp_path: Path) -> None:
    """By length: 1 rank x 4 = 2 ranks x 2, and each sample counts once."""
    chosen = recipe(microbatch_seconds=3.0, microbatch=1, log={"every": 1})
    alone = train(tmp_path / "one", chosen)
    first, second = ranks.run(train, tmp_path / "two", chosen)
    assert_same(first, second)
    assert_same(first, alone, ROUNDING)
    order = BucketedMicrobatches(toy_task.ToyDataset(chosen.config, 0).num_frames, 3.0, 0)
    sizes = [len(order.shares(number)) for number in range(4 * chosen.train.steps)]
    assert len(set(sizes)) > 1, "or this test shows nothing"
    for name in ("one", "two"):
        epochs = [line["epoch"] for line in lines(tmp_path / name)]
        assert epochs == [order.epoch(4 * step) for step in range(1, chosen.train.steps + 1)]


def test_figures_are_those_of_all_ranks(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(train, tmp_path / "run", recipe({"wait_s": 0.01}, microbatch=1, log={"every": 4}))
    for line in lines(tmp_path / "run"):
        assert 0.3 < line["data_wait"] <= 1  # each rank waits 2 x 10 ms in a step of a few ms more
        assert line["step_s"] > 0.02
        assert line["samples_per_s"] < 4 / 0.02
