"""Metrics of head poses: errors against the true motion, properties of the motion, and the rhythm of the speech.

Poses are relative to the clip's rest pose or to its first frame, whichever `infer.evaluation.motion_evaluation` was
asked for.
"""

from __future__ import annotations

import numpy as np

from infer.metrics.mesh import mean_acceleration
from infer.metrics.registry import Clip, Unavailable, metric
from talkinghead.geometry.pose import rotation_from_euler
from talkinghead.timebase import SAMPLE_RATE

TOLERANCE_S = 3 / 25
"""Standard deviation σ of the beat score in seconds: Bailando's 3 frames, here at 25 fps."""
SMOOTHING_S = 5 / 25
"""Standard deviation in seconds of the Gaussian that smooths the head's speed before its minima are taken: 5 frames."""

_BOTH = ("predicted_pose", "true_pose")
_HOP, _WINDOW = 160, 512  # samples: 10 and 32 ms
_NEAR, _AROUND, _APART = 3, 10, 10  # hops: an onset is the highest within ±30 ms, above ±100 ms, 100 ms after the last
_ABOVE = 0.5  # standard deviations of the flux by which an onset exceeds the mean of its surroundings
_SILENCE = 1e-4  # of full scale


def _poses(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true pose of the measured frames, `[M, 6]`."""
    assert clip.predicted_pose is not None
    assert clip.true_pose is not None
    return clip.predicted_pose[clip.valid].astype(np.float64), clip.true_pose[clip.valid].astype(np.float64)


@metric("pose_l1", "deg|cm", needs=_BOTH, better="lower")
def pose_l1(clip: Clip) -> float:
    """Mean absolute difference of the six pose numbers, degrees and cm counted alike.

    Audio2Pose's L1 loss minimises this quantity (AniPortrait, arXiv 2403.17694).
    """
    predicted, true = _poses(clip)
    return float(np.abs(predicted - true).mean())


@metric("pose_rotation_error", "deg", needs=_BOTH, better="lower")
def pose_rotation_error(clip: Clip) -> float:
    """Mean angle of the rotation between the predicted and the true head.

    The geodesic distance on rotations, arccos((trace(Rᵀ R') - 1) / 2) (Huynh, "Metrics for 3D Rotations", 2009).
    """
    predicted, true = (rotation_from_euler(pose[:, :3]) for pose in _poses(clip))
    # 2 arcsin(‖R - R'‖_F / (2 √2)) is the same angle, and exact where it is small.
    chord = np.linalg.norm(predicted - true, axis=(-2, -1)) / (2 * np.sqrt(2))
    return float(np.degrees(2 * np.arcsin(np.minimum(chord, 1))).mean())


@metric("pose_translation_error", "cm", needs=_BOTH, better="lower")
def pose_translation_error(clip: Clip) -> float:
    """Mean distance between the predicted and the true head position."""
    predicted, true = _poses(clip)
    return float(np.linalg.norm(predicted[:, 3:] - true[:, 3:], axis=1).mean())


@metric("pose_diversity", "deg", needs=("predicted_pose",), better=None)
def pose_diversity(clip: Clip) -> float:
    """How much the predicted head turns: standard deviation over time of the three angles, their mean.

    SadTalker (Zhang et al., 2023) takes the standard deviation of an estimator's features of the frames; this function
    takes that of the angles themselves. Compare with the truth's: a still head has 0, a restless one too much.
    """
    assert clip.predicted_pose is not None
    return float(clip.predicted_pose[clip.valid, :3].astype(np.float64).std(axis=0).mean())


@metric("pose_jitter", "deg/s²", needs=("predicted_pose",), better=None)
def pose_jitter(clip: Clip) -> float:
    """Mean length of the predicted angles' acceleration: compare with the truth's."""
    assert clip.predicted_pose is not None
    return mean_acceleration(clip.predicted_pose[:, :3], clip)


@metric("pose_largest_step", "deg", needs=("predicted_pose",), better=None)
def pose_largest_step(clip: Clip) -> float:
    """Largest change of an angle from one frame to the next: shows jumps, e.g. at a seam."""
    assert clip.predicted_pose is not None
    moving = clip.valid[1:] & clip.valid[:-1]
    if not moving.any():
        raise Unavailable("no two neighbouring frames have a face")
    return float(np.abs(np.diff(clip.predicted_pose[:, :3].astype(np.float64), axis=0)[moving]).max())


# --- rhythm -----------------------------------------------------------------------------------------------------------


@metric("beat_alignment", "", needs=("predicted_pose", "audio"), better=None)
def beat_alignment(clip: Clip) -> float:
    """How close the head's beats lie to the onsets of the speech, 0 to 1: compare with the truth's.

    Mean over the onsets of exp(-d² / 2σ²), d the time to the nearest beat of the head and σ = 0.12 s; 0 where the head
    has no beats. Beats are minima of the head's angular speed. Source: Bailando (Siyao et al., 2022), after AIST++ (Li
    et al., 2021), used for talking heads by SadTalker (Zhang et al., 2023). Here onsets of the speech replace musical
    beats, and frames are at 25 fps instead of 60, so the value compares only with values of this function.
    """
    assert clip.predicted_pose is not None
    assert clip.audio is not None
    onsets = speech_onsets(clip.audio)
    if not len(onsets):
        raise Unavailable("the audio has no onsets")
    beats = head_beats(clip.predicted_pose, clip.valid, clip.fps)
    if not len(beats):
        return 0.0
    nearest = np.abs(onsets[:, None] - beats).min(axis=1)
    return float(np.exp(-(nearest**2) / (2 * TOLERANCE_S**2)).mean())


def head_beats(pose: np.ndarray, valid: np.ndarray, fps: float) -> np.ndarray:
    """Times in seconds at which the head's turning is slowest, between two faster moments.

    Args:
        pose: `[F, 6]` degrees and cm; only the angles are used.
        valid: `[F]` bool; in the other frames the angles are interpolated, and beats do not count.
        fps: Frames per second.

    Returns:
        Times `[B]`, rising.
    """
    there = np.flatnonzero(valid)
    if len(there) < 2:
        return np.empty(0)
    # Angular speed [F - 1] in degrees per frame, smoothed so that jitter makes no minima.
    every = np.arange(len(pose))
    angles = np.stack([np.interp(every, there, pose[there, axis]) for axis in range(3)], axis=1)
    speed = _smooth(np.linalg.norm(np.diff(angles, axis=0), axis=1), SMOOTHING_S * fps)
    least = 1 + np.flatnonzero((speed[1:-1] < speed[:-2]) & (speed[1:-1] <= speed[2:]))
    # Step k lies between the frames k and k + 1.
    return (least[valid[least] & valid[least + 1]] + 0.5) / fps


def speech_onsets(audio: np.ndarray) -> np.ndarray:
    """Times in seconds at which sounds begin: peaks of the spectral flux.

    Source: S. Dixon, "Onset Detection Revisited", 2006, and S. Böck et al., "Evaluating the Online Capabilities of
    Onset Detection Methods", 2012 (half-wave rectified flux of the logarithmic spectrum, and the picking of peaks).

    Args:
        audio: `[N]` at 16 kHz, -1 … 1.

    Returns:
        Times `[O]`, rising.
    """
    if len(audio) < _WINDOW or np.abs(audio).max() < _SILENCE:
        return np.empty(0)
    # Spectral flux: how much louder the spectrum grows from hop to hop.
    # Padded by half a window, so that window k is centred on sample 160 k.
    padded = np.pad(audio.astype(np.float64), _WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    flux, last = np.zeros(len(frames)), None
    for start in range(0, len(frames), 4096):  # in parts, so that a long recording does not fill the memory
        spectrum = np.abs(np.fft.rfft(frames[start : start + 4096] * np.hanning(_WINDOW), axis=1))
        level = np.log1p(1000 * spectrum / _WINDOW)
        before = np.concatenate((level[:1] if last is None else last, level[:-1]))
        flux[start : start + len(level)] = np.maximum(level - before, 0).mean(axis=1)
        last = level[-1:]
    deviation = flux.std()
    if deviation < 1e-9:
        return np.empty(0)
    # Onsets: peaks of the flux that exceed their surroundings, far enough apart.
    found: list[int] = []
    for hop in range(len(flux)):
        near = flux[max(hop - _NEAR, 0) : hop + _NEAR + 1]
        around = flux[max(hop - _AROUND, 0) : hop + _AROUND + 1]
        stands_out = flux[hop] == near.max() and flux[hop] >= around.mean() + _ABOVE * deviation
        if stands_out and (not found or hop - found[-1] >= _APART):
            found.append(hop)
    return np.array(found) * _HOP / SAMPLE_RATE


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian average of `[F]` over frames, `sigma` in frames; at the ends over the frames that exist."""
    # 4 σ leave out less than 0.01 % of the kernel.
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    # Part of the kernel that lies within the clip, [F]; it is the divisor at the ends.
    weight = np.convolve(np.ones(len(values)), kernel)[reach : reach + len(values)]
    return np.convolve(values, kernel)[reach : reach + len(values)] / weight
