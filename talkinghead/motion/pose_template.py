"""Head pose templates: a real head's motion, to be played under any speech.

A template is relative to its clip's first frame, in that frame's canonical axes: pose of inverse(M[0]) · M[i].
Procedure and numbers are AniPortrait's, so that its template files and ours are interchangeable.
"""

from __future__ import annotations

import numpy as np

SMOOTHING_WINDOW = 5


def tile(template: np.ndarray, frames: int) -> np.ndarray:
    """Play a template `[T, D]` to and fro until `frames` rows are filled: no jump at the turns, no row twice.

    Raises:
        ValueError: An empty template.
    """
    if not len(template):
        raise ValueError("the pose template is empty")
    period = np.concatenate((template, template[-2:0:-1]))
    return period[np.arange(frames) % len(period)]
