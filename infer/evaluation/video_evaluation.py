"""Evaluation of the video pipeline against true frames, with baselines next to every number.

A clip's reference frame is driven by its own landmarks, so that the true frames are known, or by another clip's.
Baselines: the reference frame itself, which never moves; the same pipeline without its motion modules, on the same
noise (the difference is what stage 2 adds); and the true frames encoded and decoded by the VAE, an upper bound for
every pipeline on this VAE. The truth itself is measured, too: its landmark distance is the error of finding the
landmarks again at this size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from annotate.landmarks import LandmarkEngine
from infer.evaluation.driven_clip import DrivenClip
from infer.evaluation.evaluation_result import Evaluation, Role, Subject
from infer.evaluation.measured_clips import Join, MeasuredClips, one_process
from infer.metrics import METRICS, Clip, Unavailable
from infer.metrics.face_reading import redetect
from infer.metrics.learned_metrics import LearnedMeasurement, embed
from infer.metrics.scripted_model import ScriptedModel
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.pipelines.lmk2video.frames import as_bytes, decode

if TYPE_CHECKING:
    from talkinghead.pipelines.talking_head import TalkingHeadPipeline

KIND = "video"
GENERATED, REFERENCE_COPY, NO_MOTION, VAE, TRUTH = (
    "generated",
    "reference copy",
    "without motion modules",
    "vae",
    "truth",
)
VIDEO_FIELDS = frozenset({"predicted_video", "shown_landmarks", "mouth_reading"})
"""Fields of `Clip` that mark a metric of videos: it needs at least one of them."""
_ENCODED = 8  # images that go through the VAE at once


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the pipeline's sampling."""

    steps: int = 25
    """Steps of the sampler."""
    guidance: float = 3.5
    """Guidance scale; 1 or less turns guidance off."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, must be at least 1")

    def __str__(self) -> str:
        return f"{self.steps} steps, guidance {self.guidance:g}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class VideoTrace:
    """One evaluated clip with its videos, for contact sheets and comparison videos."""

    clip: DrivenClip
    videos: Mapping[str, np.ndarray]
    """Subject → video `[F, H, W, 3]` RGB uint8; the generated one first."""


ClipCallback = Callable[[VideoTrace], None]


def evaluate_pipeline(
    pipeline: TalkingHeadPipeline,
    clips: Iterable[DrivenClip],
    *,
    sampling: Sampling,
    engine: LandmarkEngine | None,
    networks: Mapping[str, ScriptedModel] | None = None,
    compare_motion: bool = True,
    on_clip: ClipCallback | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    join: Join = one_process,
) -> Evaluation:
    """Evaluation of a pipeline: generate every clip, and measure the result next to its baselines.

    Args:
        pipeline: Pipeline on its device.
        clips: Clips to generate; may come from a generator, one is held at a time. Either all have a truth or none.
        sampling: Settings of the sampling.
        engine: Landmark engine that finds faces in the videos; None: metrics that need it are unavailable.
        networks: Networks of learned metrics by purpose; None: none was given.
        compare_motion: Whether to generate every clip a second time without motion modules, if the denoiser has them.
        on_clip: Called with every clip that was evaluated.
        progress: Called with (name of the video, predictions of the network done, total).
        join: Puts the measurements together where other processes evaluate other clips; not with learned metrics.

    Raises:
        ValueError: The pipeline cannot generate these clips, a network fails, or two clips have one key.
    """
    # Prepare the pipeline without motion modules to compare with.
    assert join is one_process or not networks, "features of learned metrics are not put together"
    measured = _Measured(engine, networks or {})
    alone = without_motion(pipeline) if compare_motion else None
    for clip in clips:
        if not measured.found.count(clip.key, clip.valid):
            continue
        # Make the videos of the clip: generated, and the baselines.
        videos: dict[str, tuple[Role, np.ndarray]] = {
            GENERATED: ("prediction", generate(pipeline, clip, sampling, progress, GENERATED)),
            REFERENCE_COPY: ("baseline", np.broadcast_to(clip.reference, (clip.num_frames, *clip.reference.shape))),
        }
        if alone is not None:
            videos[NO_MOTION] = ("baseline", generate(alone, clip, sampling, progress, NO_MOTION))
        if clip.truth is not None:
            videos[VAE] = ("baseline", through_vae(pipeline, clip.truth))
            videos[TRUTH] = ("truth", clip.truth)
        # Measure them; only numbers and features are kept, so that memory does not grow with the clips.
        measured.add(clip, videos)
        if on_clip:
            on_clip(VideoTrace(clip=clip, videos={name: video for name, (_, video) in videos.items()}))
    return measured.evaluation(sampling, join)


def generate(
    pipeline: TalkingHeadPipeline,
    clip: DrivenClip,
    sampling: Sampling,
    progress: Callable[[str, int, int], None] | None = None,
    subject: str = GENERATED,
) -> np.ndarray:
    """Video that the pipeline generates for a clip, `[F, H, W, 3]` RGB uint8; `progress` names it after `subject`."""
    height, width = clip.reference.shape[:2]
    frames = pipeline.stream(
        clip.reference,
        clip.landmarks,
        reference_landmarks=clip.reference_landmarks,
        width=width,
        height=height,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        seed=sampling.seed,
        progress=None if progress is None else lambda _, done, total: progress(f"{clip.key}, {subject}", done, total),
    )
    video = np.stack(list(frames))
    assert video.shape == (clip.num_frames, height, width, 3), video.shape
    return video


def without_motion(pipeline: TalkingHeadPipeline) -> TalkingHeadPipeline | None:
    """The pipeline without motion modules, so that frames are made independently; None where it has none anyway.

    Its networks share their weights with the pipeline's.
    """
    denoiser: Any = pipeline.denoiser
    if not denoiser.config["motion"]:
        return None
    # Names with an underscore are notes of diffusers in the config, no arguments of the constructor.
    settings = {name: value for name, value in denoiser.config.items() if not name.startswith("_")}
    settings["motion"] = False
    # Build the denoiser on "meta" and assign the tensors: it shares the weights (without motion modules), not copies.
    with torch.device("meta"):
        still = Denoiser(**settings)
    state: dict[str, Any] = denoiser.state_dict()
    still.load_state_dict({name: state[name] for name in still.state_dict()}, assign=True)
    modules: dict[str, Any] = {**pipeline.components, "denoiser": still.eval()}
    known = {name: pipeline.config[name] for name in ("compat", "fps", "width", "height", "context_frames")}
    alone = type(pipeline)(**modules, **known)
    alone.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
    return alone


def through_vae(pipeline: TalkingHeadPipeline, video: np.ndarray) -> np.ndarray:
    """Images `[F, H, W, 3]` RGB uint8, encoded and decoded by the pipeline's VAE, in the same form."""
    encoder = ImageNetworks(pipeline.vae, pipeline.image_encoder)
    parts = []
    for first in range(0, len(video), _ENCODED):
        # [N, H, W, 3] → [N, 3, H, W]
        images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(video[first : first + _ENCODED], 3, 1)))
        # The mean, not a sample: the loss of the VAE without its noise. [N, C, h, w]
        latents = encoder.mean(encoder.moments(images))
        parts += [as_bytes(decoded) for decoded in decode(encoder, latents, _ENCODED)]
    return np.concatenate(parts)


class _Measured:
    """Measurements of all subjects (generated, baselines, truth) over the clips."""

    def __init__(self, engine: LandmarkEngine | None, networks: Mapping[str, ScriptedModel]) -> None:
        self.engine, self.networks = engine, networks
        self.found = MeasuredClips(tuple(name for name, m in METRICS.items() if VIDEO_FIELDS & set(m.needs)))
        self.learned: dict[str, LearnedMeasurement] = {}

    def add(self, clip: DrivenClip, videos: Mapping[str, tuple[Role, np.ndarray]]) -> None:
        # All subjects are compared with the same face: embed it once.
        reference = self._embedded(clip)
        for name, (role, video) in videos.items():
            # The reference copy shows one image all the time: find its landmarks once and repeat them.
            shown = self._shown(video[:1] if name == REFERENCE_COPY else video)
            one = Clip(
                key=clip.key,
                valid=clip.valid,
                audio=clip.audio,
                predicted_video=video,
                # The truth is not compared with itself: it gets only the metrics that need no truth.
                true_video=None if role == "truth" else clip.truth,
                asked_landmarks=clip.landmarks,
                shown_landmarks=None if shown is None else np.broadcast_to(shown, clip.landmarks.shape),
                mouth_reading=clip.mouth.read(video, clip.landmarks, clip.frames),
            )
            self.found.add(name, role, one)
            self._learned(name).add(one, reference)

    def _learned(self, name: str) -> LearnedMeasurement:
        return self.learned.setdefault(name, LearnedMeasurement(self.networks))

    def _shown(self, video: np.ndarray) -> np.ndarray | None:
        return None if self.engine is None else redetect(video, self.engine)

    def _embedded(self, clip: DrivenClip) -> np.ndarray | None:
        """Embedding `[D]` of the reference's face; None without a network, or where no face is found."""
        if "identity" not in self.networks:
            return None
        alone = Clip(
            key=clip.key,
            valid=np.ones(1, bool),
            predicted_video=clip.reference[None],
            shown_landmarks=self._shown(clip.reference[None]),
        )
        try:
            return embed(alone, self.networks["identity"])[0]
        except Unavailable:
            return None

    def evaluation(self, sampling: Sampling, join: Join) -> Evaluation:
        found = join(self.found)
        cross = bool(found.subjects) and TRUTH not in found.subjects
        driver = "another clip's landmarks" if cross else "its own landmarks"
        notes = [network.provenance() for network in self.networks.values()]
        if VAE in found.subjects:
            notes.append("The VAE is the true frames encoded and decoded: the best that latents can do.")
        if NO_MOTION in found.subjects:
            notes.append("Without motion modules: the same pipeline and noise, each frame for itself.")
        if self.engine is None:
            notes.append("Without a face model, nothing is measured of the face that the images show.")
        if {"fid", "fvd"} & self.networks.keys():
            notes.append("Fréchet distances compare only between equal numbers of frames.")
        return Evaluation(
            kind=KIND,
            protocol=f"A reference frame of each clip, driven by {driver}; {sampling}. Frames with a face are measured,"
            " but not the reference itself.",
            notes=tuple(notes),
            clips=tuple(found.clips),
            subjects=tuple(
                Subject(name=name, role=role, results=(*measurement.results(), *self._learned(name).results()))
                for name, (role, measurement) in found.subjects.items()
            ),
        )
