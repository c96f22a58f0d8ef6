"""Data of the trainings from speech, derived once for each run: speakers, rest poses, statistics.

One pass over annotations and audio of the training clips (not their video), speaker after speaker. The result is pinned
in the folder of the run together with the index that it was made from, so that a resumed run works with the very same
samples or reports that they have changed.
"""

from __future__ import annotations

import functools
import itertools
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from shards.order import spread
from shards.reader import SPEECH, Sample, ShardReader
from talkinghead.config import from_json
from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import read_json, read_limited
from talkinghead.files.storage import Storage
from talkinghead.motion.expression import EXPRESSION_FILE, ExpressionFit
from talkinghead.motion.neutral import NeutralEstimator
from talkinghead.motion.rest_pose import clip_rest_pose, pose_origin, relative_pose
from talkinghead.motion.speakers import FILE as SPEAKERS_FILE
from talkinghead.motion.speakers import READABLE_FILE, Speaker, Speakers
from talkinghead.provenance import pretty_json
from talkinghead.runtime.progress import Progress
from talkinghead.tables import read_table

log = logging.getLogger(__name__)

COLUMNS = ("mesh", "pose_matrix", "blendshapes", "valid")
CLIPS_FILE = "clips.parquet"
STATISTICS_FILE = "statistics.json"
_CLIPS_BYTES = 1 << 30  # a clip takes some 200
_CLIPS_SCHEMA = {
    "key": pa.string(),
    "speaker": pa.string(),
    "rest": pa.list_(pa.float64()),
    "speech_mean": pa.float64(),
    "speech_variance": pa.float64(),
}
MOST_EXPRESSION_CLIPS = 500
"""Largest number of clips that the expression basis is fitted on, spread evenly: it has few numbers for many frames."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Choice of the clips."""

    data: str
    """Folder or URI of the data set."""
    persons: tuple[str, ...] = ()
    """Persons (or split groups) to train on; empty: all."""
    annotation: str | None = None
    """Annotation version; None: the newest when the run begins."""
    pose_origin: Literal["rest", "first"] = "rest"
    """Origin of the poses in the statistics: the median pose of each clip, or its first frame with a face."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of the poses of the training clips, and the data that they were made from."""

    version: str
    """Annotation version."""
    index: str
    """File of the index; its name holds the hash of its content."""
    num_clips: int
    """Number of clips with a face."""
    num_frames: int
    """Number of frames with a face."""
    pose_mean: tuple[float, ...]
    """Means of the six pose numbers, relative to `CorpusConfig.pose_origin`, in degrees and cm."""
    pose_std: tuple[float, ...]
    """Standard deviations of the six pose numbers, in degrees and cm; at least 0.001."""
    pose_step_p99: tuple[float, ...]
    """99th percentiles of the absolute change of the six pose numbers from one frame to the next, in degrees and cm."""


class Corpus:
    """Training clips of a run, and what is derived from them.

    Args:
        config: Choice of the clips.
        folder: Folder of the derived files; `derive` makes them, everything but `check` needs them.
    """

    def __init__(self, config: CorpusConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder

    def check(self) -> ShardReader:
        """Open the training clips that `derive` reads.

        Raises:
            ValueError: There is no data set, it lacks a column or score, or has no clip that can be trained on.
        """
        try:
            reader = self._open(self.config.annotation, COLUMNS, "train")
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        if not len(reader):
            raise ValueError(
                f"no training clip of {reader.storage.uri} has both a face and speech: look at make report"
            )
        return reader

    def derive(self) -> None:
        """Make the derived files; the folder must exist.

        Raises:
            ValueError: The data set lacks a column or score, or has no clip that can be trained on.
        """
        reader = self.check()
        rows: list[dict[str, object]] = []
        found: list[Speaker] = []
        poses = _PoseStatistics(self.config.pose_origin)
        # Speaker by speaker: neutral mesh and mean offset of each, rest pose and loudness of each clip.
        with Progress() as progress:
            for name, samples in itertools.groupby(_by_speaker(reader, progress), lambda sample: sample.index.speaker):
                if (speaker := _look_at(name, samples, poses, rows)) is not None:
                    found.append(speaker)
            # The expression basis needs the final neutral meshes, so it takes a second pass, over a part of the clips.
            speakers = Speakers(found)
            speakers.save(self.folder)
            self._derive_expression(reader, speakers, progress)
        # Last the tables by which a training finds all this again.
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(_CLIPS_SCHEMA.items()))), self.folder / CLIPS_FILE)
        statistics = poses.result(reader)
        write_whole(self.folder / STATISTICS_FILE, pretty_json(statistics.__dict__))

    def _derive_expression(self, reader: ShardReader, speakers: Speakers, progress: Progress) -> None:
        """Fit the basis that takes an expression out of a portrait; needs every speaker's final neutral mesh."""
        fit = ExpressionFit()
        blendshapes_seen = False
        chosen = spread(len(reader), MOST_EXPRESSION_CLIPS)
        for done, number in enumerate(chosen):
            progress("fit the expressions", done, len(chosen))
            sample = reader[number]
            speaker = sample.index.speaker
            blendshapes = sample.annotation("blendshapes")
            if speaker in speakers and np.isfinite(blendshapes).any():
                fit.add(sample.annotation("mesh"), speakers[speaker].neutral.mesh, blendshapes)
                blendshapes_seen = True
        if not blendshapes_seen:
            log.warning("the annotations have no blendshapes: infer's --neutralise will not work with these weights")
            return
        fit.basis().save(self.folder / EXPRESSION_FILE)

    def reader(self, columns: Sequence[str], split: str = "train", *, speech: bool = True) -> ShardReader:
        """Open the clips of a split, in the annotation version that the run began with.

        Args:
            columns: Annotation columns to read.
            split: Name of the split.
            speech: Whether only clips with speech are taken.

        Raises:
            ValueError: The data set has changed since, or lacks a column.
        """
        reader = self._open(self.statistics.version, tuple(columns), split, speech=speech)
        index = reader.manifest.annotation(reader.version).index
        if index != self.statistics.index:
            raise ValueError(
                f"{reader.storage.uri} has changed since this run began (index {index} instead of"
                f" {self.statistics.index}), so it cannot go on as it was: start another RUN"
            )
        return reader

    @functools.cached_property
    def speakers(self) -> Speakers:
        """Training speakers."""
        return Speakers.load(self.folder)

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Statistics of the training clips.

        Raises:
            ValueError: Their file is damaged.
        """
        path = self.folder / STATISTICS_FILE
        value = read_json(path)
        try:
            found = from_json(Statistics, value)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; take another RUN") from error
        if {len(numbers) for numbers in (found.pose_mean, found.pose_std, found.pose_step_p99)} != {6}:
            raise ValueError(f"{path} is damaged: a pose has six numbers; take another RUN")
        return found

    def neutral_meshes(self, keys: Sequence[str]) -> torch.Tensor:
        """Neutral mesh of the speaker of each training clip, `[B, 468, 3]` in cm."""
        return self._neutral[self.identities(keys)]

    def identities(self, keys: Sequence[str]) -> list[int]:
        """Number of the speaker of each training clip."""
        return [self._clips[key][0] for key in keys]

    def rest_poses(self, keys: Sequence[str]) -> list[np.ndarray]:
        """Rest pose of each training clip, `[4, 4]` each, canonical → camera."""
        return [self._clips[key][1] for key in keys]

    def speech_levels(self, keys: Sequence[str]) -> torch.Tensor:
        """Mean and variance of the whole audio of each training clip, `[B, 2]` float32."""
        return self._levels[[self._numbers[key] for key in keys]]

    def export(self, folder: Path) -> None:
        """Copy what inference needs next to the weights: the speakers, and the expression basis where there is one."""
        for name in (SPEAKERS_FILE, READABLE_FILE, EXPRESSION_FILE):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)

    @functools.cached_property
    def _table(self) -> pa.Table:
        path = self.folder / CLIPS_FILE
        table = read_table(read_limited(path, _CLIPS_BYTES, "table of clips"), str(path), _check_schema)
        lengths = table.column("rest").combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
        if any(column.null_count for column in table.columns) or (lengths != 16).any():
            raise ValueError(f"{path} is damaged: a clip lacks a value; take another RUN")
        return table

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self._table.column("key").to_pylist())}

    @functools.cached_property
    def _levels(self) -> torch.Tensor:
        columns = (self._table.column(name).to_numpy() for name in ("speech_mean", "speech_variance"))
        return torch.from_numpy(np.stack([*columns], axis=1).astype(np.float32))

    @functools.cached_property
    def _clips(self) -> dict[str, tuple[int, np.ndarray]]:
        table = self._table
        names = table.column("speaker").to_pylist()
        rests = np.array(table.column("rest").to_pylist(), np.float64).reshape(-1, 4, 4)
        # Clips are matched to speakers by name: the numbers are those of the exported model, too.
        known = self.speakers
        numbers = [known.identity(name) if name in known else 0 for name in names]  # without a face: masked anyway
        return dict(zip(table.column("key").to_pylist(), zip(numbers, rests, strict=True), strict=True))

    @functools.cached_property
    def _neutral(self) -> torch.Tensor:
        return torch.from_numpy(np.stack([speaker.neutral.mesh for speaker in self.speakers.values()]))

    def _open(self, version: str | None, columns: tuple[str, ...], split: str, *, speech: bool = True) -> ShardReader:
        return ShardReader(
            Storage(self.config.data),
            version=version,
            split=split,
            columns=columns,
            at_most=SPEECH if speech else None,
            persons=self.config.persons if split == "train" else (),
        )


def _check_schema(schema: pa.Schema) -> None:
    if {name: schema.field(name).type for name in schema.names} != _CLIPS_SCHEMA:
        raise ValueError(f"a run's {CLIPS_FILE} has other columns: take another RUN")


def _by_speaker(reader: ShardReader, progress: Progress) -> Iterator[Sample]:
    """All samples, sorted by speaker, so that meshes of one speaker only are kept at a time."""
    order = sorted(range(len(reader)), key=lambda number: (reader[number].index.speaker, number))
    for done, number in enumerate(order):
        progress("read the training clips", done, len(order))
        yield reader[number]


def _look_at(
    name: str, samples: Iterable[Sample], poses: _PoseStatistics, rows: list[dict[str, object]]
) -> Speaker | None:
    """Speaker of these clips, None without a face; adds them to the statistics and to the rows of `CLIPS_FILE`."""
    estimator, mean = NeutralEstimator(), _Mean()
    for sample in samples:
        valid = sample.annotation("valid").astype(bool)
        # A clip without a face keeps this pose; all its frames are masked in training.
        rest = np.eye(4)
        if valid.any():
            mesh = sample.annotation("mesh")
            estimator.add(mesh, sample.annotation("blendshapes"), valid)
            mean.add(mesh[valid])
            matrices = sample.annotation("pose_matrix")
            rest = clip_rest_pose(matrices, valid)
            poses.add(matrices, valid)
        # Inference normalises whole recordings, so the level of the whole clip is kept for its windows.
        audio = sample.audio()
        rows.append(
            {
                "key": sample.key,
                "speaker": name,
                "rest": rest.reshape(16).tolist(),
                "speech_mean": float(audio.mean(dtype=np.float64)),
                "speech_variance": float(audio.var(dtype=np.float64)),
            }
        )
    if not mean.count:
        return None
    neutral = estimator.result()
    # The mean offset from the neutral mesh is a baseline of validation.
    offset = (mean.sum / mean.count - neutral.mesh).astype(np.float32)
    return Speaker(name=name, neutral=neutral, mean_offset=offset, num_frames=mean.count)


class _Mean:
    """Mean mesh over any number of frames, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = np.zeros((468, 3))

    def add(self, mesh: np.ndarray) -> None:
        self.count += len(mesh)
        self.sum += mesh.sum(axis=0, dtype=np.float64)


class _PoseStatistics:
    """Collector of the poses of clips.

    Args:
        origin: Origin of the poses: the median pose of each clip, or its first frame with a face.
    """

    def __init__(self, origin: Literal["rest", "first"]) -> None:
        self.origin: Literal["rest", "first"] = origin
        self.clips = 0
        self.poses: list[np.ndarray] = []
        self.steps: list[np.ndarray] = []

    def add(self, matrices: np.ndarray, valid: np.ndarray) -> None:
        """Add a clip with a face: pose matrices `[F, 4, 4]` canonical → camera, and validity `[F]` bool."""
        pose = relative_pose(matrices, pose_origin(matrices, valid, self.origin))
        self.clips += 1
        self.poses.append(pose[valid].astype(np.float32))
        # A step counts only if both of its frames show a face.
        self.steps.append(np.abs(np.diff(pose, axis=0))[valid[1:] & valid[:-1]].astype(np.float32))

    def result(self, reader: ShardReader) -> Statistics:
        """Statistics of all clips that were added.

        Args:
            reader: Reader of the clips.

        Raises:
            ValueError: No clip was added.
        """
        if not self.clips:
            raise ValueError(f"no training clip of {reader.storage.uri} has a face: look at make report")
        # [N, 6] each. The lower bound keeps the scale of a motionless data set from dividing by 0.
        poses, steps = np.concatenate(self.poses), np.concatenate(self.steps)
        std = np.maximum(poses.std(axis=0, dtype=np.float64), 1e-3)
        step = np.percentile(steps, 99, axis=0) if len(steps) else np.zeros(6)
        return Statistics(
            version=reader.version,
            index=reader.manifest.annotation(reader.version).index,
            num_clips=self.clips,
            num_frames=len(poses),
            pose_mean=tuple(poses.mean(axis=0, dtype=np.float64).tolist()),
            pose_std=tuple(std.tolist()),
            pose_step_p99=tuple(step.tolist()),
        )
