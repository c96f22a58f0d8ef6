"""`infer evaluate`: weights against the annotated clips of a split, with baselines next to every number."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from infer.evaluation.evaluate_request import EvaluateRequest
from infer.evaluation.evaluation_result import JSON_FILE, write_evaluations
from infer.evaluation.motion_evaluation import (
    COLUMNS,
    Evaluation,
    Kind,
    TrueClip,
    evaluate_mesh,
    evaluate_pose,
    identity_of,
    read_clips,
)
from infer.weights.speech_weights import WeightsPlace, load_audio2mesh, load_audio2pose
from shards.reader import SPEECH, Sample, ShardReader
from talkinghead.files.atomic import check_writable
from talkinghead.motion.resampling import resample_frames
from talkinghead.pipelines.audio_to_landmarks import AudioToLandmarks
from talkinghead.runtime.progress import Progress
from talkinghead.timebase import FPS

KINDS: dict[str, Kind] = {"audio2mesh": "mesh", "audio2pose": "pose"}


def evaluate_and_write(request: EvaluateRequest) -> str:
    """Do what the request asks for; everything that costs nothing is checked first.

    Returns:
        The table, or the path of validation.json where there is an output folder; the table then goes to stderr.

    Raises:
        ValueError: Something that was asked for is not possible.
        OSError: There is no data set, or the output cannot be written.
    """
    request.check()
    place = request.find()
    if request.output is not None:
        check_writable(request.output / JSON_FILE)
    if isinstance(place, WeightsPlace):
        evaluation = evaluate_split(place, request.data, request.split, limit=request.limit, version=request.version)
    else:
        from infer.evaluation.video_split_evaluation import evaluate_video_split

        evaluation = evaluate_video_split(place, request)
    if request.output is None:
        return evaluation.table()
    print(evaluation.table(), file=sys.stderr)
    return str(write_evaluation(evaluation, request.split, request.output))


def evaluate_split(
    place: WeightsPlace, data: str, split: str, *, limit: int | None = None, version: str | None = None
) -> Evaluation:
    """Run the inference pipeline over whole clips and measure it.

    Args:
        place: Weights of either model.
        data: The data set: folder or URI.
        split: `train`, `val` or `test`.
        limit: Only the first so many clips.
        version: Annotation version; None: the newest.

    Raises:
        ValueError: The weights cannot be loaded, or the split has no clip with speech.
        OSError: There is no data set.
    """
    reader = ShardReader(data, version=version, split=split, columns=COLUMNS[KINDS[place.kind]], at_most=SPEECH)
    count = min(len(reader), limit or len(reader))
    if not count:
        raise ValueError(f"the split {split!r} of {data} has no clip with a face and speech")
    with Progress() as progress:
        clips = _clips(reader, count, progress)
        return _mesh(place, clips) if place.kind == "audio2mesh" else _pose(place, clips)


def write_evaluation(evaluation: Evaluation, split: str, folder: Path) -> Path:
    """Write `validation.json` and `validation.txt` into a folder; returns the path of the former."""
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
        return resample_frames(offsets, weights.model.fps, FPS, clip.num_frames)

    mean = None if weights.speakers is None else weights.speakers.mean_offset
    return evaluate_mesh(predict, read_clips(samples, "mesh"), mean_offset=mean)


def _pose(place: WeightsPlace, samples: Iterator[Sample]) -> Evaluation:
    weights = load_audio2pose(place)
    pipeline = AudioToLandmarks(None, weights.model)
    rows = weights.model.id_embed.num_embeddings

    def free_running(clip: TrueClip) -> np.ndarray:
        pose = pipeline.predict_pose(clip.audio, identity=identity_of(clip.speaker, weights.speakers, rows))
        return resample_frames(pose, weights.model.fps, FPS, clip.num_frames)

    return evaluate_pose(free_running, read_clips(samples, "pose"), origin=weights.model.config["pose_origin"])
