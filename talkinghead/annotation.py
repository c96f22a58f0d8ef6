"""The annotation columns: names, shapes, units, and how each is stored.

In memory a column is float32 (`valid` is bool) with NaN where a frame has no face. In a shard two columns are compact:

    landmarks   int16, 1/16384 of the image per step: at most 0.016 px off at 512 px, range -2 .. 2
    mesh        int16, 1/1024 cm per step: at most 0.0005 cm off, range -32 .. 32 cm

with -32768 for NaN. `blendshapes` is float16 (values 0 .. 1, at most 0.00025 off), everything else float32.

The step is in `ann.json` too, so that a reader needs no code of this project.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from talkinghead.column import Column

QUALITY_FIELDS = (
    "num_faces",  # faces that the separate detector pass found (held between its frames)
    "detection_score",  # detector's score of the annotated face, 0 .. 1
    "face_width_px",  # extent of the 468 landmarks in pixels of the clip
    "face_height_px",
    "sharpness",  # variance of the Laplacian of the face, resized to 128 px height, grey levels squared
    "brightness",  # mean luma of the face, 0 .. 255
    "pitch_deg",  # head rotation about x, y, z (`pose[:3]`)
    "yaw_deg",
    "roll_deg",
    "mouth_opening",  # inner lip distance |13 - 14| over mouth width |61 - 291|, of the metric mesh
    "jitter_px",  # mean second difference of the landmarks, pixels at 512
)


_FLOAT = np.dtype(np.float32)

COLUMNS = (
    Column("landmarks", (478, 3), "x/width, y/height, z/width of the image", np.dtype("<i2"), 1 / 16384, optional=True),
    Column("mesh", (468, 3), "cm, canonical face space", np.dtype("<i2"), 1 / 1024),
    Column("pose", (6,), "degrees (extrinsic xyz Euler), cm", np.dtype("<f4"), loaded=_FLOAT),
    Column("pose_matrix", (4, 4), "canonical to camera, cm", np.dtype("<f4"), loaded=_FLOAT),
    Column("blendshapes", (52,), "0 .. 1", np.dtype("<f2"), optional=True, loaded=_FLOAT),
    Column("quality", (len(QUALITY_FIELDS),), "see QUALITY_FIELDS", np.dtype("<f4"), optional=True, loaded=_FLOAT),
    Column("valid", (), "1 where a face was found", np.dtype("u1"), loaded=np.dtype(bool)),
)
COLUMN = {column.name: column for column in COLUMNS}
_OF_FACE = {"landmarks": slice(0, 468), "mesh": slice(None), "pose": slice(None), "pose_matrix": slice(None)}
"""Column → those of its rows that are NaN exactly where a frame has no face; landmarks without the irises."""

ANNOTATION_MEMBERS = tuple(sorted(["ann.json", *(column.member for column in COLUMNS)]))
"""Suffixes of a sample in an annotation shard, in tar order."""

Arrays = dict[str, np.ndarray]


def blank_arrays(num_frames: int) -> Arrays:
    """Columns of a clip in which no frame has a face."""
    arrays = {column.name: np.full((num_frames, *column.row_shape), np.nan, np.float32) for column in COLUMNS}
    arrays["valid"] = np.zeros(num_frames, bool)
    return arrays


def check_arrays(arrays: Mapping[str, np.ndarray]) -> int:
    """Check a clip's columns against each other and return the number of frames.

    Raises:
        ValueError: A column is missing, has another length or shape, or is not NaN exactly where `valid` is false
            (`blendshapes` and the iris rows of `landmarks` may be NaN in a valid frame: the fallback model has none).
    """
    if missing := [column.name for column in COLUMNS if column.name not in arrays]:
        raise ValueError(f"annotation lacks {', '.join(missing)}")
    # Every column spans the same frames.
    valid = arrays["valid"].astype(bool)
    for column in COLUMNS:
        values = arrays[column.name]
        if values.shape != (len(valid), *column.shape):
            raise ValueError(f"{column.name} is {values.shape}, expected {(len(valid), *column.shape)}")
    # A frame has either a whole face or none: half a face would pass for one in a mean or a maximum.
    for name, rows in _OF_FACE.items():
        finite = np.isfinite(arrays[name][:, rows]).reshape(len(valid), -1)
        if not (finite.all(axis=1) == valid).all() or finite[~valid].any():
            raise ValueError(f"{name} is not NaN exactly where valid is 0")
    return len(valid)


def frames_without_face(name: str, values: np.ndarray) -> int:
    """Number of frames in which a column says that there is no face; 0 for a column that does not say it.

    Args:
        name: Column.
        values: Its values, `[F, …]`.
    """
    if name not in _OF_FACE:
        return 0
    return int((~np.isfinite(values[:, _OF_FACE[name]]).reshape(len(values), -1).all(axis=1)).sum())
