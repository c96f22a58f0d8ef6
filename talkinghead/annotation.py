"""The annotation columns: names, shapes, units, and how each is stored.

In memory a column is float32 (`valid` is bool) with NaN where a frame has no face. In a shard two columns are compact:

    landmarks   int16, 1/16384 of the image per step: at most 0.016 px off at 512 px, range -2 .. 2
    mesh        int16, 1/1024 cm per step: at most 0.0005 cm off, range -32 .. 32 cm

with -32768 for NaN. `blendshapes` is float16 (values 0 .. 1, at most 0.00025 off), everything else float32.

The step is in `ann.json` too, so that a reader needs no code of this project.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from talkinghead.npy import read_npy

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


@dataclass(frozen=True)
class Column:
    """One annotation column of a clip; axis 0 is the frame."""

    name: str
    shape: tuple[int, ...]
    """Shape per frame."""
    unit: str
    stored: np.dtype
    step: float | None = None
    """Units per integer step of a compact column."""

    @property
    def member(self) -> str:
        """Suffix of the column's tar member."""
        return f"{self.name}.npy"


COLUMNS = (
    Column("landmarks", (478, 3), "x/width, y/height, z/width of the image", np.dtype("<i2"), 1 / 16384),
    Column("mesh", (468, 3), "cm, canonical face space", np.dtype("<i2"), 1 / 1024),
    Column("pose", (6,), "degrees (extrinsic xyz Euler), cm", np.dtype("<f4")),
    Column("pose_matrix", (4, 4), "canonical to camera, cm", np.dtype("<f4")),
    Column("blendshapes", (52,), "0 .. 1", np.dtype("<f2")),
    Column("quality", (len(QUALITY_FIELDS),), "see QUALITY_FIELDS", np.dtype("<f4")),
    Column("valid", (), "1 where a face was found", np.dtype("u1")),
)
COLUMN = {column.name: column for column in COLUMNS}

ANNOTATION_MEMBERS = tuple(sorted(["ann.json", *(column.member for column in COLUMNS)]))
"""Suffixes of a sample in an annotation shard, in tar order."""

MISSING = -32768
"""Value that means NaN in a compact column."""

LARGEST = 32767
"""Largest number of steps in a compact column."""

Arrays = dict[str, np.ndarray]


def blank_arrays(num_frames: int) -> Arrays:
    """Columns of a clip in which no frame has a face."""
    arrays = {column.name: np.full((num_frames, *column.shape), np.nan, np.float32) for column in COLUMNS}
    arrays["valid"] = np.zeros(num_frames, bool)
    return arrays


def encode_column(column: Column, values: np.ndarray) -> bytes:
    """One column as the bytes of an `.npy` file (format 1.0, little endian, no pickle).

    Raises:
        ValueError: Wrong shape, or a value outside the compact column's range.
    """
    if values.shape[1:] != column.shape:
        raise ValueError(f"{column.name} has shape {values.shape}, must be [F, {', '.join(map(str, column.shape))}]")
    stored = _quantise(column, values) if column.step else values.astype(column.stored)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(stored), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_column(column: Column, data: bytes | memoryview) -> np.ndarray:
    """Inverse of `encode_column`: float32, NaN where the frame has no face (`valid`: bool).

    Raises:
        ValueError: The bytes are no `.npy` file, or hold another dtype or shape than the column's.
    """
    return decode_rows(column, read_npy(data))


def decode_rows(column: Column, stored: np.ndarray) -> np.ndarray:
    """Rows of a column as they are stored, as `decode_column` gives them."""
    if stored.shape[1:] != column.shape or stored.dtype != column.stored:
        raise ValueError(
            f"{column.name} is {stored.dtype}{list(stored.shape)}, expected {column.stored} of {column.shape}"
        )
    if column.name == "valid":
        return stored.astype(bool)
    if column.step is None:
        return stored.astype(np.float32)
    values = stored.astype(np.float32) * np.float32(column.step)
    values[stored == MISSING] = np.nan
    return values


def _quantise(column: Column, values: np.ndarray) -> np.ndarray:
    """Values as integer steps of a compact column, `MISSING` for NaN."""
    assert column.step
    missing = np.isnan(values)
    steps = np.rint(np.where(missing, 0.0, values).astype(np.float64) / column.step)
    if np.abs(steps).max(initial=0) > LARGEST:
        raise ValueError(
            f"{column.name} holds {np.nanmax(np.abs(values)):.3g}, beyond ±{LARGEST * column.step:.3g} {column.unit}"
        )
    stored = steps.astype(column.stored)
    stored[missing] = MISSING
    return stored


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
    for name, rows in (
        ("landmarks", slice(0, 468)),  # without the irises
        ("mesh", slice(None)),
        ("pose", slice(None)),
        ("pose_matrix", slice(None)),
    ):
        finite = np.isfinite(arrays[name][:, rows]).reshape(len(valid), -1)
        if not (finite.all(axis=1) == valid).all() or finite[~valid].any():
            raise ValueError(f"{name} is not NaN exactly where valid is 0")
    return len(valid)
