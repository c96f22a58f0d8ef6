"""The measuring of clips by networks that the user gives; see `infer.metrics.learned_metrics`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from infer.metrics.face_alignment import aligned_faces
from infer.metrics.frechet import FEWEST, frechet_distance
from infer.metrics.learned_metrics import LEARNED, LearnedMetric
from infer.metrics.lip_sync import SyncScore, sync_score
from infer.metrics.registry import Clip, Result, Unavailable
from infer.metrics.scripted_model import ScriptedModel

BATCH = 16
FVD_FRAMES = 16
FVD_STRIDE = 8
"""Frames between the beginnings of two videos of a clip."""


@dataclass(frozen=True, kw_only=True)
class LearnedModels:
    """The files of the user."""

    identity: Path | None = None
    sync: Path | None = None
    fid: Path | None = None
    fvd: Path | None = None

    def load(self) -> dict[str, ScriptedModel]:
        """Purpose → network, of those that were given.

        Raises:
            ValueError: A file cannot be loaded.
        """
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: ScriptedModel.load(name, path) for name, path in given.items() if path is not None}


@dataclass
class LearnedMeasurement:
    """Measures clips one after another; only numbers and features are kept of each."""

    models: Mapping[str, ScriptedModel]
    _weights: dict[str, int] = field(default_factory=dict)
    _values: dict[str, dict[str, float | None]] = field(default_factory=dict)
    _reasons: dict[str, set[str]] = field(default_factory=dict)
    _features: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = field(default_factory=dict)

    def add(self, clip: Clip, reference: np.ndarray | None) -> None:
        """Measure one clip.

        Args:
            clip: With predicted_video; for identity also shown_landmarks, for sync also asked_landmarks and audio.
            reference: `[D]` embedding of the reference's face (`embed`); None: it is not found.

        Raises:
            ValueError: A network does not do what its purpose asks.
        """
        self._weights[clip.key] = clip.num_valid
        if "identity" in self.models:
            self._note(clip, {"identity_similarity": lambda: self._identity(clip, reference)})
        if "sync" in self.models:
            score: list[SyncScore] = []

            def scored() -> SyncScore:
                if not score:
                    score.append(sync_score(clip, self.models["sync"], BATCH))
                return score[0]

            self._note(
                clip,
                {
                    "sync_confidence": lambda: scored().confidence,
                    "sync_distance": lambda: scored().distance,
                    "sync_offset": lambda: scored().offset,
                },
            )
        for purpose, cut in (("fid", _pictures), ("fvd", _videos)):
            if purpose in self.models and clip.true_video is not None and clip.predicted_video is not None:
                for kept, video in zip(self._kept(purpose), (clip.predicted_video, clip.true_video), strict=True):
                    batches = cut(video, clip.valid)
                    kept.extend(self.models[purpose].features(batch) for batch in batches)

    def results(self) -> list[Result]:
        """Every measure over the clips so far."""
        return [self._result(name, entry) for name, entry in LEARNED.items()]

    def _identity(self, clip: Clip, reference: np.ndarray | None) -> float:
        shown = embed(clip, self.models["identity"])
        if reference is None:
            raise Unavailable("no face is found in the reference")
        size = np.linalg.norm(shown, axis=1) * np.linalg.norm(reference)
        return float((shown @ reference / np.maximum(size, 1e-12)).mean())

    def _note(self, clip: Clip, measures: Mapping[str, Callable[[], float]]) -> None:
        for name, measure in measures.items():
            try:
                self._values.setdefault(name, {})[clip.key] = float(measure())
            except Unavailable as reason:
                self._values.setdefault(name, {})[clip.key] = None
                self._reasons.setdefault(name, set()).add(str(reason))

    def _kept(self, purpose: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return self._features.setdefault(purpose, ([], []))

    def _result(self, name: str, entry: LearnedMetric) -> Result:
        value, reason, per_clip = None, f"no {entry.model} model was given", {}
        if entry.model in self.models and entry.model in ("fid", "fvd"):
            value, reason = self._distance(entry.model)
        elif entry.model in self.models:
            per_clip = self._values.get(name, {})
            there = {key: found for key, found in per_clip.items() if found is not None}
            reason = "; ".join(sorted(self._reasons.get(name, ()))) or None
            if there:
                total = sum(self._weights[key] for key in there)
                value = sum(self._weights[key] * found for key, found in there.items()) / total
        return Result(
            name=name, unit=entry.unit, better=entry.better, value=value, reason_unavailable=reason, per_clip=per_clip
        )

    def _distance(self, purpose: str) -> tuple[float | None, str | None]:
        one, other = (np.concatenate(kept) if kept else np.empty((0, 1)) for kept in self._kept(purpose))
        if len(one) < FEWEST:
            what = "frames" if purpose == "fid" else f"videos of {FVD_FRAMES} frames"
            return None, f"fewer than {FEWEST} {what} have a truth to compare with"
        return frechet_distance(one, other), None


def embed(clip: Clip, model: ScriptedModel) -> np.ndarray:
    """Identity embeddings of the measured frames in which a face is found, `[M, D]`.

    Raises:
        Unavailable: There is no such frame.
    """
    if clip.predicted_video is None or clip.shown_landmarks is None:
        raise Unavailable("needs predicted_video and shown_landmarks")
    seen = clip.valid & np.isfinite(clip.shown_landmarks).all(axis=(1, 2))
    if not seen.any():
        raise Unavailable("no face is found in the pictures")
    faces = aligned_faces(clip.predicted_video[seen], clip.shown_landmarks[seen])
    planes = np.ascontiguousarray(np.moveaxis(faces, 3, 1)).astype(np.float32) / 127.5 - 1
    return np.concatenate([model.features(planes[at : at + BATCH]) for at in range(0, len(planes), BATCH)])


def _pictures(video: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """Batches `[N, 3, H, W]` of the measured frames."""
    frames = np.flatnonzero(valid)
    return [_planes(video[frames[at : at + BATCH]]) for at in range(0, len(frames), BATCH)]


def _videos(video: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """Batches `[1, 3, 16, H, W]` of the runs of 16 measured frames."""
    starts = range(0, len(video) - FVD_FRAMES + 1, FVD_STRIDE)
    whole = [start for start in starts if valid[start : start + FVD_FRAMES].all()]
    return [np.ascontiguousarray(_planes(video[start : start + FVD_FRAMES]).swapaxes(0, 1))[None] for start in whole]


def _planes(frames: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(frames, 3, 1)).astype(np.float32)
