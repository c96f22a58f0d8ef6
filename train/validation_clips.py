"""Which clips are validated: the same ones at every step, held-out ones first."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from shards.reader import Sample
from train.corpus import Corpus

log = logging.getLogger(__name__)

HELD_OUT, TRAINING = "held-out clips", "training clips"


def validation_clips(corpus: Corpus, columns: Sequence[str], count: int) -> dict[str, list[Sample]]:
    """The first `count` clips of the `val` split, and as many of the training split to see the fit.

    Returns:
        Title → samples. Without held-out clips there is no such title, and a warning says so.
    """
    chosen: dict[str, list[Sample]] = {}
    for title, split in ((HELD_OUT, "val"), (TRAINING, "train")):
        reader = corpus.reader(columns, split)
        chosen[title] = [reader[number] for number in range(min(count, len(reader)))]
    if not chosen[HELD_OUT]:
        log.warning("the data set has no clip with speech in its val split: only training clips are validated")
        del chosen[HELD_OUT]
    return chosen
