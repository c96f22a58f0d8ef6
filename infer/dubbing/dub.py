"""`infer dub`: put new speech into a video's mouth, in memory that its length hardly affects.

The phases of `dub`:

    1. inputs     check everything the user gave; no weights are loaded yet
    2. speech     read it: it says how much of the video is needed
    3. face       follow the face through the video, frame it, and choose the frame that serves as the portrait
    4. motion     the mouth of the speech, with the video's own head and eyes, in the camera of its boxes
    5. output     generate the face, put its mouth into the video's frames while these are decoded again, and encode

Landmarks and meshes of all frames are held (40 kB a frame); images only while they are worked on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infer.dubbing.encoding_loss import EncodingLoss
from infer.dubbing.face_track import FramedFace
from infer.dubbing.footage import Footage
from infer.dubbing.mouth_paste import MouthPaste
from infer.dubbing.request import DubRequest
from infer.dubbing.scene import Scene, even_size, read_scene
from infer.estimate import say_how_long
from infer.faces import turned
from infer.framing import frame_size
from infer.motion_record import MotionRecord
from infer.output_files import animation_companions, check_target, sidecar, write_video
from infer.renderers.lmk2video import load_for
from infer.speech import Speech, describe_speech, read_speech
from infer.weights.adapters import PIPELINE, find_adapters, refuse_left_over
from infer.weights.pipeline_weights import PipelinePlace, find_pipeline
from infer.weights.speech_weights import WeightsPlace, find_weights, load_audio2mesh
from talkinghead.face.model import FaceModel
from talkinghead.face.resolve import resolve_face_model
from talkinghead.files.atomic import check_writable
from talkinghead.media.synthetic import SyntheticNote
from talkinghead.media.talking_video import check_video_size
from talkinghead.models.speech.activity_weights import find_activity_weights
from talkinghead.models.speech.encoder import num_frames
from talkinghead.models.speech.pauses import speech_active
from talkinghead.motion.compose import compose
from talkinghead.motion.gain import expression_gain
from talkinghead.motion.motion import Motion
from talkinghead.motion.silence import still_in_silence
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.audio2lmk.driver import Audio2LmkDriver, SpeechMotion
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from talkinghead.pipelines.lmk2video.renderer import Lmk2VideoRenderer, VideoSettings
from talkinghead.pipelines.protocols import FrameSize, Pairing, pair
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from talkinghead.provenance import hash_file
from talkinghead.runtime.device import choose_device
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS, samples_in

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Weights that were found, and where they will compute."""

    pipeline: PipelinePlace
    audio2mesh: WeightsPlace
    size: tuple[int, int]
    """Width and height of the generated images in pixels."""
    device: str
    face_model: FaceModel


def dub(request: DubRequest) -> Path:
    """Put new speech into a video's mouth; write the video, the landmark video and the sidecar.

    Everything the user gave is checked before weights are loaded. The same request gives the same video.

    Args:
        request: Options of the command.

    Returns:
        Path of the video.

    Raises:
        ValueError: The request cannot be met; one line that says what is wrong and what to do.
        OSError: The disk is full, or the output's folder cannot be written.
    """
    request.check()
    started = time.monotonic()
    with Progress() as progress:
        # 1. Inputs: names and places, and whether weights are there.
        places = _find(request)
        progress("read inputs", 0, 1)

        # 2. Speech, as long as it may be.
        speech = read_speech(request.audio, seconds=request.seconds(request.limit_seconds))
        wanted = num_frames(len(speech.samples), FPS)

        # 3. Face.
        scene = read_scene(
            request, wanted, places.face_model, aspect=places.size[0] / places.size[1], progress=progress
        )

        # 4. Motion.
        progress("load weights", 0, 1)
        models = load_audio2mesh(places.audio2mesh, places.device)
        speaker = Audio2LmkDriver(lambda: AudioToLandmarks(models.model), models.model.fps)
        motion = _motion(request, scene, speech, speaker, progress)
        pipeline, weights = load_for(request, places.pipeline, places.device)
        weights |= {"audio2mesh": models.provenance()}
        _say_how_long(request, places, scene.count, pipeline, progress)

        # 5. Output.
        place = places.pipeline
        size = FrameSize(width=places.size[0], height=places.size[1], step=place.size_step)
        renderer = Lmk2VideoRenderer(lambda: pipeline, compat=place.compat, fps=place.fps, size=size)
        pairing = pair(speaker, renderer, fps=FPS)

        def describe(made: dict[str, Any]) -> dict[str, Any]:
            # Called after the last frame: measures, wall times and peak memory are known only then.
            progress("write", 0, 1)
            return sidecar(
                "dub",
                request,
                pairing=replace(pairing, driver=f"{pairing.driver}, pose: video, eyes: video"),
                inputs=_describe_inputs(request, scene, speech, places.face_model),
                weights=weights,
                result=_describe_scene(scene) | made | _describe_pipeline(request, places, pipeline),
                seconds={**progress.seconds, "all": time.monotonic() - started},
                device=places.device,
            )

        steps, guidance = request.steps_and_guidance(pipeline.config["distilled"])
        settings = VideoSettings(steps=steps, guidance=guidance)
        _write(request, scene, renderer, settings, pairing, motion, describe, progress)
    return request.output


def _write(
    request: DubRequest,
    scene: Scene,
    renderer: Lmk2VideoRenderer,
    settings: VideoSettings,
    pairing: Pairing,
    motion: Motion,
    describe: Callable[[dict[str, Any]], dict[str, Any]],
    progress: Progress,
) -> None:
    """Generate the face, put its mouth into the video's frames, and write all files.

    Args:
        request: Options of the command.
        scene: The video.
        renderer: What generates the face.
        settings: How it generates it.
        pairing: What lies between the motion and the renderer.
        motion: Motion of the face.
        describe: Returns the sidecar, given what is known of the frames when they are made.
        progress: Callback for the progress.
    """
    [kind], portrait = renderer.takes, scene.portrait
    prepared = renderer.prepare(portrait, settings)
    paste, loss = MouthPaste(), EncodingLoss(scene.count)
    note = SyntheticNote(kind="compositeWithTrainedAlgorithmicMedia") if request.mark_synthetic else None
    with (
        Footage(request.video, degrees=scene.degrees) as footage,
        MotionRecord(
            request.output.parent,
            compat=kind.compat,
            reference_pose_matrix=portrait.pose_matrix,
            own_outside=portrait.face.outside,
            arrays=False,
        ) as record,
    ):
        parts = record.following(pairing.convert(MotionStream.of(motion)))
        rendered = renderer.render(prepared, parts, seed=request.seed, progress=progress)
        landmarks = motion.landmarks(compat=kind.compat)

        def described() -> dict[str, Any]:
            return describe(
                {
                    "dubbed_frames": paste.report.frames,
                    "untouched_frames": scene.count - paste.report.frames,
                    "paste": paste.report.describe(),
                    "encoding_psnr_db": loss.psnr_db,
                    "synthetic": None if note is None else note.source_type,
                }
            )

        write_video(
            request.output,
            loss.watch(dubbed_frames(footage, scene.track, scene.frames, rendered, landmarks, paste)),
            record,
            fps=FPS,
            size=scene.size,
            drawn_size=prepared.size,
            arrays=False,
            sound=request.audio,
            describe=described,
            note=note,
            written=loss.measure,
        )
    if (mismatch := paste.report.mismatch()) is not None:
        log.warning(
            "warning: %s: %s; its box is %d pixels wide in the video, and was generated in %d (--width)",
            request.output,
            mismatch,
            scene.track.crops[scene.reference].width,
            prepared.width,
        )


def dubbed_frames(
    footage: Footage,
    track: FramedFace,
    frames: np.ndarray,
    rendered: Iterator[np.ndarray],
    landmarks: np.ndarray,
    paste: MouthPaste,
) -> Iterator[np.ndarray]:
    """Frames of the video with rendered mouths, as the video shows them: not turned, both sides even.

    Args:
        footage: The video, upright.
        track: Its face.
        frames: Frame of the video for each frame of the result, `[count]`, the order of `Footage.to_and_fro`.
        rendered: Rendered frames of the boxes, RGB uint8 `[h, w, 3]`, one for each frame of the result.
        landmarks: Landmarks that they were rendered from, `[count, 468, 2]`, normalised by the box.
        paste: What puts them in, and measures how they fit.
    """
    images = footage.to_and_fro(len(track.crops), len(frames))
    for shown, image, drawn, moved in zip(frames, images, rendered, landmarks, strict=True):
        if track.face.valid[shown]:
            result = paste(image, drawn, track.crops[shown], before=track.points[shown], after=moved)
        else:
            paste.skip()
            result = image
        result = turned(result, -footage.degrees % 360)
        width, height = even_size((result.shape[1], result.shape[0]))
        yield np.ascontiguousarray(result[:height, :width])


def _find(request: DubRequest) -> _Places:
    """Find weights and check names; nothing is loaded."""
    companions = animation_companions(request.output)
    check_target(request.output, companions, request.video, request.audio)
    for what, path in (("video", request.video), ("audio", request.audio)):
        if not path.exists():
            raise ValueError(f"the {what} {path} is not there")
    place = find_pipeline(request.weights)
    # `--weights` may hold the model for speech next to the pipeline, which then lies in a folder below.
    folder = request.weights if any(request.weights.glob("audio2mesh*")) else place.path
    audio2mesh = find_weights("audio2mesh", request.audio2mesh or folder)
    adapters = find_adapters(request.adapter)
    refuse_left_over(adapters, ["audio2mesh", PIPELINE])
    if request.still_in_silence:
        find_activity_weights()
    size = frame_size(
        request.width,
        request.height,
        trained=place.size,
        aspect=None,
        step=place.size_step,
        preview=request.preview,
    )
    check_video_size(*size)
    for target in (request.output, *companions):
        check_writable(target)
    return _Places(
        pipeline=replace(place, adapter=adapters.get(PIPELINE)),
        audio2mesh=replace(audio2mesh, adapter=adapters.get("audio2mesh")),
        size=size,
        device=choose_device(request.device),
        face_model=resolve_face_model(),
    )


def _motion(request: DubRequest, scene: Scene, speech: Speech, speaker: Audio2LmkDriver, progress: Progress) -> Motion:
    """The mouth of the speech with the head and eyes of the video, in the camera of its boxes."""
    own, samples = scene.track.motion, speech.samples[: samples_in(scene.count)]
    options = SpeechMotion(pose="still", mesh_smoothing=request.smooth_mesh, rest_mesh=own.neutral)
    spoken = speaker.move(scene.portrait, samples, options, fps=FPS, seed=request.seed, progress=progress).whole()
    spoken = expression_gain(spoken, request.lips_gain, "lips")
    motion = compose(mouth=spoken, pose=own, eyes=own)
    if request.still_in_silence:
        motion = still_in_silence(motion, speech_active(samples, FPS, len(motion)), own.neutral)
    return motion


def _say_how_long(
    request: DubRequest, places: _Places, count: int, pipeline: TalkingHeadPipeline, progress: Progress
) -> None:
    """Report how long the generation of `count` frames will take."""
    progress("estimate", 0, 1)
    steps, guidance = request.steps_and_guidance(pipeline.config["distilled"])
    say_how_long(
        pipeline,
        places.pipeline,
        size=places.size,
        frames=count,
        fps=FPS,
        steps=steps,
        guidance=guidance,
    )


def _describe_inputs(request: DubRequest, scene: Scene, speech: Speech, model: FaceModel) -> dict[str, Any]:
    """Hashes and properties of the files, for the sidecar."""
    video = {
        "sha256": hash_file(request.video),
        "seconds": round(scene.length / FPS, 6),
        "face_model": model.sha256,
    }
    return {
        "video": video | ({"turned_deg": scene.degrees} if scene.degrees else {}),
        "audio": describe_speech(request.audio, speech),
    }


def _describe_scene(scene: Scene) -> dict[str, Any]:
    """What was found in the video, for `result` of the sidecar."""
    track = scene.track
    crop = track.crops[scene.reference]
    return {
        "frames": scene.count,
        "fps": FPS,
        "size": list(scene.size),
        "looped": scene.count > scene.length,
        "reference_frame": scene.reference,
        "box": [crop.x0, crop.y0, crop.x1, crop.y1],
        "boxes": len(set(track.crops)),
        "neutral_frames": track.neutral.num_frames,
        "neutral_rule": track.neutral.rule,
    }


def _describe_pipeline(request: DubRequest, places: _Places, pipeline: TalkingHeadPipeline) -> dict[str, Any]:
    """How the face was generated, for `result` of the sidecar."""
    steps, guidance = request.steps_and_guidance(pipeline.config["distilled"])
    return {
        "generated_size": list(places.size),
        "steps": steps,
        "guidance": guidance,
        "sampler": type(pipeline.scheduler).__name__,
        "dtype": str(pipeline.denoiser.dtype).removeprefix("torch."),
        "compat_projection": pipeline.config["compat"],
        "memory_preset": None if pipeline.memory is None else pipeline.memory.gigabytes,
    }
