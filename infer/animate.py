"""`infer audio` and `infer video`: animate a portrait and write the video, in memory that its length does not affect.

The phases of `animate`:

    1. inputs     check and read everything the user gave; no weights are loaded yet
    2. networks   load the image pipeline, within the memory of the device
    3. motion     the moving face, from speech or from a driving video (`Driving`)
    4. estimate   measure the device and report how long the video will take
    5. output     generate frames while they are encoded; then the sidecar; then put all files in place
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infer.estimate import say_how_long
from infer.framing import PasteBack, face_crop, frame_size, whole_crop
from infer.motion.driven_motion import DrivingVideo
from infer.motion.driving import Driving
from infer.motion.speech_motion import DrivingSpeech
from infer.output_files import Pair, animation_companions, check_target, sidecar, write_animation
from infer.portrait import crop_portrait, describe_portrait, read_portrait
from infer.portrait_checks import warn_of_portrait
from infer.request import AudioRequest, VideoRequest
from infer.weights.adapters import PIPELINE, find_adapters, refuse_left_over
from infer.weights.pipeline_weights import PipelinePlace, find_pipeline, load_pipeline
from talkinghead.face.model import FaceModel
from talkinghead.face.portrait import Crop, Portrait
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.atomic import check_writable
from talkinghead.media.synthetic import SyntheticNote
from talkinghead.media.talking_video import check_video_size
from talkinghead.models.noise_schedule import NoiseSchedule
from talkinghead.motion.motion import Motion
from talkinghead.pipelines.memory import device_memory, fitting_preset, memory_preset, out_of_memory_explained
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from talkinghead.runtime.device import choose_device, named_dtype
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)

# A warning is due when, in more than this share of the frames, the share of landmarks outside the image exceeds the
# portrait's own by this much.
_MANY_FRAMES, _MANY_OUTSIDE = 0.1, 0.01


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """The portrait and the settings with which it is animated, checked before weights are loaded."""

    portrait: Portrait
    """Whole portrait as the user gave it."""
    crop: Crop
    """Box in the whole portrait that is animated."""
    cropped: Portrait
    """Content of the box, as a portrait of its own."""
    size: tuple[int, int]
    """Width and height of the generated images in pixels."""
    face_model: FaceModel
    place: PipelinePlace
    """Location of the pipeline's weights, which are not loaded."""
    device: str
    """Device of the networks: `cpu`, `cuda` or `mps`."""


def make_audio_video(request: AudioRequest) -> Path:
    """Animate a portrait by speech: `infer audio`. Returns and raises as `animate`."""
    request.check()
    return animate(request, DrivingSpeech(request))


def make_driven_video(request: VideoRequest) -> Path:
    """Animate a portrait by the face in a video: `infer video`. Returns and raises as `animate`."""
    request.check()
    return animate(request, DrivingVideo(request))


def animate(request: AudioRequest | VideoRequest, driving: Driving) -> Path:
    """Animate a portrait and write the video, the landmark video and the sidecar.

    Everything the user gave is read and checked before weights are loaded. The same request gives the same videos.

    Args:
        request: Options of the command.
        driving: Source of the motion: speech or a video.

    Returns:
        Path of the video.

    Raises:
        ValueError: The request cannot be met; one line that says what is wrong and what to do.
        OSError: The disk is full, or the output's folder cannot be written.
    """
    started = time.monotonic()
    with Progress() as progress:
        # 1. Inputs: a mistake in the request is reported in seconds, not after minutes of loading.
        stage = _prepare(request, driving, progress)

        # 2. Networks, on their device.
        progress("load weights", 0, 1)
        pipeline, weights = _load(request, stage.place, stage.device)
        settings = pipeline.config

        # 3. Motion, whole: a landmark array is small, and frame rate and projection are those of the pipeline.
        with out_of_memory_explained(pipeline.memory, pipeline.denoiser.device, "the motion"):
            motion, facts = driving.move(stage.cropped, progress, fps=settings["fps"], device=stage.device)
        landmarks = pipeline.landmarks(motion)
        _warn_of_motion(landmarks, stage.cropped)

        # 4. Estimate, before the long phase: the user may want a smaller video.
        progress("estimate", 0, 1)
        estimate = _estimate(request, stage, pipeline, motion)

        # 5. Output: frames are generated while they are encoded, so only the windows in progress are in memory.
        progress("draw landmarks", 0, 1)
        paste = PasteBack(stage.portrait.image, stage.crop) if request.paste_back else None

        # A part of a photo stays as it was taken where the frames are pasted back.
        kind = "trainedAlgorithmicMedia" if paste is None else "compositeWithTrainedAlgorithmicMedia"
        note = SyntheticNote(kind=kind) if request.mark_synthetic else None

        def describe() -> dict[str, Any]:
            # Called after the last frame: wall times and peak memory are known only then.
            progress("write", 0, 1)
            portrait = describe_portrait(request.reference, stage.portrait, stage.face_model.sha256)
            return sidecar(
                driving.command,
                request,
                pair=Pair.of(driving.command, fps=motion.fps, compat=settings["compat"]),
                inputs={"reference": portrait} | driving.describe(),
                weights=weights | driving.provenance(),
                result=facts
                | _describe_result(request, stage, pipeline, motion)
                | {"synthetic": None if note is None else note.source_type},
                seconds={**progress.seconds, **estimate, "all": time.monotonic() - started},
                device=stage.device,
            )

        write_animation(
            request.output,
            _frames(request, stage, pipeline, landmarks, paste, progress),
            landmarks,
            fps=motion.fps,
            size=stage.size if paste is None else paste.size,
            drawn_size=stage.size,
            sound=driving.sound,
            describe=describe,
            note=note,
        )
    return request.output


def _prepare(request: AudioRequest | VideoRequest, driving: Driving, progress: Progress) -> _Stage:
    """Check and read everything the user gave, except the content of weights; cheap checks come first."""
    # Names and places: output that would replace an input, missing weights, a device that is not there.
    companions = animation_companions(request.output)
    check_target(request.output, companions, request.reference, *driving.files)
    place = find_pipeline(request.weights)
    driving.find(place.path)
    adapters = find_adapters(request.adapter)
    if isinstance(request, VideoRequest):
        refuse_left_over(adapters, [PIPELINE])
    place = replace(place, adapter=adapters.get(PIPELINE))
    device = choose_device(request.device)

    # The output's folder is tried now: that it cannot be written must not show up after the frames are made.
    for target in (request.output, *companions):
        check_writable(target)

    # Content: the portrait first, because the driving video or speech is checked against it.
    progress("read inputs", 0, 1)
    stage = _read_stage(request, place, device)
    driving.read(stage.cropped, stage.face_model, progress, request.seconds(request.limit_seconds))
    return stage


def _read_stage(request: AudioRequest | VideoRequest, place: PipelinePlace, device: str) -> _Stage:
    """Read the portrait, and choose the size of the images and the part that is animated."""
    # The portrait and its face.
    model = resolve_face_model()
    portrait = read_portrait(request.reference, model, face=request.face)
    warn_of_portrait(request.reference, portrait, model, keeps_mouth=request.neutralise == "none")

    # Size of the generated images. A box around a face has the aspect that the weights know; the whole image its own.
    aspect = portrait.width / portrait.height if request.crop == "none" else None
    size = frame_size(
        request.width,
        request.height,
        trained=place.size,
        aspect=aspect,
        step=place.size_step,
        preview=request.preview,
    )
    check_video_size(*size)
    if request.paste_back:
        check_video_size(portrait.width // 2 * 2, portrait.height // 2 * 2)

    # The box in that size's aspect. Its content is measured as an image of its own, whose middle the camera looks at.
    box = face_crop if request.crop == "face" else whole_crop
    crop = box(portrait.face_px, portrait.width, portrait.height, size[0] / size[1])
    if crop.padded:
        log.warning(
            "warning: %s ends too near to the face for an image of %dx%d: its border pixels are repeated",
            request.reference,
            *size,
        )
    return _Stage(
        portrait=portrait,
        crop=crop,
        cropped=crop_portrait(portrait, crop, model),
        size=size,
        face_model=model,
        place=place,
        device=device,
    )


def _load(
    request: AudioRequest | VideoRequest, place: PipelinePlace, device: str
) -> tuple[TalkingHeadPipeline, dict[str, Any]]:
    """Load the pipeline to its device, within the device's memory, and set its sampler.

    Returns:
        The pipeline, and the provenance of its weights for the sidecar.
    """
    # The memory preset: the one that was asked for, else what fits the device; none on a CPU.
    target = torch.device(device)
    total = device_memory(target)
    preset = None
    if request.memory != "auto":
        preset = memory_preset(int(request.memory))
    elif total is not None:
        preset = fitting_preset(total)

    # Loaded on the CPU first: with a preset not every network stays on the device.
    with out_of_memory_explained(preset, target, "the networks"):
        pipeline, weights = load_pipeline(
            place, dtype=named_dtype(request.dtype), device="cpu", pose_guider_mode=request.pose_guider_mode
        )
        # Speech models that are bundled with the pipeline are dropped: `DrivingSpeech` loads the ones that the request
        # names, with the settings next to their weights, and frees them before frames are made.
        pipeline.register_modules(audio2mesh=None, audio2pose=None)
        if preset is not None:
            pipeline.apply_preset(preset.gigabytes, target, named_dtype(request.dtype))
        else:
            pipeline.to(target)
    if request.sampler is not None:
        pipeline.scheduler = NoiseSchedule.of(pipeline.scheduler).sampler(request.sampler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, weights


def _estimate(
    request: AudioRequest | VideoRequest, stage: _Stage, pipeline: TalkingHeadPipeline, motion: Motion
) -> dict[str, float]:
    """Estimate and report how long the video will take; the result goes into `seconds` of the sidecar."""
    seconds = say_how_long(
        pipeline,
        stage.place,
        size=stage.size,
        frames=len(motion),
        fps=motion.fps,
        steps=request.sampled_steps,
        guidance=request.guidance,
    )
    return {} if seconds is None else {"video, estimated before": seconds}


def _frames(
    request: AudioRequest | VideoRequest,
    stage: _Stage,
    pipeline: TalkingHeadPipeline,
    landmarks: np.ndarray,
    paste: PasteBack | None,
    progress: Progress,
) -> Iterator[np.ndarray]:
    """Generate the video's frames, RGB uint8 `[H, W, 3]`, each as soon as it is final; with `paste`, pasted back."""
    frames = pipeline.stream(
        stage.cropped.image,
        landmarks,
        reference_landmarks=stage.cropped.face.points,
        width=stage.size[0],
        height=stage.size[1],
        num_inference_steps=request.sampled_steps,
        guidance_scale=request.guidance,
        seed=request.seed,
        progress=progress,
    )
    return frames if paste is None else map(paste, frames)


def _warn_of_motion(landmarks: np.ndarray, portrait: Portrait) -> None:
    """Warn when the head leaves the image further than it does in the portrait."""
    outside = ((landmarks < 0) | (landmarks > 1)).any(axis=2).mean(axis=1)  # [F], share of landmarks
    leaving = int((outside > portrait.face.outside + _MANY_OUTSIDE).sum())
    if leaving > _MANY_FRAMES * len(landmarks):
        log.warning(
            "warning: the face reaches beyond the image in %d of %d frames: a wider crop (--crop none) or less"
            " motion (--pose-gain) keeps it inside",
            leaving,
            len(landmarks),
        )


def _describe_result(
    request: AudioRequest | VideoRequest, stage: _Stage, pipeline: TalkingHeadPipeline, motion: Motion
) -> dict[str, Any]:
    """Settings that were chosen on the way, for `result` of the sidecar."""
    crop = stage.crop
    return {
        "frames": len(motion),
        "fps": motion.fps,
        "compat_projection": pipeline.config["compat"],
        "size": list(stage.size),
        "crop": [crop.x0, crop.y0, crop.x1, crop.y1],
        "steps": request.sampled_steps,
        "sampler": type(pipeline.scheduler).__name__,
        "dtype": str(pipeline.denoiser.dtype).removeprefix("torch."),
        "memory_preset": None if pipeline.memory is None else pipeline.memory.gigabytes,
    }
