"""Looks at the image turned by 180°: which way is up is told by the better score, and only by a sure one."""

from __future__ import annotations

import numpy as np
import pytest

from ingest.upside_down import Look, is_upside_down, look, upside_down_share


class Scripted:
    """A detector whose score depends on whether the bright row of the image is on top."""

    class Face:
        box = (0.2, 0.2, 0.8, 0.8)

        def __init__(self, score: float) -> None:
            self.score = score

    def __init__(self, as_it_is: float, turned: float) -> None:
        self._scores = as_it_is, turned

    def detect(self, frame: np.ndarray, *, small_faces: bool = False) -> list[Scripted.Face]:
        assert frame.flags.c_contiguous
        score = self._scores[0] if frame[0].mean() > frame[-1].mean() else self._scores[1]
        return [self.Face(score)] if score else []


IMAGE = np.repeat(np.linspace(250, 5, 80).astype(np.uint8)[:, None, None], 60, axis=1).repeat(3, axis=2)
BOX = (20.0, 30.0, 40.0, 50.0)


@pytest.mark.parametrize(
    ("as_it_is", "turned", "expected"),
    [
        (0.95, 0.75, False),
        (0.6, 0.93, True),
        (0.84, 0.93, True),
        (0.9, 0.92, False),
        (0.0, 0.69, False),
        (0.5, 0.7, False),
    ],
)
@pytest.mark.parametrize("boxes", [[BOX], []])
def test_the_way_up_with_the_better_score(as_it_is: float, turned: float, expected: bool, boxes: list) -> None:
    found = look(Scripted(as_it_is, turned), 25, IMAGE, boxes)
    assert found == Look(25, as_it_is if boxes else 0.0, turned)
    if boxes:
        assert found.is_upside_down == expected


def test_only_looks_at_the_piece_count() -> None:
    looks = [Look(0, 0.95, 0.6), Look(25, 0.6, 0.95), Look(50, 0.6, 0.95), Look(75, 0.95, 0.0)]
    assert upside_down_share(looks, 0, 100) == 0.5 and not is_upside_down(0.5)
    assert upside_down_share(looks, 25, 75) == 1.0 and is_upside_down(1.0)
    assert upside_down_share(looks, 80, 100) == 0.0, "no look, no verdict"


def test_a_face_at_the_border_is_looked_at_inside_the_image() -> None:
    assert look(Scripted(0.9, 0.6), 0, IMAGE, [(-10.0, -10.0, 3.0, 3.0), (58.0, 78.0, 70.0, 90.0)]).frame == 0
