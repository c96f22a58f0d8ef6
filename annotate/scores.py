"""Clip scores: a clip's annotation and provenance, summarised in one row of the index.

Scores are written once and judged later (`annotate.filters`), so thresholds can change without reading media again.
A score is None where it is not defined, e.g. the yaw of a clip without a face.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from annotate.identity_drift import identity_drift
from annotate.movement import Scores, image_scores, longest_run, mesh_scores
from talkinghead.annotation import QUALITY_FIELDS
from talkinghead.geometry.face_regions import EYES, LIPS, NUM_VERTICES
from talkinghead.schema import ClipInfo
from talkinghead.timebase import samples_in

_TURNED_DEG = 135.0  # absolute roll from which on a face is nearer to upside down than to lying on its side
_UNDER = 0.2  # of the face's height, by which eyes under the mouth say the same (upright ones are 0.35 above it)


def sample_scores(arrays: Mapping[str, np.ndarray], info: ClipInfo, images: np.ndarray | None = None) -> Scores:
    """All scores of a sample: those of its columns, its provenance and its images, and some that need more.

    `face_source_px` is the median height of the face in pixels of the source, before the clip was resized: enlarging a
    face adds no detail. `unexplained_repeat_fraction` is the share of frames that repeat the image before although
    another frame of the source is due: a source of 15 fps repeats 40 % by right.

    Args:
        arrays: Columns of the annotation.
        info: Provenance of the clip.
        images: Small grey images `[F, h, w]` of its frames (`annotate.small_images`); None: without their scores.
    """
    scores = clip_scores(arrays) | info_scores(info)
    height, scale = scores["face_height_px"], scores["source_px_per_px"]
    scores["face_source_px"] = None if height is None or scale is None else height * scale
    scores["identity_drift"] = identity_drift(arrays["mesh"], arrays["valid"])
    if images is not None:
        scores |= image_scores(images, arrays["landmarks"], info.damaged_frames)
        repeated, expected = scores["repeated_image_fraction"], scores["repeated_frame_fraction"]
        scores["unexplained_repeat_fraction"] = (
            None if repeated is None or expected is None else max(0.0, repeated - expected)
        )
    return scores


def clip_scores(arrays: Mapping[str, np.ndarray]) -> Scores:
    """Scores of the annotation columns.

    Units follow `QUALITY_FIELDS`; medians, means and percentiles are taken over the frames with a face.
    """
    valid = arrays["valid"].astype(bool)
    quality: dict[str, np.ndarray] = dict(zip(QUALITY_FIELDS, arrays["quality"].astype(np.float64).T, strict=True))
    frames = len(valid)
    rows = arrays["landmarks"][:, :NUM_VERTICES, 1].astype(np.float64)  # y as a fraction of the height
    faces = quality["num_faces"]
    scores: Scores = {
        "num_frames": float(frames),
        "valid_fraction": float(valid.mean()) if frames else None,
        "longest_valid_run": float(longest_run(valid)),
        "faces_max": _of(np.max, faces),
        "multi_face_fraction": _of(np.mean, (faces > 1).astype(np.float64)),
        "detection_score": _of(np.median, quality["detection_score"]),
        "face_width_px": _of(np.median, quality["face_width_px"]),
        "face_height_px": _of(np.median, quality["face_height_px"]),
        "face_fraction": _of(np.median, rows.max(axis=1) - rows.min(axis=1)),
        "upside_down_fraction": _of(np.mean, _upside_down(rows, quality["roll_deg"])[valid].astype(np.float64)),
        "sharpness": _of(np.median, quality["sharpness"]),
        "brightness": _of(np.median, quality["brightness"]),
        "mouth_opening_mean": _of(np.mean, quality["mouth_opening"]),
        "mouth_opening_std": _of(np.std, quality["mouth_opening"]),
        "mouth_opening_max": _of(np.max, quality["mouth_opening"]),
        "jitter_px": _of(np.median, quality["jitter_px"]),
    }
    scores |= mesh_scores(arrays["mesh"], arrays["pose"])
    # Angles: the mean keeps the side, the others say how far the head is turned to either.
    for angle in ("pitch", "yaw", "roll"):
        values = quality[f"{angle}_deg"]
        scores[f"{angle}_mean"] = _of(np.mean, values)
        scores[f"{angle}_abs_median"] = _of(np.median, np.abs(values))
        scores[f"{angle}_abs_p95"] = _of(lambda known: np.percentile(known, 95), np.abs(values))
    return scores


def info_scores(info: ClipInfo) -> Scores:
    """Scores of a clip's provenance; flags are 0 or 1."""
    _, top, _, bottom = info.crop_box_px
    silence = info.audio_offset_samples + info.audio_padded_samples + info.audio_gap_samples
    return {
        "damaged_fraction": len(info.damaged_frames) / info.num_frames,
        "audio_missing": float(info.audio == "missing"),
        "audio_silent": float(info.audio == "silent"),
        "audio_padded_fraction": silence / samples_in(info.num_frames),
        "audio_nan_samples": float(info.audio_nan_samples),
        "av_duration_difference_s": info.av_duration_difference_s,
        "source_fps": info.source_fps,
        "source_multi_face_fraction": info.source_multi_face_fraction,
        "source_px_per_px": (bottom - top) / info.height,
        "hdr": float(info.source_hdr is not None),
        "interlaced": float(info.source_interlaced),
        "mirrored": float(info.source_mirrored),
        "clock_jumps": float(info.source_clock_jumps),
        "damaged_time_stamps": float(info.source_damaged_stamps),
        "repeated_frame_fraction": _repeated_frames(info.source_pts),
    }


def _upside_down(rows: np.ndarray, roll_deg: np.ndarray) -> np.ndarray:
    """Which frames show a face upside down, `[F]` bool, from the height of its landmarks `[F, 468]` and its roll."""
    below = rows[:, EYES].mean(axis=1) - rows[:, LIPS].mean(axis=1)
    return (np.abs(roll_deg) > _TURNED_DEG) | (below > _UNDER * (rows.max(axis=1) - rows.min(axis=1)))


def _repeated_frames(source_pts: list[float]) -> float | None:
    """Share of frames that show the same source frame as the one before: a source of less than 25 fps."""
    if len(source_pts) < 2:
        return None
    return float(np.mean(np.diff(source_pts) == 0))


def _of(statistic, values: np.ndarray) -> float | None:
    """A statistic over the finite values; None without any."""
    known = values[np.isfinite(values)]
    return float(statistic(known)) if len(known) else None
