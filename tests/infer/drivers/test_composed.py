"""A face moved part by part: each part is its driver's, lengths are the mouth's, and facts say whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.drivers.composed import ComposedDriving
from talkinghead.geometry.face_regions import BROWS, EYES, LOWER_FACE
from talkinghead.motion.motion import Motion
from talkinghead.motion.resampling import resampled
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import HEAD, MESHES, MotionKind
from tests.support.drawn_portrait import drawn_portrait
from tests.support.motions import FACE, a_motion

UPPER = [*EYES, *BROWS]


class Given:
    """A driving whose motion is there already; it notes which methods are called."""

    recording = None

    def __init__(self, name: str, motion: Motion, *, part: int = 7, space: str = MESHES) -> None:
        self.name, self.motion, self.called = name, motion, list[str]()
        self.files = [Path(f"{name}.file")]
        self.sound: Path | None = Path(f"{name}.wav")
        self.gives = MotionKind(space=space)
        self.facts = {"decided": name}
        self._part = part

    def find(self, pipeline: Path | None) -> None:
        self.called.append("find")

    def read(self, portrait: Any, model: Any, progress: Any, seconds: float | None) -> None:
        self.called.append("read")

    def describe(self) -> dict[str, Any]:
        return {"input": {"sha256": self.name}}

    def move(self, portrait: Any, progress: Any, *, fps: float, device: str) -> MotionStream:
        return MotionStream.of(resampled(self.motion, fps, round(len(self.motion) * fps / self.motion.fps)), self._part)

    def provenance(self) -> dict[str, Any]:
        return {self.name: {"sha256": self.name}}


def moved(driving: ComposedDriving, fps: float = 25.0) -> Motion:
    return driving.move(drawn_portrait(640, 480), lambda *_: None, fps=fps, device="cpu").whole()  # pyright: ignore[reportArgumentType]


@given(frames=st.integers(1, 40), part=st.integers(1, 15), seed=st.integers(0, 20))
def test_put_together_from_itself_it_is_itself(frames: int, part: int, seed: int) -> None:
    """However its parts are cut, bit for bit."""
    motion = a_motion(frames, seed)
    driving = ComposedDriving(
        mouth=Given("a", motion, part=part), pose=Given("b", motion), eyes=Given("c", motion, part=3)
    )
    found = moved(driving)
    np.testing.assert_array_equal(found.meshes(), motion.meshes())
    np.testing.assert_array_equal(found.pose_matrix, motion.pose_matrix)


def test_each_part_is_its_drivers() -> None:
    """Longer and shorter ones, of another face at rest too: the eyes are put onto the mouth's."""
    mouth, pose, eyes = a_motion(30, 1), a_motion(12, 2), a_motion(50, 3)
    shifted = np.float32(0.25)
    other = Motion(
        pose_matrix=eyes.pose_matrix,
        neutral=FACE + shifted,
        mesh=eyes.meshes() + shifted,
        valid=eyes.valid,
        fps=25.0,
        width=640,
        height=480,
    )
    found = moved(ComposedDriving(mouth=Given("a", mouth), pose=Given("b", pose), eyes=Given("c", other)))
    assert len(found) == 30 and np.array_equal(found.neutral, FACE)
    np.testing.assert_array_equal(found.meshes()[:, list(LOWER_FACE)], mouth.meshes()[:, list(LOWER_FACE)])
    np.testing.assert_allclose(found.meshes()[:, UPPER], eyes.meshes()[:30, UPPER], atol=1e-5)
    np.testing.assert_allclose(found.pose_matrix[:12], pose.pose_matrix, atol=1e-12)
    np.testing.assert_allclose(found.pose_matrix[12:22], pose.pose_matrix[-2::-1][:10], atol=1e-12)  # to and fro
    assert np.abs(np.diff(found.pose, axis=0)).max() <= np.abs(np.diff(pose.pose, axis=0)).max() + 1e-9


def test_facts_say_whose_they_are() -> None:
    parts = {name: Given(name, a_motion(4)) for name in ("mouth", "pose", "eyes")}
    driving = ComposedDriving(**parts)
    assert driving.name == "mouth, pose: pose, eyes: eyes" and driving.sound == Path("mouth.wav")
    assert driving.files == [Path(f"{name}.file") for name in parts]
    driving.find(None)
    driving.read(drawn_portrait(), None, None, None)  # pyright: ignore[reportArgumentType]
    assert all(part.called == ["find", "read"] for part in parts.values())
    assert driving.facts == {"decided": "mouth", "pose: decided": "pose", "eyes: decided": "eyes"}
    assert set(driving.describe()) == {"input", "pose: input", "eyes: input"}
    assert set(driving.provenance()) == set(parts) and parts["mouth"].facts == {"decided": "mouth"}


def test_a_head_alone_gives_a_pose_but_no_eyes() -> None:
    head = Given("nod", a_motion(4), space=HEAD)
    ComposedDriving(mouth=Given("a", a_motion(4)), pose=head, eyes=None)
    for mouth, eyes in ((Given("a", a_motion(4)), head), (head, Given("a", a_motion(4)))):
        with pytest.raises(ValueError, match="put together as meshes, but nod gives head"):
            ComposedDriving(mouth=mouth, pose=None, eyes=eyes)
