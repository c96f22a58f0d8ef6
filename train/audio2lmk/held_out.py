"""Held-out windows of speech: as those that are trained on, with what the run has derived of training clips alone.

Dimensions: F frames of a window, 468 vertices of the mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from shards.loader import WindowDataset
from shards.microbatches import Share
from shards.reader import Sample
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.rest_pose import clip_rest_pose
from talkinghead.motion.speakers import Speakers, identity_of
from train.task import Batch

MotionKind = Literal["mesh", "pose"]


def of_clips(batch: Batch, name: str, derived: Callable[[list[str]], Any]) -> Any:
    """What is known about the clips of a batch: out of the batch, if they are held out, else what the run has derived.

    Args:
        batch: Batch.
        name: Name that a held-out item has for it.
        derived: Function from the keys of training clips.
    """
    return batch[name] if name in batch else derived(batch["keys"])


class HeldOutWindows:
    """Items of a data set of windows, each with `speech_levels` `[2]`, mean and variance of the clip's audio; and, by
    the kind of motion, `neutral` `[468, 3]`, or `rest` `[4, 4]` and `identity`.

    The neutral mesh and the rest pose are estimated from the clip, as validation does it; a person that the training
    has not seen has the identity 0.

    Args:
        dataset: Windows of held-out clips.
        kind: Kind of motion.
        speakers: Speakers that are trained on.
        identities: Number of rows of the identity embedding.
    """

    def __init__(self, dataset: WindowDataset, kind: MotionKind, speakers: Speakers, identities: int = 1) -> None:
        self.dataset, self.kind, self.speakers, self.identities = dataset, kind, speakers, identities

    def __len__(self) -> int:
        return len(self.dataset)

    def key(self, at: int | Share) -> str:
        """Key of the sample of a slot."""
        return self.dataset.key(at)

    def __getitem__(self, slot: int) -> dict[str, Any]:
        """Item of a slot."""
        _, position = self.dataset.order.at(slot)
        sample = self.dataset.reader[int(self.dataset.samples[position])]
        audio = sample.audio()
        levels = torch.tensor([audio.mean(dtype=np.float64), audio.var(dtype=np.float64)], dtype=torch.float32)
        return self.dataset[slot] | {"speech_levels": levels} | self._of_face(sample)

    def _of_face(self, sample: Sample) -> dict[str, Any]:
        valid = sample.annotation("valid").astype(bool)
        if self.kind == "mesh":
            neutral = np.zeros((NUM_VERTICES, 3), np.float32)  # without a face no frame counts
            if valid.any():
                neutral = neutral_mesh(sample.annotation("mesh"), sample.annotation("blendshapes"), valid).mesh
            return {"neutral": torch.from_numpy(neutral)}
        rest = clip_rest_pose(sample.annotation("pose_matrix"), valid) if valid.any() else np.eye(4)
        identity = identity_of(sample.index.speaker, self.speakers, self.identities)
        return {"rest": torch.from_numpy(rest), "identity": identity}
