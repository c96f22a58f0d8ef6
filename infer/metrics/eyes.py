"""Whether the face blinks as people do."""

from __future__ import annotations

import numpy as np

from infer.metrics.registry import Clip, Unavailable, metric
from talkinghead.geometry.face_regions import eye_opening

CLOSED = 0.6
"""Eyes count as closed below this share of their usual opening."""
USUAL_PERCENTILE = 75
LONGEST_S = 0.5
"""Eyes closed for longer are not blinking: a look down, or sleep. People's blinks take 0.1 to 0.4 s."""
SHORTEST_CLIP_S = 2.0


@metric("blink_rate", "1/min", needs=("predicted_mesh",), better=None)
def blink_rate(clip: Clip) -> float:
    """Blinks per minute of the predicted face: compare with the truth's. People who talk blink about 10 to 40 times.

    A blink is a run of frames with an eye aspect ratio (Soukupová and Čech, 2016) below 0.6 of the clip's 75th
    percentile, at most 0.5 s long. The share of the face's own usual opening replaces the paper's fixed threshold,
    which depends on the shape of the eyes.
    """
    assert clip.predicted_mesh is not None
    seconds = clip.num_valid / clip.fps
    if seconds < SHORTEST_CLIP_S:
        raise Unavailable(f"shorter than {SHORTEST_CLIP_S:g} s")
    opening = eye_opening(clip.predicted_mesh[clip.valid].astype(np.float64))
    closed = np.zeros(len(clip.valid), bool)
    closed[clip.valid] = opening < CLOSED * np.percentile(opening, USUAL_PERCENTILE)
    return 60 * _count_runs(closed, longest=round(LONGEST_S * clip.fps)) / seconds


def _count_runs(flags: np.ndarray, *, longest: int) -> int:
    """Runs of true frames that are at most so long."""
    edges = np.diff(np.concatenate(([0], flags.astype(np.int8), [0])))
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return int((lengths <= longest).sum())
