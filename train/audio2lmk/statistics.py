"""Statistics of the head poses in the training clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards.reader import ShardReader
from talkinghead.motion.rest_pose import pose_origin, relative_pose


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of the training clips, and which data they are of."""

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


class PoseStatistics:
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
        """Of all clips so far.

        Args:
            reader: That they are of.

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
