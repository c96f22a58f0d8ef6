"""Evaluation of predicted meshes and head poses for held-out clips, with baselines next to every number.

Mesh: predicted offsets are added to the neutral mesh of the clip's motion: estimated from the clip's annotations by the
rule of `talkinghead.motion.neutral`, or known from elsewhere. Pose: poses are relative to the clip's rest pose
(the median of each of its six numbers), or to its first frame with a face. Both: whole clips are predicted, and the
frames with a face are measured. Baselines: no motion at all (the neutral mesh; the zero pose), the mean over the
training frames, and the true motion of the same clip, delayed by a fixed time: plausible motion without sync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from infer.evaluation.evaluation_result import Evaluation, Role, Subject
from infer.evaluation.measured_clips import Join, MeasuredClips, one_process
from infer.metrics import METRICS, Clip
from shards.reader import Sample
from talkinghead import timebase
from talkinghead.motion.annotated import MOTION_COLUMNS, annotated_motion
from talkinghead.motion.motion import Motion
from talkinghead.motion.rest_pose import pose_origin, previous_poses
from talkinghead.timebase import SAMPLES_PER_FRAME

MESH_SHIFT_S = 0.4
"""Delay of the shifted truth of a mesh in seconds: more than a syllable, and within the lags that are tried."""
POSE_SHIFT_S = 1.0
"""Delay of the shifted truth of a pose in seconds; longer, because a head moves more slowly."""

NO_MOTION = {"mesh": "neutral mesh", "pose": "zero pose"}
TRAINING_MEAN, SHIFTED_TRUTH, TRUTH = "training mean", "shifted truth", "truth"
PREVIOUS_POSE = "previous pose"
"""Baseline for a teacher-forced decoder: the true pose of the frame before, which the decoder was given."""
PREDICTION, FREE_RUNNING, TEACHER_FORCED = "prediction", "free-running", "teacher-forced"

Kind = Literal["mesh", "pose"]
"""What of a motion is predicted and measured: the meshes, or the head's poses."""


@dataclass(frozen=True, kw_only=True)
class TrueClip:
    """Audio and true motion of a clip."""

    key: str
    speaker: str
    """Name of the speaker (`SampleIndex.speaker`)."""
    audio: np.ndarray
    """`[F · 640]` float32 at 16 kHz."""
    motion: Motion | None
    """Motion of the F frames, not valid in frames without a face; None where no frame has one."""

    @property
    def num_frames(self) -> int:
        """Number of frames F, with and without a face."""
        return len(self.audio) // SAMPLES_PER_FRAME

    @property
    def valid(self) -> np.ndarray:
        """Frames with a face, `[F]` bool."""
        return np.zeros(self.num_frames, bool) if self.motion is None else self.motion.valid


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One evaluated clip with its predictions, for plots and videos."""

    clip: TrueClip
    kind: Kind
    still: np.ndarray
    """Origin of the motion: neutral mesh `[468, 3]` in cm, or pose matrix `[4, 4]` that poses are relative to."""
    true: np.ndarray
    """True meshes `[F, 468, 3]` in cm, or poses `[F, 6]` in degrees and cm; NaN in frames without a face."""
    predictions: Mapping[str, np.ndarray]
    """Name → predicted meshes or poses, of the shape of `true`, finite."""


ClipCallback = Callable[[Trace], None]


def read_clips(
    samples: Iterable[Sample],
    *,
    neutral: Callable[[str], np.ndarray] | None = None,
    most_frames: int | None = None,
) -> Iterator[TrueClip]:
    """The clips of samples, one at a time.

    Args:
        samples: Samples of a reader with the annotation columns `MOTION_COLUMNS`.
        neutral: Name of the speaker → neutral mesh `[468, 3]` in cm; None: estimated from each clip.
        most_frames: Largest number of frames of each clip, from its beginning; None: all.
    """
    for sample in samples:
        # Cut at the end only: frame k stays at sample 640 k of the audio.
        count = min(sample.num_frames, most_frames or sample.num_frames)
        motion = None
        if sample.annotation("valid", 0, count).any():
            motion = annotated_motion(
                {name: sample.annotation(name, 0, count) for name in MOTION_COLUMNS},
                width=sample.info.width,
                height=sample.info.height,
                neutral=None if neutral is None else neutral(sample.index.speaker),
            )
        yield TrueClip(key=sample.key, speaker=sample.index.speaker, audio=sample.audio(0, count), motion=motion)


def evaluate_mesh(
    predict: Callable[[TrueClip], np.ndarray],
    clips: Iterable[TrueClip],
    *,
    mean_offset: np.ndarray | None = None,
    known_neutral: bool = False,
    shift_s: float = MESH_SHIFT_S,
    on_clip: ClipCallback | None = None,
    join: Join = one_process,
) -> Evaluation:
    """Evaluate predicted mesh offsets.

    Args:
        predict: Clip → offsets from the neutral mesh `[F, 468, 3]` cm, from its audio (and speaker) alone.
        clips: Clips whose motion has meshes; may come from a generator.
        mean_offset: Mean offset `[468, 3]` over the training frames, in cm (`Speakers.mean_offset`).
        known_neutral: Whether the clips' neutral meshes were known, and not estimated from them; for the protocol.
        shift_s: Delay of the shifted truth in seconds.
        on_clip: Called with every clip that was evaluated.
        join: Puts the measurements together where other processes evaluate other clips.

    Raises:
        ValueError: A prediction has a wrong shape, or is not finite.
    """
    measured = _Measured("mesh", shift_s, mean_offset is not None)
    for clip in clips:
        if (motion := measured.count(clip)) is None:
            continue
        # The prediction, added to the neutral mesh, next to the baselines.
        still = motion.neutral
        predictions = {PREDICTION: still + _checked(predict(clip), clip, (468, 3))}
        trace = Trace(clip=clip, kind="mesh", still=still, true=motion.meshes(), predictions=predictions)
        measured.add(trace, no_motion=still, mean=None if mean_offset is None else still + mean_offset)
        if on_clip:
            on_clip(trace)
    whose = "given" if known_neutral else "estimated from the clip's own annotations"
    return measured.evaluation(f"Offsets added to the neutral mesh ({whose}); whole clips, frames with a face.", join)


def evaluate_pose(
    free_running: Callable[[TrueClip], np.ndarray] | None,
    clips: Iterable[TrueClip],
    *,
    teacher_forced: Callable[[TrueClip, np.ndarray], np.ndarray] | None = None,
    mean_pose: np.ndarray | None = None,
    origin: Literal["rest", "first"] = "rest",
    shift_s: float = POSE_SHIFT_S,
    on_clip: ClipCallback | None = None,
    join: Join = one_process,
) -> Evaluation:
    """Evaluate predicted head poses.

    Args:
        free_running: Clip → poses `[F, 6]` in degrees and cm, as at inference: each pose is predicted from the audio
            and the model's own poses before it.
        clips: Clips; may come from a generator.
        teacher_forced: Clip and true previous poses `[F, 6]` (row 0 is zero, row t the true pose of frame t - 1; over
            frames without a face the last one is held) → poses `[F, 6]`.
        mean_pose: Mean pose `[6]` over the training frames.
        origin: Pose that poses are relative to: the clip's rest pose, or that of its first frame with a face.
        shift_s: Delay of the shifted truth in seconds.
        on_clip: Called with every clip that was evaluated.
        join: Puts the measurements together where other processes evaluate other clips.

    Raises:
        ValueError: There is nothing to evaluate; or a prediction has a wrong shape, or is not finite.
    """
    if free_running is None and teacher_forced is None:
        raise ValueError("there is no prediction to evaluate")
    measured = _Measured("pose", shift_s, mean_pose is not None)
    if teacher_forced:
        measured.notes.append("The previous pose is what a teacher-forced decoder was given: copying it is no skill.")
    for clip in clips:
        if (motion := measured.count(clip)) is None:
            continue
        # The truth, relative to the same origin as the model's poses.
        still = pose_origin(motion.pose_matrix, motion.valid, origin)
        true = motion.pose_about(still)
        # The predictions, next to the baselines.
        predictions: dict[str, np.ndarray] = {}
        if free_running:
            predictions[FREE_RUNNING] = _checked(free_running(clip), clip, (6,))
        previous = previous_poses(true)
        if teacher_forced:
            predictions[TEACHER_FORCED] = _checked(teacher_forced(clip, previous), clip, (6,))
        trace = Trace(clip=clip, kind="pose", still=still, true=true, predictions=predictions)
        measured.add(trace, no_motion=np.zeros(6), mean=mean_pose, previous=previous if teacher_forced else None)
        if on_clip:
            on_clip(trace)
    whose = "rest pose" if origin == "rest" else "first frame"
    return measured.evaluation(f"Poses relative to the clip's {whose}; whole clips, frames with a face.", join)


class _Measured:
    """Measurements of all subjects (predictions, baselines, truth) over the clips."""

    def __init__(self, kind: Kind, shift_s: float, has_mean: bool) -> None:
        self.kind, self.shift_s = kind, shift_s
        # Metrics of other kinds would be unavailable for every clip: leave them out of the table.
        self.found = MeasuredClips(tuple(name for name, m in METRICS.items() if f"predicted_{kind}" in m.needs))
        self.notes = [f"The shifted truth is the clip's own motion, {shift_s:g} s late."]
        if not has_mean:
            self.notes.append("The training mean was not given.")

    def count(self, clip: TrueClip) -> Motion | None:
        """Count a clip, and return its true motion; None when it has no face, so that it is not measured."""
        self.found.count(clip.key, clip.valid)
        return clip.motion

    def add(
        self, trace: Trace, *, no_motion: np.ndarray, mean: np.ndarray | None, previous: np.ndarray | None = None
    ) -> None:
        true, valid = trace.true, trace.clip.valid
        for name, values in trace.predictions.items():
            self._measure(name, "prediction", trace, values, valid)
        # A constant, the same in every frame: [468, 3] or [6] → the shape of the truth.
        self._measure(NO_MOTION[self.kind], "baseline", trace, np.broadcast_to(no_motion, true.shape), valid)
        if mean is not None:
            self._measure(TRAINING_MEAN, "baseline", trace, np.broadcast_to(mean, true.shape), valid)
        if previous is not None:
            self._measure(PREVIOUS_POSE, "baseline", trace, previous, valid)
        # The shifted truth: its first frames have no value yet and are not measured.
        late = np.full_like(true, np.nan)
        shift = round(self.shift_s * timebase.FPS)
        late[shift:] = true[: max(len(true) - shift, 0)]
        there = np.isfinite(late).reshape(len(late), -1).all(axis=1)
        self._measure(SHIFTED_TRUTH, "baseline", trace, late, valid & there)
        self._measure(TRUTH, "truth", trace, true, valid)

    def _measure(self, name: str, role: Role, trace: Trace, values: np.ndarray, valid: np.ndarray) -> None:
        # The truth is not compared with itself: it gets only the metrics that need no truth.
        true = None if role == "truth" else trace.true
        arrays = {f"predicted_{self.kind}": values, f"true_{self.kind}": true}
        self.found.add(name, role, Clip(key=trace.clip.key, valid=valid, audio=trace.clip.audio, **arrays))

    def evaluation(self, protocol: str, join: Join) -> Evaluation:
        found = join(self.found)
        notes = [*self.notes]
        if faceless := sum(clip.num_invalid == clip.num_frames for clip in found.clips):
            notes.append(f"{faceless} of {len(found.clips)} clips have no face and are not measured.")
        return Evaluation(
            kind=self.kind,
            protocol=protocol,
            notes=tuple(notes),
            clips=tuple(found.clips),
            subjects=tuple(
                Subject(name=name, role=role, results=tuple(measurement.results()))
                for name, (role, measurement) in found.subjects.items()
            ),
        )


def _checked(values: np.ndarray, clip: TrueClip, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (clip.num_frames, *shape):
        raise ValueError(f"{clip.key}: the prediction is {values.shape}, expected {(clip.num_frames, *shape)}")
    # Checked in all frames, also those without a face: there is audio in each of them to predict from.
    if not np.isfinite(values).all():
        raise ValueError(f"{clip.key}: the prediction is not finite: the weights are damaged or diverged")
    return values
