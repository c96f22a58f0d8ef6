"""Validation of Lmk2Video against true frames: fixed clips through the pipeline that users run, held-out ones first."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from annotate.landmarks import LandmarkEngine
from infer.evaluation.comparison import Comparison
from infer.evaluation.driven_clip import (
    DRIVER_COLUMNS,
    DrivenClip,
    cross_key,
    read_cross_driven,
    read_driven_clips,
)
from infer.evaluation.evaluation_result import Evaluation, write_evaluations
from infer.evaluation.measured_clips import joining
from infer.evaluation.video_evaluation import Sampling, evaluate_pipeline
from infer.metrics.face_reading import face_engine
from shards.order import spread
from shards.reader import Sample
from shards.reader_chain import ReaderChain
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from train.lmk2video.config import Lmk2VideoConfig
from train.run.crew import ONE, Crew

log = logging.getLogger(__name__)

HELD_OUT, TRAINING, CROSS = "held-out clips", "training clips", "driven by another clip"
COLUMNS = DRIVER_COLUMNS
"""Annotation columns of the clips that are validated."""
Driven = tuple[Sample, Sample]
"""Sample whose reference frame is driven, and the one that drives it; mostly the same."""
_SHORT = {HELD_OUT: "held-out", TRAINING: "training", CROSS: "cross"}


def validate(
    config: Lmk2VideoConfig,
    held_out: ReaderChain,
    training: ReaderChain,
    weights: Path,
    folder: Path,
    device: torch.device,
    crew: Crew = ONE,
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
        crew: Processes that share the clips out.

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
    before = 0
    for title, group in _chosen(held_out, training, config.validation_clips).items():
        started = time.perf_counter()
        evaluations[title] = evaluate_pipeline(
            pipeline,
            _read(config, crew.own(group, before)),
            sampling=sampling,
            engine=engine,
            compare_motion=not evaluations,
            on_clip=Comparison(folder / _SHORT[title], most=config.validation_clips),
            join=joining(crew.exchange, [_key(samples) for samples in group]),
        )
        before += len(group)
        log.info("%s: %.1f s", title, time.perf_counter() - started)
    if crew.first:
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


def _chosen(all_held_out: ReaderChain, all_training: ReaderChain, count: int) -> dict[str, list[Driven]]:
    """Groups of clips by title, from all over each split, equal at every step."""
    held_out, training = (
        [clips[number] for number in spread(len(clips), count)] for clips in (all_held_out, all_training)
    )
    if not (held_out or training):
        raise ValueError(f"no clip of {all_training.name} shows a face: there is nothing to validate on")
    if not held_out:
        log.warning("the data set has no clip in its val split: only training clips are validated")
    # Held-out clips come first: their figures are the ones to watch. Across clips: a driver that the training has not
    # seen with this face.
    others = held_out or training[1:]
    groups: dict[str, list[Driven]] = {
        HELD_OUT: [(sample, sample) for sample in held_out],
        TRAINING: [(sample, sample) for sample in training],
        CROSS: [(training[0], others[0])] if training and others else [],
    }
    return {title: group for title, group in groups.items() if group}


def _read(config: Lmk2VideoConfig, group: list[Driven]) -> Iterator[DrivenClip]:
    """Clips of a group, one at a time; those without a face are left out."""
    for reference, driver in group:
        if reference is driver:
            yield from read_driven_clips([reference], config.width, config.height, frames=config.validation_frames)
        else:
            yield read_cross_driven(reference, driver, config.width, config.height, frames=config.validation_frames)


def _key(driven: Driven) -> str:
    """Key of the clip that `_read` makes of it."""
    reference, driver = driven
    return reference.key if reference is driver else cross_key(reference, driver)
