"""A portrait that is driven part by part: mouth, head pose and eyes by different drivers.

The mouth's driver gives frame rate and length, and comes in parts. The others are played to and fro where they are
shorter, and made whole before the first frame: 6 kB a frame for each of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.drivers.driving import Driving
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.motion.compose import compose
from talkinghead.motion.motion import Motion
from talkinghead.motion.resampling import played
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import MESHES, MotionKind
from talkinghead.runtime.progress import Progress

if TYPE_CHECKING:
    from talkinghead.models.speech.recording import Recording


class ComposedDriving:
    """Up to three drivings as one; a `Driving`.

    Args:
        mouth: Driving of mouth, jaw and lower cheeks, and of what is not given.
        pose: Driving of the head's pose; None: the mouth's.
        eyes: Driving of eyes, brows and the rest of the face; None: the mouth's.

    Raises:
        ValueError: Mouth and eyes cannot be put into one face.
    """

    def __init__(self, *, mouth: Driving, pose: Driving | None, eyes: Driving | None) -> None:
        for driving in () if eyes is None else (mouth, eyes):
            if (space := driving.gives.space) != MESHES:
                raise ValueError(
                    f"mouth and eyes of two drivers are put together as meshes, but {driving.name} gives {space}"
                )
        self._mouth = mouth
        self._others = {part: driving for part, driving in (("pose", pose), ("eyes", eyes)) if driving is not None}
        self.name = ", ".join([mouth.name, *(f"{part}: {driving.name}" for part, driving in self._others.items())])
        self.files = [file for driving in self._all() for file in driving.files]

    @property
    def gives(self) -> MotionKind:
        """What the mouth's driver gives."""
        return self._mouth.gives

    def find(self, pipeline: Path | None) -> None:
        """Find the files and weights of all."""
        for driving in self._all():
            driving.find(pipeline)

    def read(self, portrait: Portrait, model: FaceModel, progress: Progress, seconds: float | None) -> None:
        """Read the files of all."""
        for driving in self._all():
            driving.read(portrait, model, progress, seconds)

    @property
    def sound(self) -> Path | None:
        """File whose sound goes into the video: the mouth's."""
        return self._mouth.sound

    @property
    def recording(self) -> Recording | None:
        """That sound: the mouth's."""
        return self._mouth.recording

    def describe(self) -> dict[str, Any]:
        """Facts about all inputs: the mouth's by their names, the others by part and name."""
        found = self._mouth.describe()
        for part, driving in self._others.items():
            found |= {f"{part}: {name}": about for name, about in driving.describe().items()}
        return found

    def move(self, portrait: Portrait, progress: Progress, *, fps: float, device: str) -> MotionStream:
        """Motion of the portrait's face, put together part by part."""
        mouth = self._mouth.move(portrait, progress, fps=fps, device=device)
        others = {
            part: played(driving.move(portrait, progress, fps=fps, device=device).whole(), fps, mouth.count)
            for part, driving in self._others.items()
        }

        def parts() -> Iterator[Motion]:
            first = 0
            for part in mouth:
                given = {name: whole.part(first, len(part)) for name, whole in others.items()}
                if "eyes" in given:
                    given["eyes"] = _on_the_face_of(given["eyes"], part)
                yield compose(mouth=part, **given)
                first += len(part)

        return MotionStream(parts(), count=mouth.count, fps=mouth.fps)

    @property
    def facts(self) -> dict[str, Any]:
        """What all of them decided."""
        found = dict(self._mouth.facts)
        for part, driving in self._others.items():
            found |= {f"{part}: {name}": value for name, value in driving.facts.items()}
        return found

    def provenance(self) -> dict[str, Any]:
        """Weights of all of them."""
        return {name: about for driving in self._all() for name, about in driving.provenance().items()}

    def _all(self) -> list[Driving]:
        return [self._mouth, *self._others.values()]


def _on_the_face_of(motion: Motion, mouth: Motion) -> Motion:
    """The motion from another face at rest: both are the portrait's, but for what was taken out of its expression."""
    mesh = motion.meshes() + (mouth.neutral - motion.neutral)
    return replace(motion, mesh=mesh, neutral=mouth.neutral, coefficients=None)
