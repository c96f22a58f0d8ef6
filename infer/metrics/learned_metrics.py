"""Metrics by networks that the user gives: identity, lip sync, and the Fréchet distances of images and of videos.

None of these networks comes with the program: without its file a metric is unavailable, and the result says why. Each
file is TorchScript, a program of its author that runs confined (`infer.metrics.scripted_model`), with a forward of this
form, all values float32:

    identity  faces `[N, 3, 112, 112]`, RGB in -1 … 1, aligned as for ArcFace → embeddings `[N, D]`
    sync      mouths `[N, 5, 3, 112, 112]`, RGB in 0 … 1, the lower half of five aligned frames fills the image, and
              their sound `[N, 3200]`, 16 kHz in -1 … 1 → embeddings of both `[N, D]`, `[N, D]`, near each other
              where they belong together (SyncNet)
    fid       images `[N, 3, H, W]`, RGB in 0 … 255, of any size → features `[N, D]` (Inception-v3 for FID)
    fvd       videos `[N, 3, 16, H, W]`, RGB in 0 … 255 → features `[N, D]` (I3D for FVD)

The switches `return_features`, `rescale` and `resize` of the files that are published for the last two are set where
they exist. Values compare only between evaluations with the same file: its sha256 is in the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from infer.metrics.face_reading import aligned_faces
from infer.metrics.lip_sync import sync_score
from infer.metrics.registry import Better, Clip, Result, Tally, Unavailable
from infer.metrics.scripted_model import ScriptedModel, ScriptLimits

BATCH = 16
FVD_FRAMES = 16
FVD_STRIDE = 8
"""Frames between the first frames of two neighbouring videos of a clip."""
FEWEST = 2
"""Smallest number of features in each of two sets between which there is a distance."""


@dataclass(frozen=True, kw_only=True)
class LearnedMetric:
    """Declaration of one metric: what it needs, its unit, and what it is."""

    model: str
    """Network that it needs: a field of `LearnedModels`."""
    unit: str
    better: Better
    meaning: str


LEARNED: dict[str, LearnedMetric] = {
    "identity_similarity": LearnedMetric(
        model="identity",
        unit="",
        better="higher",
        meaning="Cosine of the angle between the embeddings of the shown face and of the reference's (CSIM)",
    ),
    "sync_confidence": LearnedMetric(
        model="sync",
        unit="",
        better="higher",
        meaning="How much the best offset of sound and lips stands out: median minus least distance (LSE-C)",
    ),
    "sync_distance": LearnedMetric(
        model="sync",
        unit="",
        better="lower",
        meaning="Distance between sound and lips at the best offset (LSE-D)",
    ),
    "sync_offset": LearnedMetric(
        model="sync",
        unit="frames",
        better=None,
        meaning="The best offset; above 0 the lips come late",
    ),
    "frechet_inception_distance": LearnedMetric(
        model="fid",
        unit="",
        better="lower",
        meaning="Fréchet distance between the features of the generated images and of the true ones (FID)",
    ),
    "frechet_video_distance": LearnedMetric(
        model="fvd",
        unit="",
        better="lower",
        meaning="Fréchet distance between the features of generated and true videos of 16 frames (FVD)",
    ),
}
"""Name → metric, in the order in which they are printed, after those of the registry."""


@dataclass(frozen=True, kw_only=True)
class LearnedModels:
    """TorchScript files that the user gives, one per purpose, and what each of them may take."""

    identity: Path | None = None
    sync: Path | None = None
    fid: Path | None = None
    fvd: Path | None = None
    limits: ScriptLimits = field(default_factory=ScriptLimits)

    def load(self) -> dict[str, ScriptedModel]:
        """Networks that were given: purpose → network; each has a process that ends with it, or by its `close`.

        Raises:
            ValueError: A file cannot be loaded.
        """
        given = {"identity": self.identity, "sync": self.sync, "fid": self.fid, "fvd": self.fvd}
        return {name: ScriptedModel.load(name, path, self.limits) for name, path in given.items() if path is not None}

    @contextlib.contextmanager
    def loaded(self) -> Iterator[dict[str, ScriptedModel]]:
        """The networks of `load`, whose processes end with the block."""
        networks = self.load()
        try:
            yield networks
        finally:
            for network in networks.values():
                network.close()


@dataclass
class LearnedMeasurement:
    """Measures clips one after another; keeps only numbers and features, no images."""

    models: Mapping[str, ScriptedModel]
    _weights: dict[str, int] = field(default_factory=dict)
    _tallies: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in LEARNED})
    _features: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = field(default_factory=dict)

    def add(self, clip: Clip, reference: np.ndarray | None) -> None:
        """Measure one clip.

        Args:
            clip: Clip with predicted_video; for identity also shown_landmarks, for sync also asked_landmarks and audio.
            reference: Embedding `[D]` of the reference's face (`embed`); None: its face was not found.

        Raises:
            ValueError: A network does not do what its purpose asks.
        """
        self._weights[clip.key] = clip.num_valid
        # Metrics with one number per clip.
        if "identity" in self.models:
            self._tallies["identity_similarity"].note(clip.key, lambda: self._identity(clip, reference))
        if "sync" in self.models:
            # The three metrics share one pass of the network.
            score = cache(lambda: sync_score(clip, self.models["sync"], BATCH))
            self._tallies["sync_confidence"].note(clip.key, lambda: score().confidence)
            self._tallies["sync_distance"].note(clip.key, lambda: score().distance)
            self._tallies["sync_offset"].note(clip.key, lambda: score().offset)
        # Distances are between whole sets: keep the features of all clips until the end.
        for purpose, cut in (("fid", _images), ("fvd", _videos)):
            if purpose in self.models and clip.true_video is not None and clip.predicted_video is not None:
                for kept, video in zip(self._kept(purpose), (clip.predicted_video, clip.true_video), strict=True):
                    batches = cut(video, clip.valid)
                    kept.extend(self.models[purpose].features(batch) for batch in batches)

    def results(self) -> list[Result]:
        """Every metric over the clips so far, in the order of `LEARNED`."""
        return [self._result(name, entry) for name, entry in LEARNED.items()]

    def _identity(self, clip: Clip, reference: np.ndarray | None) -> float:
        shown = embed(clip, self.models["identity"])
        if reference is None:
            raise Unavailable("no face is found in the reference")
        # The network need not return embeddings of length 1: [M, D] · [D] is divided by both lengths.
        size = np.linalg.norm(shown, axis=1) * np.linalg.norm(reference)
        return float((shown @ reference / np.maximum(size, 1e-12)).mean())

    def _kept(self, purpose: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return self._features.setdefault(purpose, ([], []))

    def _result(self, name: str, entry: LearnedMetric) -> Result:
        found = self._tallies[name].result(name, entry.unit, entry.better, self._weights)
        if entry.model not in self.models:
            return replace(found, reason_unavailable=f"no {entry.model} model was given")
        # A distance belongs to the whole set: it has no values clip by clip, and takes the place of their mean.
        if entry.model in ("fid", "fvd"):
            value, reason = self._distance(entry.model)
            return replace(found, value=value, reason_unavailable=reason)
        return found

    def _distance(self, purpose: str) -> tuple[float | None, str | None]:
        # Generated and true features, [N, D] each.
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
        raise Unavailable("no face is found in the images")
    # Aligned by what the image shows: a face in the wrong place is for other metrics to measure.
    faces = aligned_faces(clip.predicted_video[seen], clip.shown_landmarks[seen])
    planes = np.ascontiguousarray(np.moveaxis(faces, 3, 1)).astype(np.float32) / 127.5 - 1  # [M, 3, 112, 112]
    return np.concatenate([model.features(planes[at : at + BATCH]) for at in range(0, len(planes), BATCH)])


def _images(video: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """Batches `[N, 3, H, W]` of the measured frames."""
    frames = np.flatnonzero(valid)
    return [_planes(video[frames[at : at + BATCH]]) for at in range(0, len(frames), BATCH)]


def _videos(video: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """Batches `[1, 3, 16, H, W]`: videos of 16 measured frames in a row."""
    starts = range(0, len(video) - FVD_FRAMES + 1, FVD_STRIDE)
    # A gap would be a jump that the network takes for motion: only videos without one.
    whole = [start for start in starts if valid[start : start + FVD_FRAMES].all()]
    # [16, 3, H, W] → [1, 3, 16, H, W]
    return [np.ascontiguousarray(_planes(video[start : start + FVD_FRAMES]).swapaxes(0, 1))[None] for start in whole]


def _planes(frames: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(frames, 3, 1)).astype(np.float32)


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance between two sets of features, as of normal distributions: mean μ, covariance Σ.

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½). Source: D. C. Dowson and B. V. Landau, 1982; for images Heusel et al.,
    2017 (FID), for videos Unterthiner et al., 2018 (FVD). The trace of the root is the nuclear norm of A₁ᵀ A₂ with
    Σ = A Aᵀ, where A is the centred features over √(N - 1): exact also where there are fewer samples than dimensions,
    and without the root of a matrix that is not symmetric.

    Args:
        one: Features `[N, D]`, N ≥ 2.
        other: Features `[M, D]`, M ≥ 2.

    Returns:
        At least 0. It is biased upwards for few samples, so that values compare only over equal numbers of them.

    Raises:
        ValueError: Too few samples, or features of different sizes.
    """
    if min(len(one), len(other)) < FEWEST or one.shape[1:] != other.shape[1:] or one.ndim != 2:
        raise ValueError(f"features {one.shape} and {other.shape} must be [{FEWEST} or more, D] with one D")
    apart = one.mean(axis=0, dtype=np.float64) - other.mean(axis=0, dtype=np.float64)
    # tr Σ is the squared Frobenius norm of a root of Σ; tr (Σ₁ Σ₂)^½ the sum of singular values of R₁ R₂ᵀ.
    first, second = _root(one), _root(other)
    traces = float(np.square(first).sum() + np.square(second).sum())
    shared = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    # Rounding can bring the distance of equal sets slightly below 0.
    return max(float(apart @ apart) + traces - 2 * shared, 0.0)


def _root(features: np.ndarray) -> np.ndarray:
    """Root R `[min(N, D), D]` of the covariance Σ of features `[N, D]`: Rᵀ R = Σ."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    centred /= np.sqrt(len(features) - 1)
    # QR drops an orthonormal factor, which changes no singular value, and leaves D rows at most.
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
