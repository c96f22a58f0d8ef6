"""Microbatch by the number of ranks: the rule, what it refuses, and runs that go on with other ranks."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.support import toy_task
from tests.support.train_commands import run_train, toy, weights_of
from train.config import ParallelConfig, TrainConfig
from train.microbatch import keeps_microbatch, settled
from train.recipe import Recipe, recipe_from_json
from train.run.run_config import differences
from train.run.run_folder import RunFolder

BATCHES = st.integers(1, 600)
RANKS = st.integers(1, 70)
LIMITS = st.none() | st.integers(1, 40)


def asked(batch: int, most: int | None = None, **more: int | float | None) -> TrainConfig:
    return TrainConfig(steps=1, global_batch=batch, parallel=ParallelConfig(most_at_once=most), **more)  # type: ignore


@given(BATCHES, RANKS, LIMITS)
def test_it_is_the_largest_that_divides_the_share_and_fits(batch: int, ranks: int, most: int | None) -> None:
    train = asked(batch, most)
    if batch % ranks:
        with pytest.raises(ValueError, match=f"^{ranks} ranks cannot share a global batch of {batch}: take "):
            settled(train, ranks)
        return
    found, share = settled(train, ranks), batch // ranks
    sizes = [size for size in range(1, share + 1) if share % size == 0 and size <= (most or share)]
    assert found.microbatch == sizes[-1] and found == dataclasses.replace(train, microbatch=sizes[-1])
    # It holds the whole step, and once settled it stays.
    assert found.microbatch_size * found.accumulation(ranks) * ranks == batch
    assert settled(found, ranks) == found
    assert ranks in found.fitting_ranks and set(found.fitting_ranks) <= set(train.fitting_ranks)


@given(BATCHES, RANKS)
def test_the_error_names_ranks_and_batches_that_do_fit(batch: int, ranks: int) -> None:
    train = asked(batch)
    if batch % ranks == 0:
        return
    with pytest.raises(ValueError) as caught:
        settled(train, ranks)
    numbers, other = str(caught.value).split(": take ")[1].split(" rank", 1)
    named = [int(number) for number in numbers.replace(" or ", ", ").split(", ")]
    assert named == train.fitting_ranks == [count for count in range(1, batch + 1) if batch % count == 0]
    assert settled(asked(int(other.rsplit(" ", 1)[1])), ranks).accumulation(ranks) >= 1


def test_a_given_one_stays_and_is_refused_with_all_ways_out() -> None:
    train = asked(8, 1, microbatch=4)
    assert settled(train, 2, kept=1) is train
    with pytest.raises(ValueError) as caught:
        settled(train, 4)
    assert str(caught.value) == (
        "4 ranks with microbatches of 4 cannot share a global batch of 8: take 1 or 2 ranks, or --train.microbatch 2"
    )
    with pytest.raises(ValueError, match=r"take 1 or 2 ranks, or another --train.global-batch, such as 9$"):
        settled(train, 3)
    with pytest.raises(ValueError, match=r"^2 ranks cannot share a global batch of 1: take 1 rank, or another .* 2$"):
        settled(asked(1), 2)


def test_a_kept_one_must_fit_too() -> None:
    assert settled(asked(8), 2, kept=2).microbatch == 2
    with pytest.raises(
        ValueError, match="8 ranks with microbatches of 2 cannot share a global batch of 8: take 1, 2 or"
    ):
        settled(asked(8), 8, kept=2)


@dataclass(frozen=True, kw_only=True)
class Neighbours(toy_task.Config):
    """Settings of a task whose samples depend on their neighbours."""

    independent: ClassVar[bool] = False


@pytest.mark.parametrize(
    ("config", "seconds", "keeps"),
    [
        (toy_task.Config(), None, False),
        (toy_task.Config(dropout=0.1), None, True),
        (toy_task.Config(), 3.0, True),
        (Neighbours(), None, True),
    ],
)
def test_a_run_keeps_it_where_it_decides_more(config: toy_task.Config, seconds: float | None, keeps: bool) -> None:
    assert keeps_microbatch(Recipe(config=config, train=asked(8, microbatch_seconds=seconds))) == keeps


# --- whole runs -------------------------------------------------------------------------------------------------------

BY_RANKS = ("--train.microbatch", "None")


def finished(folder: Path, run: Path, *options: object) -> Path:
    done = run_train(folder, *toy(run, *options))
    assert done.process.exitcode == 0, done.stderr
    return run


def microbatch_of(run: Path) -> int:
    return json.loads((run / "config.json").read_text())["recipe"]["train"]["microbatch"]


def test_ranks_that_derive_it_learn_what_ranks_that_are_given_it_do(tmp_path: Path) -> None:
    """To the bit where it is the same, to rounding where it is not."""
    noise = ("--config.noise", 0.3, "--train.global-batch", 8)
    runs = {
        ranks: finished(tmp_path / f"out{ranks}", tmp_path / f"by {ranks}", *noise, *BY_RANKS, "--workers", ranks)
        for ranks in (1, 2)
    }
    assert [microbatch_of(run) for run in runs.values()] == [8, 4]
    given = finished(tmp_path / "out", tmp_path / "given", *noise, "--train.microbatch", 4, "--workers", 2)
    assert weights_of(runs[2]) == weights_of(given) != weights_of(runs[1])
    one, two = (load_file(run / "pretrained_model" / toy_task.WEIGHTS) for run in runs.values())
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-6)


def test_the_limit_is_kept_and_ranks_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    limit = (*BY_RANKS, "--train.global-batch", 12, "--train.parallel.most-at-once", 5)
    assert microbatch_of(finished(tmp_path / "a", tmp_path / "run", *limit)) == 4
    done = run_train(tmp_path / "b", *toy(tmp_path / "run 2", *limit, "--workers", 5))
    assert done.process.exitcode == 2 and not (tmp_path / "run 2").exists()
    (line,) = done.errors
    assert "5 ranks cannot share a global batch of 12: take 1, 2, 3, 4, 6 or 12 ranks, or another" in line


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, 4), (0.2, 2)])
def test_with_other_ranks_a_run_takes_another_one_but_under_dropout(
    tmp_path: Path, dropout: float, expected: int
) -> None:
    run, options = tmp_path / "run", (*BY_RANKS, "--config.dropout", dropout)
    assert microbatch_of(finished(tmp_path / "a", run, *options, "--train.steps", 4, "--workers", 2)) == 2
    # As a run of older code, whose config.json has a number, and none of the newer settings.
    older = json.loads((run / "config.json").read_text())
    del older["recipe"]["train"]["parallel"]["most_at_once"]
    (run / "config.json").write_text(json.dumps(older))
    done = run_train(tmp_path / "b", *toy(run, *options, "--train.steps", 8))
    assert done.process.exitcode == 0 and "going on from step 4" in done.stderr
    assert microbatch_of(run) == expected
    # With dropout the masks of the whole run are those of microbatches of 2.
    whole = finished(tmp_path / "c", tmp_path / "whole", "--config.dropout", dropout, "--train.microbatch", 2)
    one, two = (load_file(place / "pretrained_model" / toy_task.WEIGHTS) for place in (run, whole))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-6)


def test_a_settled_run_is_alike_for_any_ranks(tmp_path: Path) -> None:
    run = RunFolder.open(finished(tmp_path / "out", tmp_path / "run", *BY_RANKS))
    again = recipe_from_json("toy", json.loads((run.path / "config.json").read_text())["recipe"])
    other = dataclasses.replace(again, train=dataclasses.replace(again.train, microbatch=1))
    assert differences(run.config, dataclasses.replace(run.config, recipe=other)) == []
