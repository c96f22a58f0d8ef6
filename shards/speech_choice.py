"""Choice of clips that models of speech learn from: sound that can be heard, and where it is known, speech in it.

What ingest knows of a sound is whether it is there and loud enough. Whether it is speech is known where the derived
column `speech_activity` was made. A data set without it can be trained on all the same, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shards.manifest import DatasetManifest
from shards.reader import SPEECH
from shards.selection import Selection

log = logging.getLogger(__name__)

COLUMN, SHARE = "speech_activity", "speech_share"
LEAST_SHARE = 0.2
"""Smallest share of frames with speech. Talking clips have 0.5 to 1, music and noise at most 0.01."""


def with_audible_sound(at_most: Mapping[str, float]) -> dict[str, float]:
    """Upper bounds of scores, and those of `shards.reader.SPEECH`; the lower of two bounds of a score counts."""
    return {**at_most, **{score: min(most, at_most.get(score, most)) for score, most in SPEECH.items()}}


def with_speech(
    selection: Selection, manifest: DatasetManifest, join: Sequence[str] = (), *, begun: bool = False
) -> Selection:
    """Rules, and those that leave out clips without speech.

    Clips must have audible sound; and where the data set has the column `speech_activity`, `LEAST_SHARE` of speech. A
    bound of that score in the rules counts instead: `speech_share=0` takes every clip in which it was measured.

    Args:
        selection: The rules.
        manifest: Manifest of the data set, DATASET.json.
        join: Derived columns that are joined.
        begun: Whether what was joined when a training began decides, not what there is now: a column that was made
            since would make it another training.
    """
    selection = replace(selection, at_most=with_audible_sound(selection.at_most))
    names = (SHARE, f"{COLUMN}.{SHARE}")
    if any(name in bounds for bounds in (selection.at_least, selection.at_most) for name in names):
        return selection
    joined = any(manifest.derived(name).kind == COLUMN for name in join)
    if joined or (not begun and manifest.of_kind(COLUMN)):
        return replace(selection, at_least={**selection.at_least, names[1]: LEAST_SHARE})
    if not begun:
        log.warning(
            "which clips speak is not known, so those with music or noise alone are taken, too: make derive"
            " COLUMNS=%s finds them, and a training that begins after it leaves them out",
            COLUMN,
        )
    return selection
