"""Microbatch by the number of ranks: how many samples a rank takes at once, where the settings leave that open.

The rule: where `TrainConfig.microbatch` is None, it is the largest divisor of global_batch / ranks that is at most
`parallel.most_at_once`, so that a rank needs as few backward passes as its memory allows. It is settled at each start,
before anything is made, and is written into config.json: from there every rank has it.

The samples of a step, and what they draw, do not depend on it. So a run may go on with another microbatch on another
number of ranks, and only the last bits of sums change. It keeps the one that it began with where that decides more
(`keeps_microbatch`).
"""

from __future__ import annotations

from dataclasses import replace

from train.config import TrainConfig
from train.recipe import Recipe


def settled(train: TrainConfig, ranks: int, kept: int | None = None) -> TrainConfig:
    """Settings with a number as `microbatch`: the given one, else the one that is kept, else by the rule.

    Args:
        train: Settings as they were asked for.
        ranks: Number of ranks.
        kept: Microbatch of a run that goes on and keeps it; None: free to choose.

    Raises:
        ValueError: So many ranks cannot share the batch; says which can.
    """
    train.check_ranks(ranks)
    if train.microbatch is not None:
        return train
    share = train.global_batch // ranks
    most = min(share, train.parallel.most_at_once or share)
    found = replace(train, microbatch=kept or next(size for size in range(most, 0, -1) if share % size == 0))
    found.check_ranks(ranks)  # what is kept may not fit
    return found


def keeps_microbatch(recipe: Recipe) -> bool:
    """Whether a run keeps the microbatch that it began with.

    It does under dropout, whose masks are drawn for a microbatch as a whole; where samples depend on their neighbours
    (`independent` of the task's Config is False); and where microbatches go by length, so that it says how many a step
    has.
    """
    by_length = recipe.train.microbatch_seconds is not None
    dropout = getattr(recipe.config, "dropout", 0)
    return bool(by_length or dropout or not getattr(recipe.config, "independent", True))


def microbatch_text(train: TrainConfig) -> str:
    """Microbatches of a training in words, for people."""
    if train.microbatch_seconds is not None:
        return f"microbatches of {train.microbatch_seconds:g} s"
    if train.microbatch is not None:
        return f"microbatches of {train.microbatch}"
    most = train.parallel.most_at_once
    return "microbatches by the number of ranks" + (f", of at most {most}" if most else "")
