"""The video of a dubbing as it is used: whose face, how long, in which order, and which frame is the portrait."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from infer.dubbing.face_track import FaceFollower, FramedFace, framed
from infer.dubbing.footage import Footage
from infer.dubbing.request import DubRequest
from infer.faces import QUARTERS, upright_turn
from infer.memory_limit import GIGABYTE, memory_limit
from infer.portrait_checks import warn_of_portrait
from ingest.settings import CutSettings
from ingest.shots import CutDetector
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Portrait
from talkinghead.media.frame_clock import gap_between
from talkinghead.media.talking_video import check_video_size
from talkinghead.motion.resampling import tile
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS

log = logging.getLogger(__name__)

LONGEST_S = 20 * 60.0
"""Longest video that is dubbed where no length is named, seconds: landmarks and meshes of a gigabyte."""
LARGEST_SIDE = 1920
"""Longest side of the frames in which the face is searched for, pixels; larger frames are reduced."""
_READING_BYTES, _FRAME_BYTES = 4 * GIGABYTE, 40_000
_TURN_FRAMES, _TURN_EVERY = 25, 6  # frames of a video that seems to be turned, and the step between those looked at
_FOLLOW = "follow the face"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The video's face, and how long it is shown."""

    track: FramedFace
    degrees: int
    """Turn in degrees clockwise that puts the face upright."""
    length: int
    """Frames of the video that are used."""
    count: int
    """Frames of the result."""
    reference: int
    """Frame that serves as the portrait."""
    portrait: Portrait
    """The portrait in it: the box of that frame, at rest."""
    size: tuple[int, int]
    """Width and height of the result in pixels: the video's, not turned, even."""

    @property
    def frames(self) -> np.ndarray:
        """Frame of the video for each frame of the result, `[count]`."""
        return tile(np.arange(self.length), self.count)


def read_scene(request: DubRequest, wanted: int, model: FaceModel, *, aspect: float, progress: Progress) -> Scene:
    """Follow the video's face for as long as the speech lasts, and decide how long the result is.

    Args:
        request: Options of the command.
        wanted: Frames that the speech lasts.
        model: Face model.
        aspect: Width / height of the images that are generated.
        progress: Callback for the progress.

    Raises:
        ValueError: The video cannot be read or is too long, shows no face, or the one that is wanted is not in it.
    """
    if wanted > LONGEST_S * FPS and request.limit_seconds is None:
        raise ValueError(
            f"the audio {request.audio} is longer than {LONGEST_S:.0f} s, the most that is dubbed at once: give"
            " --limit-seconds with the length that is wanted, or cut it"
        )
    with memory_limit(f"the video {request.video}", _READING_BYTES + wanted * _FRAME_BYTES):
        with Footage(request.video) as footage:
            for line in footage.notes():
                log.warning("warning: the video %s: %s", request.video, line)
            size = even_size(footage.size)
            check_video_size(*size)
            degrees = _upright_turn(footage, model)
        with Footage(request.video, degrees=degrees) as footage:
            if degrees:
                log.warning("warning: the face in %s is %s: it is dubbed as it lies", request.video, QUARTERS[degrees])
            follower = FaceFollower(model, request.face, str(request.video))
            cuts = _follow(follower, footage, wanted, progress)
            face = follower.found()
            width, height = footage.size
            track = framed(face, model, width=width, height=height, aspect=aspect, cuts=cuts)
            reference = _reference(request, track)
            portrait = track.portrait(reference, footage.image(reference))
    warn_of_portrait(request.video, replace(portrait, mesh=track.motion.meshes()[reference]), model, keeps_mouth=False)
    length = len(face)
    if missing := int((~face.valid).sum()):
        log.warning(
            "warning: the face is not found in %d of %d frames of %s: these stay as they are",
            missing,
            length,
            request.video,
        )
    return Scene(
        track=track,
        degrees=degrees,
        length=length,
        count=_count(request, length, wanted),
        reference=reference,
        portrait=portrait,
        size=size,
    )


def _follow(follower: FaceFollower, footage: Footage, wanted: int, progress: Progress) -> list[int]:
    """Show the frames to a follower; returns the first frames of further shots."""
    width, height = footage.size
    shrink = min(1.0, LARGEST_SIDE / max(width, height))
    detector, before = CutDetector(CutSettings()), None
    for number, frame in enumerate(footage.shown(0, wanted)):
        progress(_FOLLOW, number, wanted)
        image = footage.upright(frame, shrink)
        follower.add(image)
        # Where frames are missing or repeated, what moves has moved farther: that is no cut.
        if detector.add(image, 1.0 if before is None else gap_between(before, frame), damaged=frame.damaged):
            before = frame
    return detector.cuts()


def _upright_turn(footage: Footage, model: FaceModel) -> int:
    """Turn in degrees clockwise that puts the video's face upright; 0 where none does."""
    looked = [footage.image(0)]
    # Most videos show an upright face at once; in the others a few more frames tell more surely.
    if upright_turn(looked, model) == 0:
        return 0
    return upright_turn(list(footage.images(0, _TURN_FRAMES))[::_TURN_EVERY], model) or 0


def _reference(request: DubRequest, track: FramedFace) -> int:
    """Frame that serves as the portrait; raises `ValueError` where the one that was asked for shows no face."""
    asked = request.reference_frame
    if asked is None:
        return track.reference_frame()
    if asked >= len(track.crops) or not track.face.valid[asked]:
        raise ValueError(
            f"--reference-frame {asked}: the face is not in that frame of {request.video}, of which"
            f" {len(track.crops)} are used; the best one is {track.reference_frame()}"
        )
    return asked


def _count(request: DubRequest, length: int, wanted: int) -> int:
    """Frames of the result; says what is cut or repeated."""
    if length >= wanted:
        return wanted
    away = (wanted - length) / FPS
    if request.match == "loop":
        log.warning("warning: the speech is %.2f s longer than the video, which is played to and fro", away)
        return wanted
    log.warning(
        "warning: the speech is %.2f s longer than the video, and is cut where it ends; --match loop plays the video"
        " to and fro",
        away,
    )
    return length


def even_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height without the last row or column where they are odd: H.264 needs even sides."""
    return size[0] // 2 * 2, size[1] // 2 * 2
