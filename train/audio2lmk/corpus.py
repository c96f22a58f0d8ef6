"""What the trainings from speech derive from the data once: speakers, rest poses, statistics.

One pass over the training clips' annotations and audio (not their video), speaker after speaker. The result is pinned
in the run's folder together with the index it was made from, so that a resumed run works with the very same samples or
says that they have changed.
"""

from __future__ import annotations

import functools
import itertools
import json
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
from talkinghead.files.storage import Storage
from talkinghead.motion.expression import EXPRESSION_FILE, ExpressionFit
from talkinghead.motion.neutral import NeutralEstimator
from talkinghead.motion.rest_pose import clip_rest_pose, pose_origin, relative_pose
from talkinghead.motion.speakers import FILE as SPEAKERS_FILE
from talkinghead.motion.speakers import READABLE_FILE, Speaker, Speakers
from talkinghead.provenance import pretty_json
from talkinghead.runtime.progress import Progress

log = logging.getLogger(__name__)

COLUMNS = ("mesh", "pose_matrix", "blendshapes", "valid")
CLIPS_FILE = "clips.parquet"
STATISTICS_FILE = "statistics.json"
MOST_EXPRESSION_CLIPS = 500
"""The expression basis is fitted on so many clips at most, spread evenly: it has few numbers for so many frames."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which clips."""

    data: str
    """Folder or URI."""
    persons: tuple[str, ...] = ()
    annotation: str | None = None
    pose_origin: Literal["rest", "first"] = "rest"
    """What the statistics of the poses are about: each clip's median pose, or its first frame with a face."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Poses of the training clips in numbers, and which data they are of."""

    version: str
    """Annotation version."""
    index: str
    """File of the index; its name holds the hash of its content."""
    num_clips: int
    num_frames: int
    """Frames with a face."""
    pose_mean: tuple[float, ...]
    """Six means about `CorpusConfig.pose_origin`, degrees and cm."""
    pose_std: tuple[float, ...]
    """Six standard deviations, degrees and cm."""
    pose_step_p99: tuple[float, ...]
    """Six 99th percentiles of the change from one frame to the next."""


class Corpus:
    """The training clips of a run.

    Args:
        config: Which clips.
        folder: Where the derived files lie; `derive` makes them, everything else needs them.
    """

    def __init__(self, config: CorpusConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder

    def check(self) -> ShardReader:
        """The training clips that `derive` looks at.

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
        with Progress() as progress:
            for name, samples in itertools.groupby(_by_speaker(reader, progress), lambda sample: sample.index.speaker):
                if (speaker := _look_at(name, samples, poses, rows)) is not None:
                    found.append(speaker)
            speakers = Speakers(found)
            speakers.save(self.folder)
            self._derive_expression(reader, speakers, progress)
        pq.write_table(pa.Table.from_pylist(rows), self.folder / CLIPS_FILE)
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
        """The clips of a split, of the annotation version that the run began with.

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
        """The training speakers."""
        return Speakers.load(self.folder)

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Statistics of the training clips."""
        return from_json(Statistics, json.loads((self.folder / STATISTICS_FILE).read_bytes()))

    def neutral_meshes(self, keys: Sequence[str]) -> torch.Tensor:
        """Neutral mesh of each training clip's speaker, `[B, 468, 3]` cm."""
        return self._neutral[self.identities(keys)]

    def identities(self, keys: Sequence[str]) -> list[int]:
        """Number of each training clip's speaker."""
        return [self._clips[key][0] for key in keys]

    def rest_poses(self, keys: Sequence[str]) -> list[np.ndarray]:
        """Rest pose of each training clip, `[4, 4]` canonical → camera."""
        return [self._clips[key][1] for key in keys]

    def speech_levels(self, keys: Sequence[str]) -> torch.Tensor:
        """Mean and variance of each training clip's whole audio, `[B, 2]` float32."""
        return self._levels[[self._numbers[key] for key in keys]]

    def export(self, folder: Path) -> None:
        """Copy what inference needs next to the weights: the speakers and the expression basis, where there is one."""
        for name in (SPEAKERS_FILE, READABLE_FILE, EXPRESSION_FILE):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)

    @functools.cached_property
    def _table(self) -> pa.Table:
        return pq.read_table(self.folder / CLIPS_FILE)

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


def _by_speaker(reader: ShardReader, progress: Progress) -> Iterator[Sample]:
    """All samples, one speaker's after the other's, so that no more than one speaker's meshes are kept."""
    order = sorted(range(len(reader)), key=lambda number: (reader[number].index.speaker, number))
    for done, number in enumerate(order):
        progress("look at the training clips", done, len(order))
        yield reader[number]


def _look_at(
    name: str, samples: Iterable[Sample], poses: _PoseStatistics, rows: list[dict[str, object]]
) -> Speaker | None:
    """One speaker of all his clips, None without a face; adds to the statistics and to the rows of `CLIPS_FILE`."""
    estimator, mean = NeutralEstimator(), _Mean()
    for sample in samples:
        valid = sample.annotation("valid").astype(bool)
        rest = np.eye(4)
        if valid.any():
            mesh = sample.annotation("mesh")
            estimator.add(mesh, sample.annotation("blendshapes"), valid)
            mean.add(mesh[valid])
            matrices = sample.annotation("pose_matrix")
            rest = clip_rest_pose(matrices, valid)
            poses.add(matrices, valid)
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
    offset = (mean.sum / mean.count - neutral.mesh).astype(np.float32)
    return Speaker(name=name, neutral=neutral, mean_offset=offset, num_frames=mean.count)


class _Mean:
    """Mean mesh over any number of frames."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = np.zeros((468, 3))

    def add(self, mesh: np.ndarray) -> None:
        self.count += len(mesh)
        self.sum += mesh.sum(axis=0, dtype=np.float64)


class _PoseStatistics:
    """Collects the poses of clips.

    Args:
        origin: What they are about: each clip's median pose, or its first frame with a face.
    """

    def __init__(self, origin: Literal["rest", "first"]) -> None:
        self.origin: Literal["rest", "first"] = origin
        self.clips = 0
        self.poses: list[np.ndarray] = []
        self.steps: list[np.ndarray] = []

    def add(self, matrices: np.ndarray, valid: np.ndarray) -> None:
        """Look at a clip with a face: `[F, 4, 4]` canonical → camera, `[F]` bool."""
        pose = relative_pose(matrices, pose_origin(matrices, valid, self.origin))
        self.clips += 1
        self.poses.append(pose[valid].astype(np.float32))
        self.steps.append(np.abs(np.diff(pose, axis=0))[valid[1:] & valid[:-1]].astype(np.float32))

    def result(self, reader: ShardReader) -> Statistics:
        """Statistics of all clips so far.

        Args:
            reader: Where the clips are from.

        Raises:
            ValueError: There was none.
        """
        if not self.clips:
            raise ValueError(f"no training clip of {reader.storage.uri} has a face: look at make report")
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
