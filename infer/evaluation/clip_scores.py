"""Scores of one take: every metric that applies, the same code for pairs, baselines and the truth.

Everything is compared with the truth of the clip: the motion that the renderer was given with the annotated motion,
frames with the true frames, and the landmarks that are found in the frames with the annotated ones. What a subject
cannot have (images of a renderer that draws, a motion that does not move) has no value and a reason, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from annotate.landmarks import LandmarkEngine
from infer.evaluation.held_out_clip import HeldOutClip
from infer.evaluation.subjects import Take
from infer.metrics import METRICS, Better, Clip, Unavailable
from infer.metrics.face_reading import redetect
from infer.metrics.learned_metrics import LEARNED, LearnedMeasurement, embed
from infer.metrics.scripted_model import ScriptedModel

PER_CLIP_MODELS = ("identity", "sync")
"""Learned metrics with a value for each clip; Fréchet distances are between whole sets."""
_NOT_A_PHOTOGRAPH = "the renderer draws landmarks, which do not compare with true frames"


@dataclass(frozen=True, kw_only=True)
class MetricKind:
    """What is known of a metric, whoever is measured."""

    name: str
    unit: str
    better: Better
    scope: str
    """What it looks at: `face motion`, `head motion`, `images`, `shown face`, or `learned`."""
    meaning: str


def metric_kinds(models: Sequence[str] = ()) -> dict[str, MetricKind]:
    """All metrics of a pair evaluation by name.

    Args:
        models: Purposes of the learned metrics that a network was given for.
    """
    found = {
        metric.name: MetricKind(
            name=metric.name,
            unit=metric.unit,
            better=metric.better,
            scope=_scope(metric.needs),
            meaning=metric.meaning,
        )
        for metric in METRICS.values()
    }
    learned = {
        name: MetricKind(name=name, unit=entry.unit, better=entry.better, scope="learned", meaning=entry.meaning)
        for name, entry in LEARNED.items()
        if entry.model in models and entry.model in PER_CLIP_MODELS
    }
    order = ("face motion", "head motion", "images", "shown face", "learned")
    return dict(sorted((found | learned).items(), key=lambda item: order.index(item[1].scope)))


def _scope(needs: Sequence[str]) -> str:
    if "predicted_mesh" in needs:
        return "face motion"
    if "predicted_pose" in needs:
        return "head motion"
    return "shown face" if {"shown_landmarks", "mouth_reading"} & set(needs) else "images"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Values of one take."""

    values: Mapping[str, float | None]
    """Metric → value; None: it has none."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Metric without a value → why."""


def score(
    take: Take,
    clip: HeldOutClip,
    engine: LandmarkEngine,
    networks: Mapping[str, ScriptedModel],
    reference: np.ndarray | None = None,
) -> Scores:
    """Measure a take.

    Args:
        take: What a subject shows of the clip.
        clip: The clip.
        engine: Landmark engine that finds the face in the frames.
        networks: Networks of learned metrics by purpose.
        reference: Embedding of the portrait's face (`embedded`); None: there is none.

    Raises:
        ValueError: The frames have another size than the true ones, or a motion is not finite.
    """
    known = clip.driven
    motion, photo = take.motion, take.photographic
    shown = None
    if photo:
        # One image is searched once.
        found = redetect(take.video[:1] if take.repeated else take.video, engine)
        shown = np.broadcast_to(found, known.landmarks.shape)
    # The mouth is read where the subject puts the face, and compared with the true opening.
    placed = None if motion is None else motion.landmarks()
    origin = clip.portrait.pose_matrix
    measured = Clip(
        key=clip.key,
        valid=known.valid,
        predicted_mesh=None if motion is None else motion.meshes(),
        true_mesh=clip.motion.meshes(),
        predicted_pose=None if motion is None else motion.pose_about(origin),
        true_pose=clip.motion.pose_about(origin),
        audio=known.audio,
        predicted_video=take.video if photo else None,
        true_video=clip.truth if photo else None,
        asked_landmarks=known.landmarks,
        shown_landmarks=shown,
        mouth_reading=known.mouth.read(take.video, placed, known.frames) if photo and placed is not None else None,
    )
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, metric in METRICS.items():
        try:
            values[name] = metric.of(measured)
        except Unavailable as reason:
            values[name] = None
            drawn = not photo and _scope(metric.needs) in ("images", "shown face")
            reasons[name] = _NOT_A_PHOTOGRAPH if drawn else str(reason)
    for name, value, reason in _learned(measured, networks, reference):
        values[name] = value
        if reason is not None:
            reasons[name] = _NOT_A_PHOTOGRAPH if not photo else reason
    return Scores(values=values, reasons=reasons)


def _learned(
    clip: Clip, networks: Mapping[str, ScriptedModel], reference: np.ndarray | None
) -> list[tuple[str, float | None, str | None]]:
    """Name, value and reason of each learned metric whose network is given."""
    given = {purpose: network for purpose, network in networks.items() if purpose in PER_CLIP_MODELS}
    names = [name for name, entry in LEARNED.items() if entry.model in given]
    if clip.predicted_video is None:
        return [(name, None, _NOT_A_PHOTOGRAPH) for name in names]
    measurement = LearnedMeasurement(given)
    measurement.add(clip, reference)
    return [
        (found.name, found.value, found.reason_unavailable) for found in measurement.results() if found.name in names
    ]


def embedded(clip: HeldOutClip, engine: LandmarkEngine, networks: Mapping[str, ScriptedModel]) -> np.ndarray | None:
    """Embedding `[D]` of the portrait's face; None without a network, or where no face is found."""
    if "identity" not in networks:
        return None
    image = clip.driven.reference[None]
    alone = Clip(key=clip.key, valid=np.ones(1, bool), predicted_video=image, shown_landmarks=redetect(image, engine))
    try:
        return embed(alone, networks["identity"])[0]
    except Unavailable:
        return None
