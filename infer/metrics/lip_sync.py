"""Lip sync: how well lips and sound fit, by a network that embeds both (SyncNet)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from infer.metrics.face_reading import SIDE, aligned_faces
from infer.metrics.registry import Clip, Unavailable
from infer.metrics.scripted_model import ScriptedModel
from talkinghead.timebase import FPS, SAMPLES_PER_FRAME

FRAMES = 5
"""Frames in one excerpt, the network's input: 0.2 s."""
MOST_OFFSET = 15
"""Largest offset between lips and sound that is tried in either direction, in frames."""


@dataclass(frozen=True, kw_only=True)
class SyncScore:
    """Lip sync of one clip; distances are between embeddings."""

    confidence: float
    """Median minus least distance over the offsets (LSE-C)."""
    distance: float
    """Least distance over the offsets (LSE-D)."""
    offset: float
    """Offset with the least distance, in frames; above 0 the lips come late."""


def sync_score(clip: Clip, model: ScriptedModel, batch: int) -> SyncScore:
    """Lip sync of one clip, from the distances between embeddings of lips and of sound at every offset.

    For each offset the distance is averaged over the excerpts; the least of these is the distance (LSE-D), the median
    minus the least is the confidence (LSE-C). Source: Chung and Zisserman, "Out of Time", 2016; the two errors as
    Prajwal et al. (Wav2Lip, 2020) report them.

    Args:
        clip: Clip with audio, asked_landmarks and predicted_video, at 25 fps.
        model: Network that embeds lips and sound.
        batch: Excerpts that go through the network at once.

    Raises:
        Unavailable: Something is missing, or the clip is too short.
        ValueError: The network fails, or returns something else than embeddings.
    """
    if clip.audio is None or clip.asked_landmarks is None or clip.predicted_video is None:
        raise Unavailable("needs audio and asked_landmarks and predicted_video")
    if clip.fps != FPS:
        raise Unavailable(f"the clip is not at {FPS:g} frames per second")
    # Embed lips and sound of every excerpt of five frames.
    starts = _starts(clip.valid)
    mouths = lower_halves(clip)  # [F, 112, 112, 3]
    lips, sounds = [], []
    for at in range(0, len(starts), batch):
        some = starts[at : at + batch]
        seen = np.stack([mouths[start : start + FRAMES] for start in some])  # [N, 5, 112, 112, 3]
        sound = np.stack([_sound(clip.audio, start) for start in some])  # [N, 3200]
        # Lips [N, 5, 112, 112, 3] → [N, 5, 3, 112, 112].
        pair = model.pair(np.ascontiguousarray(np.moveaxis(seen, 4, 2)).astype(np.float32) / 255, sound)
        lips.append(pair[0])
        sounds.append(pair[1])
    return _score(np.concatenate(lips), np.concatenate(sounds), starts)


def lower_halves(clip: Clip) -> np.ndarray:
    """Lower half of the aligned face of every frame, stretched to the full square: `[F, 112, 112, 3]` uint8.

    Aligned by the landmarks asked for, so that a generated face need not be found. Frames that are not measured are
    black.
    """
    assert clip.predicted_video is not None
    assert clip.asked_landmarks is not None
    halves = np.zeros((len(clip.valid), SIDE, SIDE, 3), np.uint8)
    faces = aligned_faces(clip.predicted_video[clip.valid], clip.asked_landmarks[clip.valid])
    # [56, 112, 3] → [112, 112, 3]: the network takes squares.
    for frame, face in zip(np.flatnonzero(clip.valid), faces, strict=True):
        halves[frame] = cv2.resize(face[SIDE // 2 :], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return halves


def _starts(valid: np.ndarray) -> np.ndarray:
    """First frames of the excerpts: wherever five measured frames follow one another."""
    if len(valid) < FRAMES:
        raise Unavailable(f"the clip has fewer than {FRAMES} frames")
    whole = np.lib.stride_tricks.sliding_window_view(valid, FRAMES).all(axis=1)  # [F - 4]
    starts = np.flatnonzero(whole)
    # With 31 starts in a row, the largest offset is still averaged over 16 pairs.
    if len(starts) <= 2 * MOST_OFFSET:
        raise Unavailable(f"the clip is too short to shift it by {MOST_OFFSET} frames to each side")
    return starts


def _sound(audio: np.ndarray, start: int) -> np.ndarray:
    """Audio samples `[3200]` of the five frames from `start` on; silence after the end."""
    samples = np.zeros(FRAMES * SAMPLES_PER_FRAME, np.float32)
    there = audio[start * SAMPLES_PER_FRAME : (start + FRAMES) * SAMPLES_PER_FRAME]
    samples[: len(there)] = there
    return samples


def _score(lips: np.ndarray, sounds: np.ndarray, starts: np.ndarray) -> SyncScore:
    """Score from embeddings of lips and sounds `[N, D]`, whose excerpts begin at the frames `starts` `[N]`."""
    row_of = {int(start): row for row, start in enumerate(starts)}
    means = {}
    # Lips of each frame against the sound `offset` frames before it; pairs that one side lacks are left out.
    for offset in range(-MOST_OFFSET, MOST_OFFSET + 1):
        pairs = [(row, row_of[start - offset]) for start, row in row_of.items() if start - offset in row_of]
        if pairs:
            seen, with_sound = np.array(pairs).T
            means[offset] = float(np.linalg.norm(lips[seen] - sounds[with_sound], axis=1).mean())
    # The median is over all offsets: with some missing, the confidence would not compare with that of other clips.
    if len(means) < 2 * MOST_OFFSET + 1:
        raise Unavailable(f"too few frames have a partner {MOST_OFFSET} frames away")
    best = min(means, key=lambda offset: (means[offset], abs(offset)))
    return SyncScore(
        confidence=float(np.median(list(means.values()))) - means[best], distance=means[best], offset=float(best)
    )
