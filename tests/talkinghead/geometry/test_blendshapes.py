"""The blendshapes are MediaPipe's, and each belongs to one part of an expression."""

from __future__ import annotations

from talkinghead.geometry.blendshapes import NAMES, PARTS, columns


def test_every_blendshape_is_in_one_part() -> None:
    assert sorted(index for part in PARTS.values() for index in part) == list(range(1, 52))
    assert [NAMES[index] for index in columns("jaw")] == ["jawForward", "jawLeft", "jawOpen", "jawRight"]


def test_blendshape_names_are_mediapipes() -> None:
    from mediapipe.tasks.python.vision.face_landmarker import Blendshapes

    theirs = [blendshape.name.replace("_", "").lower() for blendshape in Blendshapes]
    assert [name.strip("_").lower() for name in NAMES] == theirs
