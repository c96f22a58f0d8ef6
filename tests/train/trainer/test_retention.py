"""Which checkpoints and weights stay, for any steps, settings and figures."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import CheckpointConfig
from train.trainer.retention import (
    Judged,
    best_step,
    is_due,
    most_checkpoints,
    removable_checkpoints,
    removable_weights,
)

STEPS = st.sets(st.integers(1, 60), max_size=20)
FIGURES = st.dictionaries(st.integers(1, 60), st.floats(allow_nan=True), max_size=20)


@st.composite
def configs(draw: st.DrawFn) -> CheckpointConfig:
    best = draw(st.sampled_from([None, "validation/loss"]))
    modes: list[Literal["all", "best", "none"]] = ["all", "none", "best"] if best is not None else ["all", "none"]
    return CheckpointConfig(
        every=draw(st.integers(1, 20)),
        keep=draw(st.integers(1, 5)),
        keep_every=draw(st.none() | st.integers(1, 20)),
        best=best,
        best_is=draw(st.sampled_from(["lower", "higher"])),
        keep_validated=draw(st.sampled_from(modes)),
    )


@given(steps=STEPS, config=configs(), figures=FIGURES, pending=st.frozensets(st.integers(1, 60), max_size=5))
def test_only_those_go_that_nothing_keeps(
    steps: set[int], config: CheckpointConfig, figures: dict[int, float], pending: frozenset[int]
) -> None:
    judged = Judged(figures=figures, pending=pending)
    gone = removable_checkpoints(steps, config, judged)
    assert gone == sorted(gone) and set(gone) <= steps
    kept = steps - set(gone)
    newest = set(sorted(steps)[-config.keep :])
    milestones = {step for step in steps if config.keep_every and step % config.keep_every == 0}
    known = {step: figures[step] for step in steps & figures.keys() if math.isfinite(figures[step])}
    best: set[int] = set()
    if config.best is not None and known:
        limit = (min if config.best_is == "lower" else max)(known.values())
        best = {min(step for step, figure in known.items() if figure == limit)}
    waiting = steps & pending if config.best else set()
    assert kept == newest | milestones | best | waiting, "exactly these stay"
    assert not steps or max(steps) in kept
    # What stays once stays when it is asked again: nothing goes bit by bit.
    assert removable_checkpoints(kept, config, judged) == []


@given(steps=STEPS, config=configs(), figures=FIGURES)
def test_validated_weights_go_only_where_the_best_alone_is_asked_for(
    steps: set[int], config: CheckpointConfig, figures: dict[int, float]
) -> None:
    gone = removable_weights(steps, config, Judged(figures=figures))
    if config.keep_validated != "best" or not steps:
        assert gone == []
        return
    (left,) = steps - set(gone)
    best = best_step(steps, config, figures)
    assert left == (max(steps) if best is None else best)


@given(config=configs(), seed=st.randoms(use_true_random=False), steps=st.integers(1, 80), every=st.integers(1, 15))
def test_a_training_never_loses_its_best_checkpoint_nor_holds_more_than_is_counted(
    config: CheckpointConfig, seed: object, steps: int, every: int
) -> None:
    """A training whose validations come late: at most three wait at a time."""
    there: set[int] = set()
    figures: dict[int, float] = {}
    waiting: list[int] = []
    most = 0
    for step in range(1, steps + 1):
        validated = step == steps or step % every == 0
        if validated:
            waiting = [*waiting, step][-3:]
        if step == steps or is_due(config, step, validated=validated):
            most = max(most, len(there) + 1)  # the one that is being written
            there.add(step)
            there -= set(removable_checkpoints(there, config, Judged(figures=figures, pending=frozenset(waiting))))
        if waiting and seed.random() < 0.5:  # type: ignore[attr-defined]
            figures[waiting.pop(0)] = float(seed.randint(0, 5))  # type: ignore[attr-defined]
        if config.best is not None and figures:
            best = best_step(list(figures), config, figures)
            assert best in there, "of all that were ever validated"
    assert most <= most_checkpoints(config, steps=steps, validations=-(-steps // every), pending=3)


def test_the_number_of_a_step_says_when() -> None:
    config = CheckpointConfig(every=4, keep_every=6, best="validation/loss")
    assert [step for step in range(1, 13) if is_due(config, step)] == [4, 6, 8, 12]
    assert is_due(config, 5, validated=True) and not is_due(CheckpointConfig(every=4), 5, validated=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"every": 0}, "at least 1"),
        ({"keep_every": 0}, "keep_every"),
        ({"every_minutes": 0.0}, "every_minutes"),
        ({"every_minutes": math.nan}, "every_minutes"),
        ({"best": "loss"}, "name of a figure of the validation"),
        ({"keep_validated": "best"}, "by checkpoint.best"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CheckpointConfig(**wrong)  # type: ignore[arg-type]
