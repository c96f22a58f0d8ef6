"""`infer evaluate`: evaluation of weights on the annotated clips of a split."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from infer.evaluation.evaluate_request import EvaluateRequest
from infer.evaluation.evaluation_result import JSON_FILE, write_evaluations
from infer.evaluation.motion_evaluation import (
    Evaluation,
    TrueClip,
    evaluate_mesh,
    evaluate_pose,
    read_clips,
)
from infer.weights.speech_weights import WeightsPlace, load_audio2mesh, load_audio2pose
from shards.manifest import read_manifest
from shards.reader import Sample, ShardReader
from shards.selection import Selection
from shards.speech_choice import with_speech
from talkinghead.files.atomic import check_writable
from talkinghead.files.storage import Storage
from talkinghead.motion.annotated import MOTION_COLUMNS
from talkinghead.motion.resampling import resample_frames
from talkinghead.motion.speakers import identity_of
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from talkinghead.runtime.command_line import Incomplete
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS


def evaluate_and_write(request: EvaluateRequest) -> str | Incomplete:
    """Evaluate what a request asks for, and write the result if it names an output folder.

    Returns:
        The table; or with an output folder the path of validation.json, while the table goes to stderr. Of pairs the
        path of the page, as `Incomplete` where a clip failed.

    Raises:
        ValueError: The request cannot be fulfilled.
        OSError: There is no data set, or the output cannot be written.
    """
    # Check all that is cheap to check before hours of evaluation.
    request.check()
    if request.pair:
        # Only when asked for: drivers and renderers load much.
        from infer.evaluation.pair_evaluation import evaluate_pairs

        return evaluate_pairs(request)
    place = request.find()
    if request.output is not None:
        check_writable(request.output / JSON_FILE)
    if isinstance(place, WeightsPlace):
        evaluation = evaluate_split(place, request.data, request.split, limit=request.limit, version=request.version)
    else:
        # Only when asked for: it loads the whole video pipeline.
        from infer.evaluation.video_split_evaluation import evaluate_video_split

        evaluation = evaluate_video_split(place, request)
    if request.output is None:
        return evaluation.table()
    print(evaluation.table(), file=sys.stderr)
    return str(write_evaluation(evaluation, request.split, request.output))


def evaluate_split(
    place: WeightsPlace, data: str, split: str, *, limit: int | None = None, version: str | None = None
) -> Evaluation:
    """Evaluation of an audio2mesh or audio2pose model: the inference pipeline over whole clips of a split.

    Args:
        place: Place of the weights of either model.
        data: Data set: folder or URI.
        split: `train`, `val` or `test`.
        limit: Number of clips that are measured, from the first on; None: all.
        version: Annotation version; None: the newest.

    Raises:
        ValueError: The weights cannot be loaded, or the split has no clip with a face and speech.
        OSError: There is no data set.
    """
    # Clips with their motion and with speech, as in training.
    storage = Storage(data)
    choice = with_speech(Selection(), read_manifest(storage)).arguments()
    reader = ShardReader(storage, version=version, split=split, columns=MOTION_COLUMNS, **choice)
    count = min(len(reader), limit or len(reader))
    if not count:
        raise ValueError(f"the split {split!r} of {data} has no clip with a face and speech")
    with Progress() as progress:
        clips = _clips(reader, count, progress)
        return _mesh(place, clips) if place.kind == "audio2mesh" else _pose(place, clips)


def write_evaluation(evaluation: Evaluation, split: str, folder: Path) -> Path:
    """Write `validation.json` and `validation.txt` into a folder; returns the path of `validation.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_evaluations(folder, {f"{split} clips": evaluation})
    return folder / JSON_FILE


def _clips(reader: ShardReader, count: int, progress: Progress) -> Iterator[Sample]:
    progress("evaluate clips", 0, count)
    for number in range(count):
        yield reader[number]
        progress("evaluate clips", number + 1, count)


def _mesh(place: WeightsPlace, samples: Iterator[Sample]) -> Evaluation:
    weights = load_audio2mesh(place)
    pipeline = AudioToLandmarks(weights.model)

    def predict(clip: TrueClip) -> np.ndarray:
        offsets = pipeline.predict_offsets(clip.audio)
        # From the frame rate of the model to that of the annotations: [F, 468, 3] at 25 fps.
        return resample_frames(offsets, weights.model.fps, FPS, clip.num_frames)

    # Published weights come without the table of speakers that holds the mean.
    mean = None if weights.speakers is None else weights.speakers.mean_offset
    return evaluate_mesh(predict, read_clips(samples), mean_offset=mean)


def _pose(place: WeightsPlace, samples: Iterator[Sample]) -> Evaluation:
    weights = load_audio2pose(place)
    # The head alone: no mesh model is needed for it.
    pipeline = AudioToLandmarks(None, weights.model)
    rows = weights.model.id_embed.num_embeddings

    def free_running(clip: TrueClip) -> np.ndarray:
        pose = pipeline.predict_pose(clip.audio, identity=identity_of(clip.speaker, weights.speakers, rows))
        return resample_frames(pose, weights.model.fps, FPS, clip.num_frames)

    # Poses count from the origin that the model was trained with.
    return evaluate_pose(free_running, read_clips(samples), origin=weights.model.config["pose_origin"])
