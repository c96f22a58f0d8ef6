"""What can be measured of a portrait's face that makes it animate badly, and the warnings about it."""

from __future__ import annotations

import logging
from pathlib import Path

from infer.faces import lean_deg, steadiness
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.geometry.face_regions import lip_gap
from talkinghead.geometry.pose import pose_from_matrix

log = logging.getLogger(__name__)

MANY_OUTSIDE = 0.02
"""Share of landmarks beyond the image's border above which a face counts as cut."""
SMALLEST_PX = 64
"""Shorter side of the box around a face below which it counts as small, pixels."""
MOST_TURNED_DEG = 40.0
"""Angle by which a face may look aside, up or down, or lean, degrees."""
OPEN_MOUTH_CM = 0.4
"""Gap of the lips from which on a mouth counts as open. Closed mouths of portraits have 0.02 to 0.1, speakers at rest
0.03 to 0.2 (one of twelve 0.43), lips that are parted in a smile 0.5 to 1.3."""


def warn_of_portrait(path: Path, portrait: Portrait, model: FaceModel, *, keeps_mouth: bool) -> None:
    """Warn of a portrait that can be animated, but not well.

    Args:
        path: Image file, for the text.
        portrait: Whole portrait.
        model: Face model that found its face.
        keeps_mouth: Whether the mouth stays as it is in the image (`--neutralise none`).
    """
    if portrait.face.outside > MANY_OUTSIDE:
        log.warning(
            "warning: the face in %s is cut by the image's border (%.0f %% of its landmarks lie outside, where they"
            " are guessed): a portrait with the whole face moves better",
            path,
            100 * portrait.face.outside,
        )
    x0, y0, x1, y1 = portrait.face_px
    if min(x1 - x0, y1 - y0) < SMALLEST_PX:
        log.warning(
            "warning: the face in %s has only %.0fx%.0f pixels: from %d on it becomes sharp; take a larger image",
            path,
            x1 - x0,
            y1 - y0,
            SMALLEST_PX,
        )

    # Angles: of a profile half the landmarks are guessed, so how steady they are tells nothing more.
    pitch, yaw = (float(angle) for angle in pose_from_matrix(portrait.pose_matrix[None])[0, :2])
    lean = lean_deg(portrait.face, portrait.width, portrait.height)
    if abs(lean) > MOST_TURNED_DEG:
        log.warning(
            "warning: the face in %s leans by %.0f°, and is animated as it leans: turn the image so that it is upright",
            path,
            abs(lean),
        )
    if max(abs(yaw), abs(pitch)) > MOST_TURNED_DEG:
        log.warning(
            "warning: the face in %s is turned away by %.0f°, and what it hides is guessed: a portrait from the front"
            " moves better",
            path,
            max(abs(yaw), abs(pitch)),
        )
        return

    # What is no face, or is hidden.
    seen = steadiness(portrait.image, portrait.face, model)
    if not seen.steady:
        log.warning(
            "warning: the face in %s may be no human one (an animal's), blurred or hidden: its landmarks depend on how"
            " one looks at it, so it is moved wrongly; take a portrait with a clear human face",
            path,
        )
    elif seen.covered_mouth:
        log.warning(
            "warning: the mouth in %s seems to be covered (a hand, a mask, a microphone): it is moved where it is"
            " guessed; take a portrait that shows it",
            path,
        )
    elif keeps_mouth and (gap := float(lip_gap(portrait.mesh))) > OPEN_MOUTH_CM:
        log.warning(
            "warning: the mouth in %s is open (%.1f cm between the lips): it will not close further than that; give"
            " --neutralise mouth, or take a portrait with a closed mouth",
            path,
            gap,
        )
