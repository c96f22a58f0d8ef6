"""Mouth and eyes of a clip: how far they are open in each frame, and how much they move.

    mouth    [F, 2], cm: opening |13 - 14| between the middles of the inner lips, width |61 - 291| between the corners
    eyes     [F, 2]: opening of the left and of the right eye, mean distance of the lids over the width of the eye
    blink    [F]: 1 where the eyes are less open than 0.85 times the clip's 75th percentile, 0 elsewhere
    z_blink  [F]: 1 - clip(opening / 95th percentile, 0, 1), from 0 (open) to 1 (shut)

`blink` and `z_blink` are those of the mean of both eyes, and relative to the clip, because eyes differ. All are
measured on the metric mesh, so that the head's turn and distance do not count. A frame without a face has NaN, and -1
in `blink`.

Storage: `mouth` in steps of 1/1024 cm, as the mesh (at most 0.0005 cm off, up to 32 cm; a shouting mouth is 4 cm open),
`eyes` in steps of 1/8192 (at most 0.00007 off, up to 4; open eyes have 0.25 to 0.35), `z_blink` in steps of 1/16384
(at most 0.00004 off). From one frame to the next the landmarks of still eyes waver by 0.01.

Sources: openings, see `talkinghead/geometry/face_regions.py`; the eyes' is the eye aspect ratio of T. Soukupová and
J. Čech, "Real-Time Eye Blink Detection using Facial Landmarks", 2016. The thresholds of `blink` and `z_blink` are
this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from talkinghead.column import Column
from talkinghead.derived import ColumnSample, Derived, DerivedColumn, Fit
from talkinghead.geometry.face_regions import LEFT_EYE, RIGHT_EYE, lip_gap, mouth_width
from talkinghead.timebase import FPS

HALF_SHUT = 0.5
"""`z_blink` of a blink that counts: eyes that are less than half as open as the clip's open eyes."""
SHUT = 0.12
"""Opening below which eyes are shut. Measured on real clips: 0.02 to 0.1 in blinks, 0.25 to 0.35 open."""
_BLINK_PERCENTILE, _OPEN_PERCENTILE = 75, 95

ARRAYS = (
    Column("mouth", (2,), "opening and width, cm", np.dtype("<i2"), 1 / 1024),
    Column("eyes", (2,), "opening over width, left and right", np.dtype("<i2"), 1 / 8192),
    Column("blink", (), "1: the eyes are less open than usual", np.dtype("i1"), blank=-1),
    Column("z_blink", (), "0 open .. 1 shut", np.dtype("<i2"), 1 / 16384),
)
SCORES = (
    "mouth_range_cm",  # 95th minus 5th percentile of the mouth's opening, cm: 0.7 to 2.5 in speech, 0 in a still
    "mouth_speed_cm_s",  # mean change of the mouth's opening, cm per second: 2 to 6 in speech
    "blinks_per_s",  # runs of frames with z_blink above 0.5, per second with a face: 0.2 to 1.5
    "eyes_shut_fraction",  # share of the frames with a face in which the mean opening of the eyes is below 0.12
)


@dataclass(frozen=True, kw_only=True)
class MouthSettings:
    """Settings of the column `mouth`."""

    blink_below: float = 0.85
    """Share of the clip's 75th percentile of the eyes' opening below which a frame is a blink."""

    def __post_init__(self) -> None:
        if not 0 < self.blink_below <= 1:
            raise ValueError(f"blink_below is {self.blink_below}, must lie above 0 and be at most 1")


def open_mouth(settings: MouthSettings, fits: Mapping[str, Fit], device: str) -> Callable[[ColumnSample], Derived]:
    """Function that measures mouth and eyes of a sample; nothing has to be loaded."""
    del fits, device

    def measure(sample: ColumnSample) -> Derived:
        return mouth_and_eyes(sample.column("mesh"), sample.column("valid"), settings.blink_below)

    return measure


def mouth_and_eyes(mesh: np.ndarray, valid: np.ndarray, blink_below: float) -> Derived:
    """Arrays and scores of a clip.

    Args:
        mesh: `[F, 468, 3]` cm, NaN in frames without a face.
        valid: `[F]`, frames with a face.
        blink_below: Share of the 75th percentile of the eyes' opening below which a frame is a blink.
    """
    valid = valid.astype(bool)
    mesh = mesh.astype(np.float64)
    mouth = np.stack([lip_gap(mesh), mouth_width(mesh)], axis=-1)
    eyes = np.stack([eye_opening(mesh, LEFT_EYE), eye_opening(mesh, RIGHT_EYE)], axis=-1)

    # Relative to the clip: how open these eyes are when they are open.
    opening = eyes.mean(axis=-1)
    blink, z_blink = np.full(len(valid), -1, np.int8), np.full(len(valid), np.nan)
    if valid.any():
        usual, widest = np.percentile(opening[valid], (_BLINK_PERCENTILE, _OPEN_PERCENTILE))
        blink[valid] = opening[valid] < blink_below * usual
        with np.errstate(divide="ignore", invalid="ignore"):  # as in `eye_opening`
            z_blink[valid] = 1 - np.clip(opening[valid] / widest, 0, 1)

    arrays = {"mouth": mouth, "eyes": eyes, "blink": blink, "z_blink": z_blink}
    return Derived(arrays=arrays, scores=_scores(mouth[:, 0], opening, z_blink, valid))


def eye_opening(mesh: np.ndarray, eye: tuple[int, ...]) -> np.ndarray:
    """Mean distance of the lids over the width of one eye: about 0.3 open, below 0.1 shut.

    Args:
        mesh: `[F, 468, 3]`; NaN stays NaN.
        eye: Border of the eye, once around: outer corner, upper lid, inner corner, lower lid.

    Returns:
        `[F]`.
    """
    # Two places of the upper lid, each with the place of the lower lid below it.
    outer, high_outer, high_inner, inner, low_inner, low_outer = (mesh[:, eye[k]] for k in (0, 3, 5, 8, 11, 13))
    height = np.linalg.norm(high_outer - low_outer, axis=-1) + np.linalg.norm(high_inner - low_inner, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # an eye without width is refused when it is stored
        return height / (2 * np.linalg.norm(outer - inner, axis=-1))


def _scores(
    mouth_opening: np.ndarray, eye_openings: np.ndarray, z_blink: np.ndarray, valid: np.ndarray
) -> dict[str, float | None]:
    """Scores of a clip, each from one number per frame, `[F]`; None where no frame has a face."""
    if not valid.any():
        return dict.fromkeys(SCORES)
    low, high = np.percentile(mouth_opening[valid], (5, 95))
    changes = np.abs(np.diff(mouth_opening))[valid[1:] & valid[:-1]]
    half_shut = np.concatenate(([False], z_blink > HALF_SHUT))  # NaN compares false
    blinks = np.count_nonzero(half_shut[1:] & ~half_shut[:-1])
    return {
        "mouth_range_cm": float(high - low),
        "mouth_speed_cm_s": float(changes.mean() * FPS) if len(changes) else None,
        "blinks_per_s": float(blinks * FPS / np.count_nonzero(valid)),
        "eyes_shut_fraction": float(np.mean(eye_openings[valid] < SHUT)),
    }


MOUTH = DerivedColumn(
    name="mouth",
    version=1,
    arrays=ARRAYS,
    scores=SCORES,
    needs=("mesh", "valid"),
    settings=MouthSettings,
    provenance=lambda settings: {},
    open=open_mouth,
    frame_seconds=lambda settings: 0.01,
)
