"""The 52 blendshape scores of an annotation: their names, and the parts of the face that they belong to.

Convention:
    Column i of `blendshapes [F, 52]` is `NAMES[i]`, in MediaPipe's order: `_neutral`, then ARKit's names (all but
    `tongueOut`) in alphabetical order. Scores lie in 0 .. 1. "Left" and "right" are the subject's.
"""

from __future__ import annotations

# fmt: off
NAMES = (
    "_neutral",
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight",
    "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight",
    "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight",
    "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)
# fmt: on
NUM_BLENDSHAPES = len(NAMES)
assert NUM_BLENDSHAPES == 52

# Kept apart from the mouth, so that an open mouth can be closed without taking a smile away. Raised corners of the
# mouth lift the cheeks, so the squint of the cheeks belongs here.
_SMILE = ("mouthSmile", "mouthDimple", "cheekSquint")


def columns(*prefixes: str) -> tuple[int, ...]:
    """Columns of the scores whose name begins with one of the prefixes."""
    return tuple(index for index, name in enumerate(NAMES) if name.startswith(prefixes))


PARTS: dict[str, tuple[int, ...]] = {
    "mouth": tuple(index for index in columns("mouth", "jaw") if not NAMES[index].startswith(_SMILE)),
    "smile": columns(*_SMILE),
    "brows": columns("brow"),
    "eyes": columns("eyeBlink", "eyeSquint", "eyeWide"),
    "gaze": columns("eyeLook"),
    "cheeks": columns("cheekPuff", "noseSneer"),
}
"""Part of an expression → its columns; every score but `_neutral` is in exactly one."""
