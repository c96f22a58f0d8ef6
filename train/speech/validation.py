"""What validation of a model that hears speech shows: the same clips at every step, held-out ones first."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from infer.evaluation.evaluation_result import write_evaluations
from infer.evaluation.motion_evaluation import COLUMNS, Evaluation, Kind, Watch
from shards.reader import Sample
from train.plots import ValidationFigures
from train.speech.corpus import Corpus, spread
from train.speech.trace_video import write_trace_video

log = logging.getLogger(__name__)

HELD_OUT, TRAINING = "held-out clips", "training clips"


class Evaluate(Protocol):
    """Measures some clips."""

    def __call__(self, samples: Sequence[Sample], *, held_out: bool, watch: Watch) -> Evaluation:
        """`watch` draws; see `infer.evaluation.motion_evaluation`."""
        ...


def validate_clips(corpus: Corpus, kind: Kind, count: int, folder: Path, evaluate: Evaluate) -> dict[str, float]:
    """Evaluate, draw, and write the numbers.

    Args:
        corpus: Of the run.
        kind: What is predicted.
        count: Clips of each split.
        folder: Where `validation.json`, its table, plots and videos (of held-out clips) go.
        evaluate: Measures the clips.

    Returns:
        What to log, such as `held-out/mesh_l1`.
    """
    evaluations: dict[str, Evaluation] = {}
    for title, samples in _chosen(corpus, COLUMNS[kind], count).items():
        held_out = title == HELD_OUT
        figures = ValidationFigures(folder / _short(title), write_trace_video if held_out else None)
        evaluations[title] = evaluate(samples, held_out=held_out, watch=figures)
    write_evaluations(folder, evaluations)
    return {
        f"{_short(title)}/{name}": value
        for title, evaluation in evaluations.items()
        for name, value in evaluation.numbers().items()
    }


def _chosen(corpus: Corpus, columns: Sequence[str], count: int) -> dict[str, list[Sample]]:
    """`count` clips from all over the `val` split, and as many of the training split to see the fit."""
    chosen: dict[str, list[Sample]] = {}
    for title, split in ((HELD_OUT, "val"), (TRAINING, "train")):
        reader = corpus.reader(columns, split)
        chosen[title] = [reader[number] for number in spread(len(reader), count)]
    if not chosen[HELD_OUT]:
        log.warning("the data set has no clip with speech in its val split: only training clips are validated")
        del chosen[HELD_OUT]
    return chosen


def _short(title: str) -> str:
    return title.split()[0]
