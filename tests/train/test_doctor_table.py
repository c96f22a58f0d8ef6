"""The doctor's bytes of a rank at the paper's sizes, against a table that was worked out by hand.

T numbers are trained and P are there in all; a float32 takes 4 bytes. A whole copy is: weights 4 P, gradients 4 T,
both moments of AdamW 8 T, averages 4 T. Of n ranks that share a copy each has an n-th, but for the gradients, which are
whole (4 T) where a rank has several microbatches in a step, unless they are exchanged after each.

              P                T              4 P     4 T    8 T     4 T    sum
    stage 1   1,905,616,127    1,843,851,967  7.622   7.375  14.751  7.375  37.124 GB
    stage 2   2,358,825,407      453,209,280  9.435   1.813   3.626  1.813  16.687 GB
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.hollow_tasks import hollow
from train.config import ParallelConfig
from train.doctor.footprint import footprint
from train.recipe import Recipe, recipes_of
from train.trainer.sharding import layout_of

STAGE1, STAGE2 = "lmk2video-stage1", "lmk2video-stage2"
NUMBERS = {STAGE1: (1_905_616_127, 1_843_851_967), STAGE2: (2_358_825_407, 453_209_280)}
"""All numbers, and those that are trained."""
CLOSE = 0.005
"""Relative difference that is allowed: first dimensions that the ranks do not divide are rounded up, and buffers (the
position codes of the motion modules) are counted by the doctor only."""


@dataclass(frozen=True)
class Row:
    """A recipe on some ranks, and what each of them holds, in 10⁹ bytes."""

    task: str
    recipe: str
    ranks: int
    local: int
    parallel: dict[str, Any]
    weights: float
    gradients: float
    moments: float
    averages: float


FSDP2 = {"strategy": "fsdp2"}
TABLE = [
    Row(STAGE1, "h100x8", 8, 8, {"strategy": "ddp"}, 7.622, 7.375, 14.751, 7.375),
    # 128 images on 8 ranks: two microbatches of 8 each. An eighth of 7.622, 14.751, 7.375; gradients whole.
    Row(STAGE1, "h100x8", 8, 8, FSDP2, 0.953, 7.375, 1.844, 0.922),
    Row(STAGE1, "h100x8", 8, 8, FSDP2 | {"accumulation": "sharded"}, 0.953, 0.922, 1.844, 0.922),
    # HSDP: 64 ranks, eight on a machine, that share a copy; one microbatch of 4, so that nothing stays whole.
    Row(STAGE1, "h100x64", 64, 8, FSDP2 | {"shard_within": "node"}, 0.953, 0.922, 1.844, 0.922),
    Row(STAGE1, "h100x64", 64, 8, FSDP2, 0.119, 0.115, 0.230, 0.115),
    Row(STAGE2, "h100x8", 8, 8, {"strategy": "ddp"}, 9.435, 1.813, 3.626, 1.813),
    # 16 windows on 4 ranks: four microbatches of one. A quarter of 9.435, 3.626, 1.813; gradients whole.
    Row(STAGE2, "a100x4", 4, 4, FSDP2, 2.359, 1.813, 0.906, 0.453),
    # Two copies, on two ranks each.
    Row(STAGE2, "a100x4", 4, 4, FSDP2 | {"shard_within": 2}, 4.718, 1.813, 1.813, 0.906),
]


def recipe_of(row: Row) -> Recipe:
    base = recipes_of(row.task)[row.recipe]()
    parallel: ParallelConfig = dataclasses.replace(base.train.parallel, **row.parallel)
    return dataclasses.replace(base, train=dataclasses.replace(base.train, parallel=parallel))


def named(row: Row) -> str:
    layout = layout_of(recipe_of(row).train.parallel, row.ranks, row.local)
    return f"{row.task}-{row.recipe}-{layout.name}-{row.parallel.get('accumulation', 'whole')}"


@pytest.mark.parametrize("row", TABLE, ids=named)
def test_the_table_is_what_the_doctor_says(row: Row) -> None:
    recipe = recipe_of(row)
    found = footprint(hollow(row.task, recipe), recipe, row.ranks, row.local)
    counted = (found.weights_bytes, found.gradients_bytes, found.moments_bytes, found.averages_bytes)
    assert counted == pytest.approx(tuple(1e9 * n for n in wanted(row)), rel=CLOSE)
    assert (found.parameters, found.trained) == NUMBERS[row.task]


def wanted(row: Row) -> tuple[float, ...]:
    return row.weights, row.gradients, row.moments, row.averages
