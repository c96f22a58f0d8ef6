"""Fit `speakers`: neutral mesh and mean offset of each training speaker, rest pose and loudness of each clip, and the
statistics of all head poses. Trainings from speech read it; see `train/audio2lmk/corpus.py`.

Memory: the largest steps of the pose, a row for each speaker (two meshes, 11 KB) and for each clip (180 bytes).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from talkinghead.column import Arrays
from talkinghead.derived import ColumnSample, Fit
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.motion.neutral import NeutralEstimator, NeutralMesh, Rule
from talkinghead.motion.rest_pose import clip_rest_pose, pose_origin, relative_pose
from talkinghead.motion.speakers import Speaker, Speakers
from talkinghead.npz import pack_texts, unpack_texts

RULES: tuple[Rule, ...] = get_args(Rule)
"""Rules for neutral meshes; arrays hold the place in this."""
SMALLEST_STD = 1e-3
"""Lower bound of the standard deviations, in degrees and cm: a motionless data set must not divide by 0."""

_SHARE = 0.99  # the percentile of the steps
_MOST_WAITING = 100_000  # steps of the pose that are kept before only the largest of them are


@dataclass(frozen=True, kw_only=True)
class SpeakersSettings:
    """Settings of the fit."""

    pose_origin: Literal["rest", "first"] = "rest"
    """Origin of the poses in the statistics: the median pose of each clip, or its first frame with a face."""


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What the fit found out about each of its N clips."""

    keys: list[str]
    speakers: list[str]
    """Name of the speaker of each clip; one whose clips show no face is none of the fit's speakers."""
    rest: np.ndarray
    """Rest poses, `[N, 4, 4]` canonical → camera; the identity without a face."""
    speech_mean: np.ndarray
    """Mean of the sound of each clip, `[N]`."""
    speech_variance: np.ndarray
    """Variance of the sound of each clip, `[N]`."""


@dataclass(frozen=True, kw_only=True)
class PoseStatistics:
    """Statistics of the six pose numbers, relative to the origin of the settings, in degrees and cm."""

    num_clips: int
    """Number of clips with a face."""
    num_frames: int
    """Number of frames with a face."""
    mean: np.ndarray
    """`[6]`"""
    std: np.ndarray
    """`[6]`, at least `SMALLEST_STD`."""
    step_p99: np.ndarray
    """99th percentiles of the absolute change from one frame to the next, `[6]`."""


@dataclass(frozen=True, kw_only=True)
class SpeakersFit:
    """The fit, read and checked."""

    speakers: Speakers
    clips: ClipFacts
    poses: PoseStatistics


class SpeakersOfDataSet:
    """Speakers of a data set; see `talkinghead.global_fit.GlobalFit`."""

    name = "speakers"
    version = 1
    needs = ("wav", "mesh", "pose_matrix", "blendshapes", "valid")
    fits: tuple[str, ...] = ()
    settings = SpeakersSettings
    parts: Literal["speakers"] = "speakers"  # the neutral mesh is a median over a speaker's frames
    most_clips = None

    def partial(
        self, samples: Iterable[ColumnSample], settings: SpeakersSettings, fits: Mapping[str, Fit], num_frames: int
    ) -> dict[str, np.ndarray]:
        """Rows of the speakers and clips of one part, and sums over their poses."""
        poses = _Poses(settings.pose_origin, _most_steps(num_frames))
        clips = _Clips()
        speakers: list[Speaker] = []
        # A speaker's clips come one after the other.
        for name, own in itertools.groupby(samples, lambda sample: sample.speaker):
            if (speaker := _look_at(name, own, poses, clips)) is not None:
                speakers.append(speaker)
        meshes = (len(speakers), NUM_VERTICES, 3)
        return {
            **pack_texts("speaker", (speaker.name for speaker in speakers)),
            "neutral_mesh": np.array([speaker.neutral.mesh for speaker in speakers], np.float32).reshape(meshes),
            "neutral_frames": np.array([speaker.neutral.num_frames for speaker in speakers], np.int64),
            "neutral_rule": np.array([RULES.index(speaker.neutral.rule) for speaker in speakers], np.int64),
            "mean_offset": np.array([speaker.mean_offset for speaker in speakers], np.float32).reshape(meshes),
            "speaker_frames": np.array([speaker.num_frames for speaker in speakers], np.int64),
            **clips.arrays(),
            **poses.arrays(),
        }

    def merge(self, one: Arrays, two: Arrays, num_frames: int) -> dict[str, np.ndarray]:
        """Rows of both, and sums over both."""
        poses = _merge_poses(one, two, _most_steps(num_frames))
        rows = {name: np.concatenate((values, two[name])) for name, values in one.items() if name not in poses}
        return rows | poses

    def finish(self, sums: Arrays, settings: SpeakersSettings, fits: Mapping[str, Fit]) -> dict[str, np.ndarray]:
        """The fit; `ValueError` where no clip shows a face."""
        frames = float(sums["pose_count"][0])
        if not frames:
            raise ValueError("no training clip shows a face: look at make report")
        std = np.sqrt(sums["pose_squares"] / frames)
        found = {name: values for name, values in sums.items() if name not in _POSE_SUMS}
        return found | {
            "num_clips": sums["pose_clips"].astype(np.int64),
            "num_frames": sums["pose_count"].astype(np.int64),
            "pose_mean": sums["pose_mean"],
            "pose_std": np.maximum(std, SMALLEST_STD),
            "pose_step_p99": percentile_of_largest(sums["steps"], int(sums["step_count"][0])).astype(np.float64),
        }


SPEAKERS = SpeakersOfDataSet()


# --- reading the fit --------------------------------------------------------------------------------------------------


def read_speakers(fit: Fit) -> SpeakersFit:
    """What a fit holds.

    Raises:
        ValueError: The arrays, which may be a stranger's, are no such fit.
    """
    names, keys = unpack_texts("speaker", fit.arrays), unpack_texts("clip", fit.arrays)
    meshes, clip = (len(names), NUM_VERTICES, 3), (len(keys),)
    rules = _array(fit.arrays, "neutral_rule", "i", (len(names),))
    if not ((rules >= 0) & (rules < len(RULES))).all():
        raise ValueError("it names unknown rules for neutral meshes")
    mesh, offset = (_array(fit.arrays, name, "f", meshes) for name in ("neutral_mesh", "mean_offset"))
    counts = [_array(fit.arrays, name, "i", (len(names),)).tolist() for name in ("neutral_frames", "speaker_frames")]
    speakers = [
        Speaker(
            name=name,
            neutral=NeutralMesh(mesh=mesh[row], num_frames=counts[0][row], rule=RULES[rules[row]]),
            mean_offset=offset[row],
            num_frames=counts[1][row],
        )
        for row, name in enumerate(names)
    ]
    clips = ClipFacts(
        keys=keys,
        speakers=unpack_texts("clip_speaker", fit.arrays),
        rest=_array(fit.arrays, "rest", "f", (*clip, 4, 4)),
        speech_mean=_array(fit.arrays, "speech_mean", "f", clip),
        speech_variance=_array(fit.arrays, "speech_variance", "f", clip),
    )
    if len(clips.speakers) != len(keys):
        raise ValueError("it does not name the speaker of each clip")
    poses = PoseStatistics(
        num_clips=int(_array(fit.arrays, "num_clips", "i", (1,))[0]),
        num_frames=int(_array(fit.arrays, "num_frames", "i", (1,))[0]),
        mean=_array(fit.arrays, "pose_mean", "f", (6,)),
        std=_array(fit.arrays, "pose_std", "f", (6,)),
        step_p99=_array(fit.arrays, "pose_step_p99", "f", (6,)),
    )
    return SpeakersFit(speakers=Speakers(speakers), clips=clips, poses=poses)


def read_neutral_meshes(fit: Fit) -> dict[str, np.ndarray]:
    """Name of each speaker → neutral mesh `[468, 3]` in cm; raises `ValueError` like `read_speakers`."""
    names = unpack_texts("speaker", fit.arrays)
    return dict(zip(names, _array(fit.arrays, "neutral_mesh", "f", (len(names), NUM_VERTICES, 3)), strict=True))


def _array(arrays: Arrays, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    found = arrays.get(name)
    if found is None or found.dtype.kind != kind or found.shape != shape or not np.isfinite(found).all():
        raise ValueError(f"it is no fit of speakers: {name} is missing, or is not finite numbers of shape {shape}")
    return found


# --- speakers and clips -----------------------------------------------------------------------------------------------


class _Clips:
    """Rows of the clips of a part."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.speakers: list[str] = []
        self.rest: list[np.ndarray] = []
        self.levels: list[tuple[float, float]] = []

    def arrays(self) -> dict[str, np.ndarray]:
        levels = np.array(self.levels, np.float64).reshape(-1, 2)
        return {
            **pack_texts("clip", self.keys),
            **pack_texts("clip_speaker", self.speakers),
            "rest": np.array(self.rest, np.float64).reshape(-1, 4, 4),
            "speech_mean": levels[:, 0],
            "speech_variance": levels[:, 1],
        }


def _look_at(name: str, samples: Iterable[ColumnSample], poses: _Poses, clips: _Clips) -> Speaker | None:
    """Speaker of these clips, None without a face; adds the clips to the poses and to the rows."""
    estimator = NeutralEstimator()
    frames, mesh_sum = 0, np.zeros((NUM_VERTICES, 3))
    for sample in samples:
        valid = sample.column("valid").astype(bool)
        # A clip without a face keeps this pose; all its frames are masked in training.
        rest = np.eye(4)
        if valid.any():
            mesh = sample.column("mesh")
            estimator.add(mesh, sample.column("blendshapes"), valid)
            frames += int(valid.sum())
            mesh_sum += mesh[valid].sum(axis=0, dtype=np.float64)
            matrices = sample.column("pose_matrix")
            rest = clip_rest_pose(matrices, valid)
            poses.add(matrices, valid)
        # Inference normalises whole recordings, so the level of the whole clip is kept for its windows.
        audio = sample.audio()
        clips.keys.append(sample.key)
        clips.speakers.append(name)
        clips.rest.append(rest)
        clips.levels.append((float(audio.mean(dtype=np.float64)), float(audio.var(dtype=np.float64))))
    if not frames:
        return None
    neutral = estimator.result()
    # The mean offset from the neutral mesh is a baseline of validation.
    offset = (mesh_sum / frames - neutral.mesh).astype(np.float32)
    return Speaker(name=name, neutral=neutral, mean_offset=offset, num_frames=frames)


# --- poses ------------------------------------------------------------------------------------------------------------

_POSE_SUMS = ("pose_clips", "pose_count", "pose_mean", "pose_squares", "step_count", "steps")


class _Poses:
    """Sums over the poses of clips.

    Args:
        origin: Origin of the poses.
        most_steps: Number of steps to keep, the largest of each pose number.
    """

    def __init__(self, origin: Literal["rest", "first"], most_steps: int) -> None:
        self._origin: Literal["rest", "first"] = origin
        self._most_steps = most_steps
        self._clips = self._count = self._step_count = 0
        self._mean, self._squares = np.zeros(6), np.zeros(6)
        self._largest = np.empty((0, 6), np.float32)
        self._waiting: list[np.ndarray] = []

    def add(self, matrices: np.ndarray, valid: np.ndarray) -> None:
        """Add a clip with a face: pose matrices `[F, 4, 4]` canonical → camera, and validity `[F]` bool."""
        pose = relative_pose(matrices, pose_origin(matrices, valid, self._origin))
        self._clips += 1
        # In the precision in which they were always kept.
        seen = pose[valid].astype(np.float32).astype(np.float64)
        mean = seen.mean(axis=0)
        squares = np.square(seen - mean).sum(axis=0)
        self._count, self._mean, self._squares = _merge_moments(
            (self._count, self._mean, self._squares), (len(seen), mean, squares)
        )
        # A step counts only if both of its frames show a face.
        steps = np.abs(np.diff(pose, axis=0))[valid[1:] & valid[:-1]].astype(np.float32)
        self._step_count += len(steps)
        self._waiting.append(steps)
        if sum(map(len, self._waiting)) > _MOST_WAITING:
            self._keep_largest()

    def _keep_largest(self) -> None:
        self._largest = _largest(np.concatenate((self._largest, *self._waiting)), self._most_steps)
        self._waiting = []

    def arrays(self) -> dict[str, np.ndarray]:
        self._keep_largest()
        return {
            "pose_clips": np.array([self._clips], np.float64),
            "pose_count": np.array([self._count], np.float64),
            "pose_mean": self._mean,
            "pose_squares": self._squares,
            "step_count": np.array([self._step_count], np.float64),
            "steps": self._largest,
        }


def _merge_poses(one: Arrays, two: Arrays, most_steps: int) -> dict[str, np.ndarray]:
    moments = [(float(sums["pose_count"][0]), sums["pose_mean"], sums["pose_squares"]) for sums in (one, two)]
    count, mean, squares = _merge_moments(moments[0], moments[1])
    return {
        "pose_clips": one["pose_clips"] + two["pose_clips"],
        "pose_count": np.array([count], np.float64),
        "pose_mean": mean,
        "pose_squares": squares,
        "step_count": one["step_count"] + two["step_count"],
        "steps": _largest(np.concatenate((one["steps"], two["steps"])), most_steps),
    }


_Moments = tuple[float, np.ndarray, np.ndarray]  # number of values, mean, sum of squared distances from it


def _merge_moments(one: _Moments, two: _Moments) -> _Moments:
    """Moments of two groups of values together.

    Source: T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979.
    """
    count = one[0] + two[0]
    if not count:
        return one
    away = two[1] - one[1]
    return count, one[1] + away * (two[0] / count), one[2] + two[2] + np.square(away) * (one[0] * two[0] / count)


def _most_steps(num_frames: int) -> int:
    """Number of steps, the largest ones, among which the percentile lies: there are fewer steps than frames."""
    return math.ceil((1 - _SHARE) * num_frames) + 2


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest numbers of each column of `[n, 6]`, ascending, or all where there are fewer."""
    if len(values) > count:
        values = np.partition(values, len(values) - count, axis=0)[-count:]
    return np.sort(values, axis=0)


def percentile_of_largest(largest: np.ndarray, count: int) -> np.ndarray:
    """99th percentile of each column out of its largest numbers: what `numpy.percentile` gives for all of them.

    Args:
        largest: The largest numbers of each column, ascending, `[m, 6]`: at least `count` / 100 + 2, or all.
        count: Number of all.

    Returns:
        `[6]`; 0 where there are none.
    """
    if not count:
        return np.zeros(largest.shape[1], largest.dtype)
    # Between two neighbours in ascending order, counted from the end.
    place = (count - 1) * _SHARE
    lower = math.floor(place)
    below, above = largest[lower - count], largest[min(lower + 1, count - 1) - count]
    share = place - lower
    # From the nearer of the two, as NumPy does.
    return below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share)
