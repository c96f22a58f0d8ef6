"""What is measured: pairs as `infer animate` runs them, their baselines, and the truth; each shows a clip in one take.

Baselines say what a number is worth:

    still               the portrait's face as it is, shown by the renderer: what not moving costs or gains
    mean motion         the mean expression of the training clips on the portrait's face, shown by the renderer: the
                        best guess of a driver that does not attend to the sound
    shuffled sound      the pair, driven by another clip's sound or video: plausible motion at the wrong time
    copied reference    the reference frame repeated, without any network: what the renderer's images are worth
    re-encoded truth    the true frames through the encoder and decoder of the output video, and their landmarks found
                        again: the best that a video file can be, and how far that alone moves a metric
    truth               the true frames and the true motion: perfect by construction
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from annotate.landmarks import LandmarkEngine
from infer.drivers.chosen import chosen_driving
from infer.drivers.driving import Driving
from infer.drivers.still import StillDriving
from infer.evaluation.given_motion import GivenMotionDriving
from infer.evaluation.held_out_clip import DrivingFiles, HeldOutClip, motion_of
from infer.evaluation.pair_choice import PairChoice, RenderSettings
from infer.metrics.face_reading import enlarged
from infer.renderers.chosen import chosen_rendering
from infer.request import AnimateRequest
from talkinghead.face.model import FaceModel
from talkinghead.geometry.canonical import CanonicalFace
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.media.talking_video import encode_talking_video
from talkinghead.media.video_source import VideoSource
from talkinghead.motion.at_rest import at_rest
from talkinghead.motion.gaps import bridged
from talkinghead.motion.motion import Motion
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import pair
from talkinghead.pipelines.still_driver import constant_motion
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS

Role = Literal["pair", "baseline", "truth", "probe"]
"""What a subject is in the table; a probe is measured for a noise floor alone."""
STILL, MEAN, SHUFFLED = "still", "mean motion", "shuffled sound"
"""Names of the baselines that go with a renderer or a pair, before its name."""
SHUFFLED_VIDEO = "shuffled video"
"""Name of the shuffled baseline of a driver that takes a video."""
COPIED, REENCODED, TRUTH = "copied reference", "re-encoded truth", "truth"
REENCODED_REFERENCE = "re-encoded reference"
_ALONE = "without networks"  # group of the subjects that have neither driver nor renderer
"""Names of what has neither."""


@dataclass(frozen=True, kw_only=True)
class Take:
    """What a subject shows of a clip of F frames."""

    video: np.ndarray
    """Frames `[F, H, W, 3]` RGB uint8."""
    photographic: bool = True
    """Whether the frames show a face as a camera does; drawn landmarks do not compare with true frames."""
    motion: Motion | None
    """Motion that the frames show, in the portrait's camera; None where there is none, or it has no meshes."""
    repeated: bool = False
    """Whether all frames are one image."""


class Subject(Protocol):
    """One column of the table."""

    @property
    def name(self) -> str:
        """Name in the table."""
        ...

    @property
    def role(self) -> Role:
        """What it is there for."""
        ...

    @property
    def group(self) -> str:
        """What it shares its weights with: subjects of one group are taken one after the other, clip by clip."""
        ...

    @property
    def seeded(self) -> bool:
        """Whether a seed changes it; else it is taken once."""
        ...

    @property
    def of(self) -> PairChoice | None:
        """Pair that it is, or whose renderer or driver it shows; None: it has none."""
        ...

    def take(self, clip: HeldOutClip, seed: int) -> Take:
        """What it shows of a clip; raises `ValueError` where it cannot."""
        ...


@dataclass(frozen=True, kw_only=True)
class Studio:
    """What rendering needs next to a pair."""

    model: FaceModel
    settings: RenderSettings
    device: str
    """Device by its name in PyTorch."""
    progress: Progress
    files: Callable[[HeldOutClip, PairChoice, int | None], DrivingFiles]
    """(clip, pair, seed by which another clip drives it, None: its own sound) → what drives."""


class RenderedSubject:
    """A pair, or a baseline that a pair's renderer shows.

    Args:
        kind: None for the pair itself, else `STILL`, `MEAN` or `SHUFFLED`.
        choice: The pair.
        studio: What rendering needs.
        mean_offset: Mean of the training clips' meshes less their neutral one, `[468, 3]` cm, for `MEAN`.
    """

    seeded = True

    def __init__(
        self, kind: str | None, choice: PairChoice, studio: Studio, mean_offset: np.ndarray | None = None
    ) -> None:
        assert (kind == MEAN) == (mean_offset is not None)
        whose = choice.label if kind in (None, SHUFFLED) else choice.renderer_label
        shown = SHUFFLED_VIDEO if kind == SHUFFLED and choice.needs_images else kind
        self.name = whose if kind is None else f"{shown}: {whose}"
        self.role: Role = "pair" if kind is None else "baseline"
        self.group = f"renderer {choice.renderer_label}"
        self.of: PairChoice | None = choice
        self.kind = kind
        self._choice = choice
        self._studio = studio
        self._mean_offset = mean_offset

    def take(self, clip: HeldOutClip, seed: int) -> Take:
        """The frames and the motion that the renderer was given; the phases are those of `infer.animate.animate`."""
        studio, choice = self._studio, self._choice
        files = studio.files(clip, choice, seed if self.kind == SHUFFLED else None)
        request = choice.request(files, studio.settings, seed=seed, name=clip.key)
        request.check()
        driving, rendering = self._driving(clip, files, request), chosen_rendering(request)

        # 1. Inputs: weights are found, and what drives is read.
        driving.find(rendering.find())
        rendering.meet(driving.gives)
        pairing = pair(driving, rendering, fps=FPS)
        stage = rendering.stage(clip.portrait, studio.model)
        driving.read(stage, studio.model, studio.progress, clip.num_frames / FPS)
        # 2. Networks, which stay loaded from clip to clip.
        rendering.load()
        # 3. Motion, which is written down on its way to the renderer; 4. frames.
        motion = driving.move(stage, studio.progress, fps=pairing.fps, device=studio.device)
        motion = rendering.begin(pairing.convert(motion), pairing, studio.progress)
        seen: list[Motion] = []
        frames = rendering.frames(_written_down(motion, seen), studio.progress)
        video = _filled(frames, clip.num_frames, self.name)
        whole = Motion.join(seen)
        return Take(
            video=video,
            # A renderer that writes down the arrays of the motion draws it.
            photographic=not rendering.keeps_arrays,
            motion=None if whole.mesh is None else whole,
        )

    def _driving(self, clip: HeldOutClip, files: DrivingFiles, request: AnimateRequest) -> Driving:
        if self.kind == STILL:
            return StillDriving(files.speech)
        if self.kind == MEAN:
            assert self._mean_offset is not None
            face = at_rest(clip.portrait.mesh, clip.portrait.face.blendshapes, "all") + self._mean_offset
            return GivenMotionDriving(constant_motion(face, clip.portrait, clip.num_frames, FPS))
        if self._choice.driver == GivenMotionDriving.name:
            return GivenMotionDriving(clip.motion)
        return chosen_driving(request)


class CopiedReference:
    """The reference frame in every frame."""

    name, group, seeded, of = COPIED, _ALONE, False, None
    role: Role = "baseline"

    def take(self, clip: HeldOutClip, seed: int) -> Take:
        """The frame, and a motion that does not move."""
        del seed
        return Take(
            video=np.broadcast_to(clip.driven.reference, clip.truth.shape),
            motion=constant_motion(clip.portrait.mesh, clip.portrait, clip.num_frames, FPS),
            repeated=True,
        )


class ReencodedTruth:
    """The true frames through the output video's codec, with the motion that its images show.

    Args:
        engine: Landmark engine.
        face: Canonical face of its model.
        scratch: Folder for the video.
    """

    name, group, seeded, of = REENCODED, _ALONE, False, None
    role: Role = "baseline"

    def __init__(self, engine: LandmarkEngine, face: CanonicalFace, scratch: Path) -> None:
        self._engine, self._face, self._scratch = engine, face, scratch

    def take(self, clip: HeldOutClip, seed: int) -> Take:
        """The decoded frames, and the motion of the landmarks that are found in them."""
        del seed
        video = reencoded(clip.truth, self._scratch)
        found = self._engine(enlarged(frame) for frame in video)
        motion = None
        if found.valid.any():
            points = np.where(np.isfinite(found.points), found.points, np.float32(0.0))
            points[~found.valid] = points[np.flatnonzero(found.valid)[0]]  # a stand-in that is interpolated over
            motion = bridged(motion_of(points[:, :NUM_VERTICES], clip.portrait, self._face, valid=found.valid))
        return Take(video=video, motion=motion)


class ReencodedReference:
    """The reference frame in every frame, through the output video's codec: how far that moves PSNR.

    Args:
        scratch: Folder for the video.
    """

    name, group, seeded, of = REENCODED_REFERENCE, _ALONE, False, None
    role: Role = "probe"

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def take(self, clip: HeldOutClip, seed: int) -> Take:
        """The decoded frames."""
        del seed
        video = reencoded(np.broadcast_to(clip.driven.reference, clip.truth.shape), self._scratch)
        return Take(video=video, motion=None)


class Truth:
    """The clip itself."""

    name, group, seeded, of = TRUTH, _ALONE, False, None
    role: Role = "truth"

    def take(self, clip: HeldOutClip, seed: int) -> Take:
        """True frames and true motion."""
        del seed
        return Take(video=clip.truth, motion=clip.motion)


def reencoded(video: np.ndarray, scratch: Path) -> np.ndarray:
    """Frames `[F, H, W, 3]` RGB uint8 through the encoder of output videos and the decoder, in the same form."""
    path = scratch / "reencoded.mp4"
    frames, height, width = video.shape[:3]
    encode_talking_video(path, iter(video), width=width, height=height, fps=FPS)
    with VideoSource(path) as source:
        found = _filled((frame.image for frame in source.frames()), frames, REENCODED)
    path.unlink()
    return found


def subjects_of(
    choices: list[PairChoice],
    studio: Studio,
    *,
    mean_offset: np.ndarray | None,
    shuffles: bool,
    engine: LandmarkEngine,
    face: CanonicalFace,
    scratch: Path,
) -> list[Subject]:
    """All subjects: pairs, their shuffled forms, the still and mean motion of each renderer, and what needs neither.

    Args:
        choices: Pairs.
        studio: What rendering needs.
        mean_offset: Mean expression of the training clips, `[468, 3]` cm; None: not known.
        shuffles: Whether there are two clips, so that one may drive another.
        engine: Landmark engine.
        face: Canonical face of its model.
        scratch: Folder for scratch files.
    """
    renderers = {choice.renderer_label: choice for choice in reversed(choices)}
    found: list[Subject] = [RenderedSubject(None, choice, studio) for choice in choices]
    if shuffles:
        found += [RenderedSubject(SHUFFLED, choice, studio) for choice in choices if choice.follows]
    for choice in reversed(renderers.values()):
        found.append(RenderedSubject(STILL, choice, studio))
        if mean_offset is not None:
            found.append(RenderedSubject(MEAN, choice, studio, mean_offset))
    return [*found, CopiedReference(), ReencodedTruth(engine, face, scratch), ReencodedReference(scratch), Truth()]


def _written_down(motion: MotionStream, seen: list[Motion]) -> MotionStream:
    """The motion, whose parts are also put into a list as they pass."""

    def note(part: Motion, first: int) -> Motion:
        del first
        seen.append(part)
        return part

    return motion.each(note)


def _filled(frames: Iterator[np.ndarray], count: int, name: str) -> np.ndarray:
    """Frames as one array; `ValueError` where there are more or fewer than `count`."""
    video: np.ndarray | None = None
    done = 0
    for done, frame in enumerate(frames, 1):
        if video is None:
            video = np.empty((count, *frame.shape), np.uint8)
        if done <= count:
            video[done - 1] = frame
    if video is None or done != count:
        raise ValueError(f"{name} shows {done} frames of a clip of {count}")
    return video
