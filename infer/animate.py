"""`infer animate` and its short forms: a portrait, what drives it and what shows it, put together into a video.

The phases, in memory that the video's length does not affect:

    1. inputs     check and read everything the user gave; no weights are loaded yet
    2. networks   load the renderer, within the memory of the device
    3. motion     the driver begins; its motion comes in parts, is edited, and written down on its way
    4. output     frames are generated and encoded as the parts come; then the companions; then all files are put in
                  place
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infer.drivers.chosen import chosen_driving
from infer.drivers.driving import Driving, edited
from infer.drivers.speech import SpeechDriving
from infer.drivers.video import VideoDriving
from infer.motion_record import MotionRecord
from infer.output_files import animation_companions, check_target, landmark_companions, sidecar, write_video
from infer.portrait import describe_portrait, read_portrait
from infer.portrait_checks import warn_of_portrait
from infer.renderers.chosen import chosen_rendering
from infer.renderers.landmarks import LandmarkRendering
from infer.renderers.lmk2video import Lmk2VideoRendering
from infer.renderers.rendering import Rendering
from infer.request import AnimateRequest, AudioRequest, LandmarkRequest, VideoRequest
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.atomic import check_writable
from talkinghead.media.audio import read_whole_audio
from talkinghead.motion.silence import silence_share
from talkinghead.pipelines.protocols import pair
from talkinghead.runtime.device import choose_device
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)

# A warning is due when the face leaves the image, further than it does in the portrait, in more than this share of the
# frames.
_MANY_FRAMES = 0.1

Request = AnimateRequest | AudioRequest | LandmarkRequest | VideoRequest


def make_audio_video(request: AudioRequest) -> Path:
    """Animate a portrait by speech: `infer audio`. Returns and raises as `animate`."""
    request.check()
    driving = SpeechDriving(request, request.weights, renders=True)
    return animate("audio", request, driving, Lmk2VideoRendering(request, speaks=True))


def make_driven_video(request: VideoRequest) -> Path:
    """Animate a portrait by the face in a video: `infer video`. Returns and raises as `animate`."""
    request.check()
    return animate("video", request, VideoDriving(request), Lmk2VideoRendering(request, speaks=False))


def make_landmark_video(request: LandmarkRequest) -> Path:
    """Draw a portrait's landmarks as speech moves them: `infer landmarks`. Returns and raises as `animate`."""
    request.check()
    driving = SpeechDriving(request, request.weights, renders=False)
    return animate("landmarks", request, driving, LandmarkRendering(request))


def make_animation(request: AnimateRequest) -> Path:
    """Any driver with any renderer: `infer animate`. Returns and raises as `animate`."""
    request.check()
    return animate("animate", request, chosen_driving(request), chosen_rendering(request))


def animate(command: str, request: Request, driving: Driving, rendering: Rendering) -> Path:
    """Animate a portrait and write the video, its companions and its sidecar.

    Everything the user gave is read and checked before weights are loaded. The same request gives the same videos.

    Args:
        command: Name of the command, for the sidecar.
        request: Options of the command, which were checked.
        driving: What moves the portrait's face.
        rendering: What shows it.

    Returns:
        Path of the video.

    Raises:
        ValueError: The request cannot be met; one line that says what is wrong and what to do.
        OSError: The disk is full, or the output's folder cannot be written.
    """
    started = time.monotonic()
    with Progress() as progress:
        # 1. Inputs: a mistake in the request is reported in seconds, not after minutes of loading. First a pair that
        # never fits, for which no file is opened; then names and places: output that would replace an input, missing
        # weights, and whether these weights fit.
        pair(driving, rendering)
        companions = (landmark_companions if rendering.keeps_arrays else animation_companions)(request.output)
        check_target(request.output, companions, request.reference, *driving.files)
        driving.find(rendering.find())
        rendering.meet(driving.gives)
        pairing = pair(driving, rendering, fps=request.fps)
        device = choose_device(request.device)
        # The output's folder is tried now: that it cannot be written must not show up after the frames are made.
        for target in (request.output, *companions):
            check_writable(target)

        # Content: the portrait first, because the driving file is checked against it.
        progress("read inputs", 0, 1)
        model = resolve_face_model()
        portrait = read_portrait(request.reference, model, face=request.face)
        warn_of_portrait(request.reference, portrait, model, keeps_mouth=request.neutralise in (None, "none"))
        stage = rendering.stage(portrait, model)
        driving.read(stage, model, progress, rendering.seconds())
        silences = _silences(request, driving, rendering.seconds())  # whole speech is in memory before networks only

        # 2. Networks, on their device.
        progress("load weights", 0, 1)
        weights = rendering.load()

        # 3. Motion: what follows happens part by part, while frames are made.
        motion = driving.move(stage, progress, fps=pairing.fps, device=device)
        silence = None if silences is None else silences(motion.count, motion.fps)
        motion = motion.each(lambda part, first: edited(part, request, first=first, silence=silence))
        motion = rendering.begin(pairing.convert(motion), pairing, progress)
        count = motion.count

        def describe() -> dict[str, Any]:
            # Called after the last frame: wall times and peak memory are known only then.
            progress("write", 0, 1)
            about = describe_portrait(request.reference, portrait, model.sha256)
            frames = {"frames": count, "fps": pairing.fps, "compat_projection": rendering.compat}
            return sidecar(
                command,
                request,
                pairing=pairing,
                inputs={"reference": about} | driving.describe(),
                weights=weights | driving.provenance(),
                result=driving.facts | frames | rendering.describe(),
                seconds={**progress.seconds, **rendering.estimated, "all": time.monotonic() - started},
                device=device,
            )

        # 4. Output.
        with MotionRecord(
            request.output.parent,
            compat=rendering.compat,
            reference_pose_matrix=stage.pose_matrix,
            own_outside=stage.face.outside,
            arrays=rendering.keeps_arrays,
        ) as record:
            write_video(
                request.output,
                rendering.frames(record.following(motion), progress),
                record,
                fps=pairing.fps,
                size=rendering.size,
                drawn_size=rendering.drawn_size,
                arrays=rendering.keeps_arrays,
                sound=driving.sound,
                describe=describe,
                note=rendering.note,
            )
            _warn_of_motion(record, count)
    return request.output


def _silences(request: Request, driving: Driving, seconds: float | None) -> Callable[[int, float], np.ndarray] | None:
    """Function from number of frames and rate to how far the mouth is shut in each; None where that is not asked."""
    if not request.still_in_silence:
        return None
    from talkinghead.models.speech.pauses import frames_of_speech, speech_probability

    if driving.sound is None:
        raise ValueError("--still-in-silence needs a sound: nothing tells where somebody speaks")
    recording = driving.recording
    samples = read_whole_audio(driving.sound, seconds) if recording is None else recording.samples()
    probability = speech_probability(samples)
    return lambda count, fps: silence_share(frames_of_speech(probability, fps, count), fps)


def _warn_of_motion(record: MotionRecord, count: int) -> None:
    """Warn when the head leaves the image further than it does in the portrait."""
    if record.leaving > _MANY_FRAMES * count:
        log.warning(
            "warning: the face reaches beyond the image in %d of %d frames: a wider crop (--crop none) or less"
            " motion (--pose-gain) keeps it inside",
            record.leaving,
            count,
        )
