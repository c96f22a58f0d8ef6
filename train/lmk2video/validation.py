"""Validation of Lmk2Video against true frames: fixed clips through the pipeline that users run, held-out ones first."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from annotate.landmarks import LandmarkEngine
from infer.evaluation.comparison import Comparison
from infer.evaluation.driven_clip import DRIVER_COLUMNS, DrivenClip, read_cross_driven, read_driven_clips
from infer.evaluation.evaluation_result import Evaluation, write_evaluations
from infer.evaluation.video_evaluation import Sampling, evaluate_pipeline
from infer.metrics.face_reading import face_engine
from shards.order import spread
from shards.reader import Sample
from shards.reader_chain import ReaderChain
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from train.lmk2video.config import Lmk2VideoConfig

log = logging.getLogger(__name__)

HELD_OUT, TRAINING, CROSS = "held-out clips", "training clips", "driven by another clip"
COLUMNS = DRIVER_COLUMNS
"""Annotation columns of the clips that are validated."""
_SHORT = {HELD_OUT: "held-out", TRAINING: "training", CROSS: "cross"}


def validate(
    config: Lmk2VideoConfig,
    held_out: ReaderChain,
    training: ReaderChain,
    weights: Path,
    folder: Path,
    device: torch.device,
) -> dict[str, float]:
    """Validate either stage; see `train.task.Task.validate`.

    Held-out clips and as many training clips drive their own reference frames; then a training clip's reference frame
    is driven by a held-out clip (without one by another training clip), which shows whether the mouth follows landmarks
    that the training has not seen with this face. Only the first of these is made a second time without the motion
    modules, where there are any: it costs as much again.

    Args:
        config: Settings of the training.
        held_out: Held-out clips, with the annotation columns `COLUMNS`.
        training: Clips that are trained on.
        weights: Folder of an exported pipeline.
        folder: Folder for `validation.json`, its table, contact sheets and videos.
        device: Device of the pipeline.

    Returns:
        Figures to log, such as `held-out/psnr`.

    Raises:
        ValueError: The data set has no clip to validate on, or lacks what driving needs.
    """
    # The pipeline as users open it, and a landmark model that measures the generated faces.
    pipeline = TalkingHeadPipeline.from_pretrained(weights).to(device)
    pipeline.set_progress_bar_config(disable=True)
    engine = _engine()
    sampling = Sampling(steps=config.validation_steps, guidance=config.validation_guidance)
    evaluations: dict[str, Evaluation] = {}
    # Clips are read one at a time, as they are evaluated.
    for title, clips in _chosen(config, held_out, training).items():
        started = time.perf_counter()
        evaluations[title] = evaluate_pipeline(
            pipeline,
            clips,
            sampling=sampling,
            engine=engine,
            compare_motion=not evaluations,
            on_clip=Comparison(folder / _SHORT[title], most=config.validation_clips),
        )
        log.info("%s: %.1f s", title, time.perf_counter() - started)
    write_evaluations(folder, evaluations)
    return {
        f"{_SHORT[title]}/{name}": value
        for title, evaluation in evaluations.items()
        for name, value in evaluation.numbers().items()
    }


def _engine() -> LandmarkEngine | None:
    """Landmark model, or None where there is none: a machine that only trains need not have one."""
    try:
        return face_engine()
    except (ValueError, OSError) as error:
        log.warning("the face in generated images is not measured: %s", error)
        return None


def _chosen(
    config: Lmk2VideoConfig, all_held_out: ReaderChain, all_training: ReaderChain
) -> dict[str, Iterator[DrivenClip]]:
    """Groups of clips by title, from all over each, equal at every step."""
    held_out, training = (
        [clips[number] for number in spread(len(clips), config.validation_clips)]
        for clips in (all_held_out, all_training)
    )
    if not (held_out or training):
        raise ValueError(f"no clip of {all_training.name} shows a face: there is nothing to validate on")

    def own(samples: list[Sample]) -> Iterator[DrivenClip]:
        return read_driven_clips(samples, config.width, config.height, frames=config.validation_frames)

    # Held-out clips come first: their figures are the ones to watch.
    chosen = {HELD_OUT: own(held_out), TRAINING: own(training)}
    if not held_out:
        log.warning("the data set has no clip in its val split: only training clips are validated")
        del chosen[HELD_OUT]
    # Across clips: a driver that the training has not seen with this face.
    others = held_out or training[1:]
    if training and others:
        chosen[CROSS] = _cross(config, training[0], others[0])
    return {title: clips for title, clips in chosen.items() if title != TRAINING or training}


def _cross(config: Lmk2VideoConfig, reference: Sample, driver: Sample) -> Iterator[DrivenClip]:
    yield read_cross_driven(reference, driver, config.width, config.height, frames=config.validation_frames)
