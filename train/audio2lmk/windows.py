"""Windows of speech and motion as the losses take them, made where samples are read: a step works on its device alone.

What a window needs of its whole clip (loudness, neutral mesh, rest pose) comes from what the run has derived of its
training clips, or for a held-out clip from the clip itself; poses are made relative in float64; and what is drawn for a
window is drawn here.

Dimensions: F frames of a window, 468 vertices of the mesh, 6 numbers of a pose (degrees, cm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from shards.loader import Batch, WindowDataset
from shards.microbatches import Share
from shards.reader import Sample, ShardReader
from talkinghead import rng
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.rest_pose import clip_rest_pose, pose_origin, previous_poses, relative_pose
from talkinghead.motion.speakers import Speakers, identity_of
from train.audio2lmk.clip_table import ClipTable

MotionKind = Literal["mesh", "pose"]
Origin = Literal["rest", "first"]


# --- what is known about whole clips ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a window needs of its whole clip."""

    speech_levels: np.ndarray
    """Mean and variance of its audio, `[2]` float32."""
    neutral: np.ndarray | None = None
    """Neutral mesh of the speaker, `[468, 3]` float32 in cm; of meshes only."""
    rest: np.ndarray | None = None
    """Rest pose, `[4, 4]` float64 canonical → camera; of poses only."""
    identity: int = 0
    """Row of the speaker in the identity embedding."""


class FactsOf(Protocol):
    """Sample → facts about its clip."""

    def __call__(self, sample: Sample, /) -> Facts:
        """Facts about the clip of a sample."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainedFacts:
    """Facts about training clips, as the run has derived them."""

    clips: ClipTable
    neutral: np.ndarray | None
    """Neutral mesh of each speaker, `[S, 468, 3]`; None: windows are of poses."""
    identities: int
    """Number of rows of the identity embedding; with fewer than speakers, some share one."""

    def __call__(self, sample: Sample) -> Facts:
        """Facts about a training clip."""
        row = self.clips.row(sample.key)
        levels, speaker = self.clips.speech_levels[row], int(self.clips.identities[row])
        if self.neutral is not None:
            return Facts(speech_levels=levels, neutral=self.neutral[speaker])
        return Facts(speech_levels=levels, rest=self.clips.rest_poses[row], identity=speaker % self.identities)


@dataclass(frozen=True, kw_only=True)
class HeldOutFacts:
    """Facts about held-out clips, estimated from the clip as validation does it; an unknown person has identity 0."""

    kind: MotionKind
    speakers: Speakers
    """Speakers that are trained on."""
    identities: int
    """Number of rows of the identity embedding."""

    def __call__(self, sample: Sample) -> Facts:
        """Facts about a held-out clip."""
        audio = sample.audio()
        levels = np.array([audio.mean(dtype=np.float64), audio.var(dtype=np.float64)], np.float32)
        valid = sample.annotation("valid").astype(bool)
        if self.kind == "mesh":
            neutral = np.zeros((NUM_VERTICES, 3), np.float32)  # without a face no frame counts
            if valid.any():
                neutral = neutral_mesh(sample.annotation("mesh"), sample.annotation("blendshapes"), valid).mesh
            return Facts(speech_levels=levels, neutral=neutral)
        rest = clip_rest_pose(sample.annotation("pose_matrix"), valid) if valid.any() else np.eye(4)
        identity = identity_of(sample.speaker, self.speakers, self.identities)
        return Facts(speech_levels=levels, rest=rest, identity=identity)


# --- windows ----------------------------------------------------------------------------------------------------------


class SpeechWindows:
    """Items of a data set of windows, each with `speech_levels` `[2]`; and, by the kind of motion, `neutral`
    `[468, 3]`; or `pose` and `previous`, both float32 `[F, 6]`, and `identity`, in place of `pose_matrix`.

    `pose` is relative to the rest pose of the clip, or to the first one of the window, and 0 in frames without a face;
    `previous` is what the decoder sees before each frame, as in evaluations (`previous_poses`).

    Args:
        dataset: Windows of clips.
        facts: What is known about the clips.
        origin: Origin of poses.
    """

    def __init__(self, dataset: WindowDataset, facts: FactsOf, origin: Origin) -> None:
        self.dataset, self.facts = dataset, facts
        self.origin: Origin = origin
        self.reader, self.samples = dataset.reader, dataset.samples
        self.order, self.num_frames = dataset.order, dataset.num_frames

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def readers(self) -> tuple[ShardReader, ...]:
        """Readers of the samples."""
        return (self.reader,)

    def key(self, at: int | Share) -> str:
        """Key of the sample of a slot or share."""
        return self.dataset.key(at)

    def __getitem__(self, at: int | Share) -> Batch:
        """Item of a slot or share."""
        item = self.dataset[at]
        _, position = self.order.at(Share.of(at).slot)
        facts = self.facts(self.reader[int(self.samples[position])])
        item["speech_levels"] = torch.tensor(facts.speech_levels)
        if facts.rest is None:
            return item | {"neutral": torch.tensor(facts.neutral)}
        matrices, valid = item.pop("pose_matrix").numpy().astype(np.float64), item["valid"].numpy()
        pose, previous = _relative(matrices, valid, facts.rest, self.origin)
        return item | {
            "pose": torch.from_numpy(pose),
            "previous": torch.from_numpy(previous),
            "identity": facts.identity,
        }


def _relative(
    matrices: np.ndarray, valid: np.ndarray, rest: np.ndarray, origin: Origin
) -> tuple[np.ndarray, np.ndarray]:
    """Relative poses of a window, and the poses before each of them, `[F, 6]` float32 each.

    Args:
        matrices: Pose matrices, `[F, 4, 4]` float64: angles come out of products of matrices.
        valid: Frames with a face, `[F]` bool.
        rest: Rest pose of the whole clip, `[4, 4]`.
        origin: `first`: about the first pose of the window instead, as inference begins with its own.
    """
    if not valid.any():
        return np.zeros((len(valid), 6), np.float32), np.zeros((len(valid), 6), np.float32)
    matrices[~valid] = np.nan
    true = relative_pose(matrices, rest if origin == "rest" else pose_origin(matrices, valid, "first"))
    return np.nan_to_num(true).astype(np.float32), previous_poses(true).astype(np.float32)


# --- what is drawn ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SpeechDraws:
    """Drawing of the length of a window, a function of (seed, slot), so that the model meets speech of many lengths;
    see `shards.drawn.Draw`."""

    seed: int
    """Seed of the run."""
    min_frames: int | None
    """Smallest number of frames, up to F, to which a window is shortened; None: none is."""

    def __call__(self, item: Batch) -> dict[str, Any]:
        """The mask of an item, `[F]` bool, shortened; shapes stay, and so does the time that a step takes."""
        if self.min_frames is None:
            return {}
        mask: torch.Tensor = item["mask"]
        least = min(self.min_frames, len(mask))
        share = rng.uniform(self.seed, "window length", int(item["slot"]))
        return {"mask": mask & (torch.arange(len(mask)) < least + int(share * (len(mask) - least + 1)))}


@dataclass(frozen=True, kw_only=True)
class PoseDraws(SpeechDraws):
    """Drawing of the noise on the previous poses, too, else the decoder learns to copy and not to listen."""

    history_noise: float
    """Largest standard deviation of the noise, in standard deviations of the training poses; that of a window is drawn
    between 0 and this. 0: there is none."""
    pose_std: tuple[float, ...]
    """Standard deviations of the training poses, `[6]`."""

    def __call__(self, item: Batch) -> dict[str, Any]:
        """Mask, previous poses with noise, and `strong_noise`: whether it has at least half the largest deviation."""
        found = super().__call__(item)
        if not self.history_noise:
            return found
        # First the strength of the window, then its noise [F - 1, 6]. The zero that every window begins with stays:
        # inference begins with it, too.
        generator = rng.generator(self.seed, "history noise", int(item["slot"]))
        strength = generator.random()
        previous = item["previous"].clone()
        noise = strength * generator.standard_normal((len(previous) - 1, 6), np.float32)
        previous[1:] += torch.from_numpy(noise * self.history_noise * np.array(self.pose_std, np.float32))
        return found | {"previous": previous, "strong_noise": bool(np.float32(strength) >= 0.5)}
