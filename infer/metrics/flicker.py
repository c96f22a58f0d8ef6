"""Whether the predicted video changes from frame to frame as the true one does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infer.metrics.registry import Clip, Unavailable, metric


@metric("flicker", "grey levels", needs=("predicted_video", "true_video"), better="lower")
def flicker(clip: Clip) -> float:
    """Temporal difference error: how far the change to the next frame is from the true change.

    Mean over pixels of |(p(t+1) - p(t)) - (v(t+1) - v(t))| in grey levels of 255; both pictures of a pair must be
    measured. A constant error of the picture costs nothing, one that comes and goes does. A video that stands still
    gets the mean size of the true change (the reference copy's value): below it, the changes are right; above, they
    are mostly flicker.
    """
    assert clip.predicted_video is not None
    assert clip.true_video is not None
    steps = zip(_changes(clip.predicted_video, clip), _changes(clip.true_video, clip), strict=True)
    return _mean(float(np.abs(predicted - true).mean()) for predicted, true in steps)


@metric("temporal_change", "grey levels", needs=("predicted_video",), better=None)
def temporal_change(clip: Clip) -> float:
    """How much a pixel changes to the next frame: compare with the truth's, above it lies flicker."""
    assert clip.predicted_video is not None
    return _mean(float(np.abs(step).mean()) for step in _changes(clip.predicted_video, clip))


@metric("temporal_noise", "grey levels", needs=("predicted_video",), better=None)
def temporal_noise(clip: Clip) -> float:
    """How far a picture is from the mean of the ones before and after: compare with the truth's.

    What moves evenly cancels out, what flashes up in one frame stays: the flicker that is left where the motion is
    fast.
    """
    assert clip.predicted_video is not None
    inner = 1 + np.flatnonzero(clip.valid[2:] & clip.valid[1:-1] & clip.valid[:-2])
    video = clip.predicted_video
    return _mean(
        float(np.abs(video[t].astype(np.float32) - (video[t - 1].astype(np.float32) + video[t + 1]) / 2).mean())
        for t in inner
    )


def _changes(video: np.ndarray, clip: Clip) -> Iterator[np.ndarray]:
    """Change from each measured frame to the next measured one."""
    for frame in np.flatnonzero(clip.valid[1:] & clip.valid[:-1]):
        yield video[frame + 1].astype(np.float32) - video[frame]


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    if not found:
        raise Unavailable("no neighbouring frames are measured")
    return float(np.mean(found))
