"""Four ranks as 2 copies of 2 shards (HSDP) and as 4 shards (FSDP2) train like one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

from tests.support import toy_task
from tests.support.training import Ranks, assert_same, lines, recipe, train
from train.config import ParallelConfig
from train.trainer.learner import Learner
from train.trainer.parallel import parallelise
from train.trainer.sharding import set_sync

ROUNDING = 2e-5  # of float32 sums in another order, through Adam's division, over a few steps
LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "hsdp": {"strategy": "fsdp2", "shard_within": 2},
}
# Uneven shards (9 rows), 2 microbatches for each of four ranks, a gradient that is clipped at every step.
SETTINGS: dict[str, Any] = {"global_batch": 8, "microbatch": 1, "optimizer": {"max_gradient_norm": 0.1}}
ODD = {"width": 9, "dropout": 0.2}


def chosen(layout: str, steps: int = 8, **parallel: Any) -> Any:
    return recipe(ODD, steps=steps, parallel=LAYOUTS[layout] | parallel, log={"every": 1}, **SETTINGS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of one process with the same microbatches."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return train(folder, chosen("ddp")) | {"folder": folder}


@pytest.mark.parametrize("accumulation", ["whole", "sharded"])
@pytest.mark.parametrize("layout", ["fsdp2", "hsdp"])
def test_four_ranks_train_like_one_process(
    four: Ranks, alone: dict[str, Any], tmp_path: Path, layout: str, accumulation: str
) -> None:
    first, *others = four.run(train, tmp_path / "run", chosen(layout, accumulation=accumulation))
    for other in others:
        assert_same(first, other)
    assert_same(first, alone, ROUNDING)
    exported, theirs = (load_file(path / "out/weights.safetensors") for path in (tmp_path / "run", alone["folder"]))
    for name, value in theirs.items():
        torch.testing.assert_close(exported[name], value, rtol=ROUNDING, atol=ROUNDING)
    for line, other in zip(lines(tmp_path / "run"), lines(alone["folder"]), strict=True):
        assert line["gradient_norm"] > 0.1, "or nothing is clipped"
        for name in ("step", "loss", "gradient_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [("hsdp", "hsdp"), ("hsdp", "fsdp2"), ("fsdp2", "hsdp"), ("ddp", "hsdp")])
def test_a_checkpoint_of_one_layout_opens_in_another(four: Ranks, tmp_path: Path, before: str, after: str) -> None:
    whole, *_ = four.run(train, tmp_path / "whole", chosen(before))
    four.run(train, tmp_path / "run", chosen(before, steps=4))
    first, *others = four.run(train, tmp_path / "run", chosen(after))
    for other in others:
        assert_same(first, other)
    assert_same(first, whole, 0.0 if before == after else ROUNDING)


def test_one_process_goes_on_where_two_copies_ended(four: Ranks, alone: dict[str, Any], tmp_path: Path) -> None:
    four.run(train, tmp_path / "run", chosen("hsdp", steps=4))
    assert_same(train(tmp_path / "run", chosen("ddp")), alone, ROUNDING)


def test_a_step_that_is_bad_on_one_rank_is_skipped_on_all(four: Ranks, tmp_path: Path) -> None:
    one = dataclasses.replace(chosen("hsdp"), config=dataclasses.replace(chosen("hsdp").config, bad_gradient=(21,)))
    first, *others = four.run(train, tmp_path / "run", one)
    for other in others:
        assert_same(first, other)
    assert [one["skipped"] for one in (first, *others)] == [1, 1, 1, 1]


def test_a_copy_is_shared_out_among_the_ranks_of_a_machine(four: Ranks, tmp_path: Path) -> None:
    """Two machines of two ranks; each rank holds half of every parameter, as its counterpart does."""
    shards = four.run(local_shards, ParallelConfig(strategy="fsdp2", shard_within="node"), [2, 2, 2, 2])
    assert shards[0] == shards[2] and shards[1] == shards[3]
    assert shards[0] != shards[1]


def test_machines_with_unequal_numbers_of_ranks_are_refused(four: Ranks) -> None:
    for found in four.run(local_shards, ParallelConfig(strategy="fsdp2", shard_within="node"), [3, 3, 3, 1]):
        assert "the machines have 1 to 3 ranks" in found
    for found in four.run(local_shards, ParallelConfig(strategy="fsdp2", shard_within=3), [4, 4, 4, 4]):
        assert "4 ranks cannot be divided into groups of 3" in found


def local_shards(config: ParallelConfig, local: list[int]) -> Any:
    """Numbers that this rank holds of each parameter, or the error."""
    rank = torch.distributed.get_rank()
    module = toy_task.make(toy_task.Config(), "none", Path("task")).build()
    try:
        module = parallelise(module, config, torch.device("cpu"), 4, local[rank])
    except ValueError as error:
        return str(error)
    return {name: p.to_local().flatten().tolist() for name, p in module.named_parameters() if isinstance(p, DTensor)}


@pytest.mark.parametrize("layout", ["fsdp2", "hsdp"])
def test_bf16_gathers_bf16_and_sums_float32(four: Ranks, tmp_path: Path, layout: str) -> None:
    expected = train(tmp_path / "alone", recipe({"dropout": 0.2}, parallel={"precision": "bf16"}, **SETTINGS))
    options = recipe({"dropout": 0.2}, parallel=LAYOUTS[layout] | {"precision": "bf16"}, **SETTINGS)
    first, *others = four.run(train, tmp_path / "run", options)
    for other in others:
        assert_same(first, other)
    for part in ("module", "optimizer", "ema"):
        assert {value.dtype for value in first[part].values()} == {torch.float32}
    # DDP's norms take weights in float32, and a block's sums of inputs and outputs are not rounded.
    assert_same(first, expected, 5e-3)
    found = four.run(dtypes, tmp_path / "dtypes", options)
    assert found == [{"weights": ["bfloat16"], "gradients": ["float32"]}] * 4


def dtypes(path: Path, options: Any) -> dict[str, list[str]]:
    """Numbers of the weights that layers compute with, and of the gradients that a rank is left with."""
    weights: set[torch.dtype] = set()
    gradients: set[torch.dtype] = set()
    forward, update = nn.Linear.forward, Learner.update

    def watched(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        weights.add(self.weight.dtype)
        return forward(self, x)

    def looked(self: Learner, *args: Any, **about: Any) -> None:
        gradients.update(p.grad.dtype for p in self.parameters.values() if p.grad is not None)
        update(self, *args, **about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", watched)
        patch.setattr(Learner, "update", looked)
        train(path, options)
    names = (sorted(str(one).removeprefix("torch.") for one in found) for found in (weights, gradients))
    return dict(zip(("weights", "gradients"), names, strict=True))


@pytest.mark.parametrize("accumulation", ["whole", "sharded"])
def test_gradients_stay_whole_or_are_shared_out_between_microbatches(
    four: Ranks, tmp_path: Path, accumulation: str
) -> None:
    """What a rank holds before the second of two: nothing of its own yet, or its share of the sums."""
    found = four.run(kept_between, tmp_path / "run", chosen("fsdp2", accumulation=accumulation))
    assert found == [accumulation == "sharded"] * 4


def kept_between(path: Path, options: Any) -> bool:
    """Whether the shares of parameters ever have gradients when the last microbatch of a step begins."""
    found: list[bool] = []

    def watched(module: nn.Module, config: ParallelConfig, last: bool) -> None:
        if last:
            found.append(all(p.grad is not None for p in module.parameters() if p.requires_grad))
        set_sync(module, config, last)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.trainer.parallel.set_sync", watched)
        train(path, options)
    return any(found)
