"""Measures by networks that the user gives: identity, lip sync, and the Fréchet distances of pictures and of videos.

None of these networks comes with the program: without a file its measures are unavailable, and say so. Each file is
TorchScript (`infer.metrics.scripted_model`) with a forward of this form, all values float32:

    identity  faces `[N, 3, 112, 112]`, RGB in -1 … 1, aligned as for ArcFace → embeddings `[N, D]`
    sync      mouths `[N, 5, 3, 112, 112]`, RGB in 0 … 1, the lower half of five aligned frames fills the picture, and
              their sound `[N, 3200]`, 16 kHz in -1 … 1 → embeddings of both `[N, D]`, `[N, D]`, near each other
              where they belong together (SyncNet)
    fid       pictures `[N, 3, H, W]`, RGB in 0 … 255, of any size → features `[N, D]` (Inception-v3 for FID)
    fvd       videos `[N, 3, 16, H, W]`, likewise → features `[N, D]` (I3D for FVD)

The switches `return_features`, `rescale` and `resize` of the files that are published for the last two are set where
they exist. Values compare only between runs with the same file: its sha256 is in the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from infer.metrics.registry import Better


@dataclass(frozen=True, kw_only=True)
class LearnedMetric:
    """One entry of the table."""

    model: str
    """The network that it needs: a field of `LearnedModels`."""
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
        meaning="Fréchet distance between the features of the generated pictures and of the true ones (FID)",
    ),
    "frechet_video_distance": LearnedMetric(
        model="fvd",
        unit="",
        better="lower",
        meaning="Fréchet distance between the features of generated and true videos of 16 frames (FVD)",
    ),
}
"""Name → what the measure is, in the order in which they are printed, behind those of the registry."""
