"""The annotation of one clip: frames in, columns out; and their encoding as tar members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from annotate.landmarks import LandmarkEngine
from annotate.quality import Detector, FaceMeter, frame_quality
from annotate.scores import clip_scores
from annotate.settings import AnnotateSettings
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMN, COLUMNS, QUALITY_FIELDS, Arrays, check_arrays
from talkinghead.column import LARGEST, MISSING, encode_column
from talkinghead.geometry.canonical import CanonicalFace
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.geometry.pose import pose_from_matrix
from talkinghead.provenance import pretty_json
from talkinghead.schema import SCHEMA_VERSION

INFO_FIELDS = ("annotate_key", "engine", "model", "model_sha256")
"""Entries that the `info` of `encode_annotation` must have."""


def annotate_clip(
    frames: Iterable[np.ndarray],
    engine: LandmarkEngine,
    detector: Detector,
    face: CanonicalFace,
    settings: AnnotateSettings,
    damaged: Sequence[int] = (),
) -> Arrays:
    """All columns of one clip, in one pass over its frames.

    No frame is kept: memory grows by the columns alone, about 26 kB a frame while they are computed.

    Args:
        frames: RGB uint8 `[H, W, 3]`, all of one size, 25 fps, in order; consumed once.
        engine: Finds the landmarks.
        detector: Counts the faces, every `settings.detector_every` frames, apart from the engine's own detector.
        face: Canonical face of the engine's model.
        settings: Parameters of the job.
        damaged: Frames whose images are damaged (`ClipInfo.damaged_frames`). They count as frames without a face: what
            an engine finds in torn images is not to be trusted, and nothing should learn from them.

    Returns:
        Column name → array, as `talkinghead.annotation` describes them (float32; `valid` is bool). A frame without a
        face is NaN. So is one whose landmarks or mesh leave the range that a shard can hold (landmarks two image sizes
        away, a head of 64 cm): no such face exists.

    Raises:
        ValueError: No frames, or frames of several sizes.
    """
    # One pass over the frames: the meter measures each before it goes to the engine.
    meter = FaceMeter(detector, settings.detector_every)
    landmarks = engine(meter.watch(frames))
    num_frames = len(landmarks.points)
    if num_frames == 0:
        raise ValueError("the clip has no frames, so there is nothing to annotate")
    assert num_frames == len(meter.num_faces), "the engine left frames out"

    # Landmarks to mesh and head pose; a frame counts where all of them can be stored.
    points = landmarks.points.astype(np.float32)  # a copy: the engine's array stays as it is
    points[list(damaged)] = np.nan
    _drop_unstorable(points, "landmarks")
    mesh, matrix = metric_mesh(points, meter.width, meter.height, face)
    _drop_unstorable(mesh, "mesh")
    # Frames that dropped out on the way are missing in all columns alike.
    valid = np.isfinite(mesh[:, 0, 0])
    for values in (points, matrix):
        values[~valid] = np.nan
    blendshapes = np.where(valid[:, None], landmarks.blendshapes, np.nan)
    pose = pose_from_matrix(matrix)
    arrays = {
        "landmarks": points,
        "mesh": mesh.astype(np.float32),
        "pose": pose.astype(np.float32),
        "pose_matrix": matrix.astype(np.float32),
        "blendshapes": blendshapes.astype(np.float32),
        "quality": frame_quality(points, mesh, pose, meter),
        "valid": valid,
    }
    check_arrays(arrays)
    return arrays


def _drop_unstorable(values: np.ndarray, column: str) -> None:
    """Set the frames of a compact column that it cannot hold to NaN."""
    step = COLUMN[column].step
    assert step
    # No np.nanmax: NaN compares false, so missing rows stay as they are.
    values[(np.abs(values) > LARGEST * step).any(axis=(1, 2))] = np.nan


def encode_annotation(
    arrays: Arrays, info: Mapping[str, Any], scores: Mapping[str, float | None] | None = None
) -> dict[str, bytes]:
    """A clip's annotation as tar members.

    Args:
        arrays: All columns.
        info: Provenance of the columns: at least `annotate_key`, `engine`, `model` (name) and `model_sha256`; further
            entries are written too.
        scores: Clip scores to write; None: `clip_scores` of the columns.

    Returns:
        Suffix → content, in the order of `ANNOTATION_MEMBERS`. `ann.json` describes how to read the others without code
        of this project.

    Raises:
        ValueError: Columns that do not fit each other, values beyond a compact column's range, or an incomplete `info`.
    """
    num_frames = check_arrays(arrays)
    if missing := [name for name in INFO_FIELDS if not info.get(name)]:
        raise ValueError(f"annotation info lacks {', '.join(missing)}")
    # `ann.json`: provenance, the layout of each column, and the scores.
    document = {
        **info,
        "schema_version": SCHEMA_VERSION,
        "num_frames": num_frames,
        "columns": {
            column.name: {
                "dtype": column.stored.str,
                "shape": [num_frames, *column.shape],
                "unit": column.unit,
                "step": column.step,
                "missing": MISSING if column.step else None if column.name == "valid" else "NaN",
            }
            for column in COLUMNS
        },
        "quality_fields": list(QUALITY_FIELDS),
        "scores": dict(clip_scores(arrays) if scores is None else scores),
    }
    members = {column.member: encode_column(column, arrays[column.name]) for column in COLUMNS}
    members["ann.json"] = pretty_json(document)
    return {suffix: members[suffix] for suffix in ANNOTATION_MEMBERS}
