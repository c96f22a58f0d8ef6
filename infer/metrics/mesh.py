"""Metrics of face meshes: distances from the true ones, whether the mouth opens when it should, blinks.

Distances are in mm; the clips' meshes are in cm. The mouth's opening is the gap between the inner lips, |13 - 14|.
"""

from __future__ import annotations

import numpy as np

from infer.metrics.registry import Clip, Unavailable, metric
from talkinghead import timebase
from talkinghead.geometry.face_regions import LIPS, eye_opening, lip_gap
from talkinghead.motion.smoothing import moving_average

MM_PER_CM = 10.0
MOST_LAG_S = 0.6
"""Largest lag that is tried in either direction, in seconds: 15 frames at 25 fps, as in SyncNet (Chung and Zisserman,
2016)."""
ACTIVITY_S = 0.36
"""Time in seconds over which the mouth's speed and the speech's level are averaged: about a syllable to each side."""
FEWEST_PAIRS = 10
"""Smallest number of frames that two signals must share to have a correlation."""
CLOSED = 0.6
"""Share of their usual opening below which the eyes count as closed."""
USUAL_PERCENTILE = 75
"""Percentile of the clip's eye openings that counts as their usual opening."""
LONGEST_S = 0.5
"""Longest blink in seconds: eyes closed for longer glance down, or sleep. People's blinks take 0.1 to 0.4 s."""
SHORTEST_CLIP_S = 2.0
"""Shortest time with a face that has a blink rate, in seconds."""
_BOTH = ("predicted_mesh", "true_mesh")
_STILL_CM = 1e-4  # standard deviation of the opening below which a mouth does not move


def _difference(clip: Clip) -> np.ndarray:
    """Predicted minus true mesh of the measured frames, `[M, 468, 3]` mm."""
    assert clip.predicted_mesh is not None
    assert clip.true_mesh is not None
    return MM_PER_CM * (clip.predicted_mesh[clip.valid].astype(np.float64) - clip.true_mesh[clip.valid])


@metric("mesh_l1", "mm", needs=_BOTH, better="lower")
def mesh_l1(clip: Clip) -> float:
    """Mean absolute difference of the coordinates of all vertices.

    Audio2Mesh's L1 loss minimises this quantity (AniPortrait, arXiv 2403.17694).
    """
    return float(np.abs(_difference(clip)).mean())


@metric("mesh_error", "mm", needs=_BOTH, better="lower")
def mesh_error(clip: Clip) -> float:
    """Mean distance of all vertices from the true ones.

    Known as mean vertex error, e.g. in MeshTalk (Richard et al., 2021).
    """
    return float(np.linalg.norm(_difference(clip), axis=-1).mean())


@metric("lip_error", "mm", needs=_BOTH, better="lower")
def lip_error(clip: Clip) -> float:
    """Mean distance of the lip vertices from the true ones."""
    return float(np.linalg.norm(_difference(clip)[:, LIPS], axis=-1).mean())


@metric("lip_vertex_error", "mm", needs=_BOTH, better="lower")
def lip_vertex_error(clip: Clip) -> float:
    """Largest distance of a lip vertex in a frame, mean over the frames.

    Source: MeshTalk (Richard et al., 2021) and FaceFormer (Fan et al., 2022). The distance itself, as the papers'
    text says, not its square, which some published scripts average.
    """
    return float(np.linalg.norm(_difference(clip)[:, LIPS], axis=-1).max(axis=1).mean())


@metric("velocity_error", "mm/s", needs=_BOTH, better="lower")
def velocity_error(clip: Clip) -> float:
    """Mean length of the difference of the vertices' velocities.

    Velocities are differences of neighbouring frames that both have a face. The velocity loss of VOCA (Cudeiro et
    al., 2019) squares this distance.
    """
    assert clip.predicted_mesh is not None
    assert clip.true_mesh is not None
    moving = clip.valid[1:] & clip.valid[:-1]
    if not moving.any():
        raise Unavailable("no two neighbouring frames have a face")
    # Steps between measured neighbours, [M, 468, 3] cm per frame each.
    steps = [np.diff(mesh.astype(np.float64), axis=0)[moving] for mesh in (clip.predicted_mesh, clip.true_mesh)]
    # Difference of the velocities, from cm per frame to mm/s.
    return float(MM_PER_CM * clip.fps * np.linalg.norm(steps[0] - steps[1], axis=-1).mean())


@metric("mesh_jitter", "mm/s²", needs=("predicted_mesh",), better=None)
def mesh_jitter(clip: Clip) -> float:
    """Mean length of the predicted vertices' acceleration: compare with the truth's, where it is noise and speech.

    Acceleration is the second difference of three neighbouring frames that all have a face, as in papers on human
    motion (HMMR, Kanazawa et al., 2019; SmoothNet, Zeng et al., 2022).
    """
    assert clip.predicted_mesh is not None
    return MM_PER_CM * mean_acceleration(clip.predicted_mesh, clip)


def mean_acceleration(values: np.ndarray, clip: Clip) -> float:
    """Mean length of the acceleration of `[F, …, D]` over the measured frames, in units per second squared.

    Args:
        values: Vectors of D numbers for each frame, `[F, …, D]`.
        clip: Clip that tells which frames are measured, and the frame rate.

    Raises:
        Unavailable: No three neighbouring frames have a face.
    """
    valid = clip.valid
    # Entry k of the slices belongs to the acceleration in frame k + 1.
    inner = valid[2:] & valid[1:-1] & valid[:-2]
    if not inner.any():
        raise Unavailable("no three neighbouring frames have a face")
    second = np.diff(values.astype(np.float64), n=2, axis=0)[inner]  # [M, …, D]
    return float(clip.fps**2 * np.linalg.norm(second, axis=-1).mean())


# --- mouth ------------------------------------------------------------------------------------------------------------


def _openings(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true mouth opening `[F]` in cm, NaN where the frame is not measured."""
    assert clip.predicted_mesh is not None
    assert clip.true_mesh is not None
    return _opening(clip.predicted_mesh, clip), _opening(clip.true_mesh, clip)


def _opening(mesh: np.ndarray, clip: Clip) -> np.ndarray:
    return np.where(clip.valid, lip_gap(mesh.astype(np.float64)), np.nan)


@metric("mouth_opening_error", "mm", needs=_BOTH, better="lower")
def mouth_opening_error(clip: Clip) -> float:
    """Mean absolute difference of the mouth opening."""
    predicted, true = _openings(clip)
    return float(MM_PER_CM * np.nanmean(np.abs(predicted - true)))


@metric("mouth_opening_correlation", "", needs=_BOTH, better="higher")
def mouth_opening_correlation(clip: Clip) -> float:
    """Pearson correlation of the predicted with the true mouth opening over time."""
    predicted, true = _openings(clip)
    _check_moves(predicted, "the predicted mouth")
    _check_moves(true, "the true mouth")
    return correlation(predicted, true)


@metric("mouth_opening_lag", "frames", needs=_BOTH, better=None)
def mouth_opening_lag(clip: Clip) -> float:
    """Delay at which the predicted mouth opening correlates best with the true one; above 0: it comes late.

    The delay with the largest normalised cross-correlation, computed over the frames in which both signals have a
    value; like the offset of SyncNet (Chung and Zisserman, 2016), but on mouth openings. 0 is best; where the
    correlation is weak, the delay means little.
    """
    return float(_lag(clip))


@metric("mouth_opening_lag_ms", "ms", needs=_BOTH, better=None)
def mouth_opening_lag_ms(clip: Clip) -> float:
    """Delay in milliseconds at which the predicted mouth opening correlates best with the true one."""
    return 1000 * _lag(clip) / clip.fps


@metric("mouth_speech_correlation", "", needs=("predicted_mesh", "audio"), better=None)
def mouth_speech_correlation(clip: Clip) -> float:
    """Pearson correlation of how fast the predicted mouth moves with the level of the speech: compare with the truth's.

    Speed of the opening and level in dB, both averaged over 0.36 s: high for a mouth that rests in the pauses and moves
    while there is speech. (The opening itself does not follow the loudness: on real clips the two correlate between
    -0.3 and 0.4, speed and level between 0.2 and 0.6.) Needs no true mesh; 1 is not the goal.
    """
    assert clip.predicted_mesh is not None
    assert clip.audio is not None
    level = frame_level(clip.audio, len(clip.valid), clip.fps)
    # Less than 1 dB between the loudest and the quietest frame: silence or a steady sound, nothing to follow.
    if np.ptp(level) < 1:
        raise Unavailable("the loudness does not vary")
    opening = _opening(clip.predicted_mesh, clip)
    _check_moves(opening, "the predicted mouth")
    if len(opening) < FEWEST_PAIRS:
        raise Unavailable(f"fewer than {FEWEST_PAIRS} frames")
    window = 2 * round(ACTIVITY_S * clip.fps / 2) + 1  # odd: centred, so that it delays neither signal
    speed = np.abs(np.gradient(opening))
    return correlation(moving_average(speed, window), moving_average(level, window))


def frame_level(audio: np.ndarray, num_frames: int, fps: float) -> np.ndarray:
    """Level of the audio of each frame, `[F]` in dB relative to full scale, at least -60.

    Args:
        audio: `[N]` at 16 kHz, -1 … 1; frames after its end count as silent.
        num_frames: Number of frames F.
        fps: Frames per second.
    """
    # At rates that do not divide 16000, borders are rounded, and frames differ by a sample in length.
    borders = np.rint(np.arange(num_frames + 1) * timebase.SAMPLE_RATE / fps).astype(int)
    # Squares summed up once: the energy of a frame is the difference at its two borders.
    energy = np.concatenate(([0.0], np.cumsum(np.square(audio, dtype=np.float64))))
    borders = np.minimum(borders, len(audio))
    power = np.diff(energy[borders]) / np.maximum(np.diff(borders), 1)
    return 10 * np.log10(np.maximum(power, 1e-6))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of two signals over the frames in which both are finite.

    Args:
        one: `[F]`.
        other: `[F]`.

    Raises:
        Unavailable: Too few such frames, or a signal that is constant over them.
    """
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < FEWEST_PAIRS:
        raise Unavailable(f"fewer than {FEWEST_PAIRS} frames")
    one, other = one[both] - one[both].mean(), other[both] - other[both].mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    if size < 1e-12:
        raise Unavailable("a signal is constant")
    return float(np.clip(one @ other / size, -1, 1))


def _lag(clip: Clip) -> int:
    """Delay in frames at which the predicted opening correlates best with the true one."""
    predicted, true = _openings(clip)
    _check_moves(predicted, "the predicted mouth")
    _check_moves(true, "the true mouth")
    most = round(MOST_LAG_S * clip.fps)
    too_short = f"the clip is too short to look for a lag of {MOST_LAG_S:g} s"
    if len(predicted) <= most:
        raise Unavailable(too_short)
    found: dict[int, float] = {}
    for lag in sorted(range(-most, most + 1), key=abs):  # of equal correlations the smaller lag counts
        # Predicted frame t + lag against true frame t, as far as both exist.
        late = predicted[max(lag, 0) : len(predicted) + min(lag, 0)]
        there = true[max(-lag, 0) : len(true) - max(lag, 0)]
        try:
            found[lag] = correlation(late, there)
        except Unavailable:
            continue
    # All delays must have had a chance: in a short clip the best of a few would be an accident.
    if len(found) < 2 * most + 1:
        raise Unavailable(too_short)
    # Rounded, so that the last digits do not decide; of equal ones `max` takes the first, the smaller lag.
    return max(found, key=lambda lag: round(found[lag], 9))


def _check_moves(opening: np.ndarray, what: str) -> None:
    if np.isfinite(opening).any() and np.nanstd(opening) < _STILL_CM:
        raise Unavailable(f"{what} does not move")


# --- eyes -------------------------------------------------------------------------------------------------------------


@metric("blink_rate", "1/min", needs=("predicted_mesh",), better=None)
def blink_rate(clip: Clip) -> float:
    """Blinks per minute of the predicted face: compare with the truth's. People who talk blink about 10 to 40 times.

    A blink is a sequence of frames, at most 0.5 s long, with an eye aspect ratio (Soukupová and Čech, 2016) below 0.6
    of the clip's 75th percentile. The threshold follows the face's own usual opening, because the paper's fixed one
    suits only some shapes of eyes.
    """
    assert clip.predicted_mesh is not None
    seconds = clip.num_valid / clip.fps
    if seconds < SHORTEST_CLIP_S:
        raise Unavailable(f"shorter than {SHORTEST_CLIP_S:g} s")
    opening = eye_opening(clip.predicted_mesh[clip.valid].astype(np.float64))
    # Frames that are not measured count as open: a gap ends a blink.
    closed = np.zeros(len(clip.valid), bool)
    closed[clip.valid] = opening < CLOSED * np.percentile(opening, USUAL_PERCENTILE)
    return 60 * _count_runs(closed, longest=round(LONGEST_S * clip.fps)) / seconds


def _count_runs(flags: np.ndarray, *, longest: int) -> int:
    """Number of sequences of consecutive true flags that are at most `longest` frames long."""
    # +1 where a sequence begins, -1 just after it ends; the zeros close sequences at both borders.
    edges = np.diff(np.concatenate(([0], flags.astype(np.int8), [0])))
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return int((lengths <= longest).sum())
