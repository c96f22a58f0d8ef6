"""Which checkpoints and which exported weights of a run stay: pure functions of steps, settings and figures.

Nothing here touches a disk. Checkpoints are removed by `train.trainer.checkpoint_files`, weights by
`train.run.kept_weights`, both on rank 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from train.config import CheckpointConfig


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is known about the steps of a run that are validated: the best is sought among them."""

    figures: Mapping[int, float] = field(default_factory=dict)
    """Step → the figure that `checkpoint.best` names, of the steps whose validation is done; one that is not finite is
    never the best."""
    pending: frozenset[int] = frozenset()
    """Steps whose validation is still to come."""


def is_due(config: CheckpointConfig, step: int, *, validated: bool = False) -> bool:
    """Whether the number of a step says that it gets a checkpoint.

    Args:
        config: Settings of the checkpoints.
        step: Number of steps that are done.
        validated: Whether the step is validated.
    """
    milestone = config.keep_every is not None and step % config.keep_every == 0
    return step % config.every == 0 or milestone or (validated and config.best is not None)


def best_step(steps: Collection[int], config: CheckpointConfig, figures: Mapping[int, float]) -> int | None:
    """Step with the best figure; the earliest one of equal figures, and None where none has a figure."""
    sign = 1.0 if config.best_is == "lower" else -1.0
    known = [(sign * figures[step], step) for step in steps if step in figures and math.isfinite(figures[step])]
    return min(known)[1] if known and config.best is not None else None


def removable_checkpoints(steps: Collection[int], config: CheckpointConfig, judged: Judged) -> list[int]:
    """Steps whose checkpoints may go, ascending.

    The newest `keep` stay, those at multiples of `keep_every`, the best one, and with `best` those whose validation is
    still to come: each of them may turn out to be the best.

    Args:
        steps: Steps with a whole checkpoint.
        config: Settings of the checkpoints.
        judged: What is known about the steps.
    """
    ordered = sorted(steps)
    stay = set(ordered[-config.keep :])
    if config.keep_every is not None:
        stay |= {step for step in ordered if step % config.keep_every == 0}
    if config.best is not None:
        stay |= {best_step(ordered, config, judged.figures), *judged.pending}
    return [step for step in ordered if step not in stay]


def removable_weights(steps: Collection[int], config: CheckpointConfig, judged: Judged) -> list[int]:
    """Steps whose exported weights may go, ascending.

    Only with `keep_validated` best are there any: all but the best one, or but the newest one as long as none has a
    figure. With `none` weights are not kept in the first place, and those that earlier settings kept stay.

    Args:
        steps: Steps whose weights are kept.
        config: Settings of the checkpoints.
        judged: What is known about the steps.
    """
    if config.keep_validated != "best" or not steps:
        return []
    best = best_step(steps, config, judged.figures)
    stays = max(steps) if best is None else best
    return sorted(step for step in steps if step != stays)


def most_checkpoints(config: CheckpointConfig, *, steps: int, validations: int, pending: int) -> int:
    """Largest number of checkpoints that steps from 0 on can leave at a time, with the one that is being written.

    Args:
        config: Settings of the checkpoints; those that `every_minutes` adds are among the newest.
        steps: Number of steps.
        validations: Number of validations in them.
        pending: Most validations that are still to come at a time.
    """
    judged = config.best is not None
    written = steps // config.every + 1 + (validations if judged else 0)
    written += steps // config.keep_every if config.keep_every is not None else 0
    stay = config.keep + 1
    stay += steps // config.keep_every if config.keep_every is not None else 0
    stay += 1 + min(pending, validations) if judged else 0
    return min(written, stay) if config.every_minutes is None else stay
