"""Scores on the disk, a file for each subject and clip, so that an evaluation that was stopped goes on.

Next to the scores lie some frames of the take, for people.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infer.evaluation.clip_scores import Scores
from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import read_json, read_limited
from talkinghead.media.image_size import resize_image
from talkinghead.provenance import pretty_json
from talkinghead.schema import check_key

FORMAT = 1
"""Number of the form of the files; those with another one are made again."""
SHEET_COLUMNS = 8
"""Number of frames of each take that are kept as images, spread over the clip."""
_TILE = 112  # pixels of the longer side of a kept image
_JPEG = 88  # its quality
_MOST_BYTES = 8 << 20  # of a kept strip


def strip_of(video: np.ndarray) -> bytes:
    """Frames from all over a video next to each other, as one JPEG of some kilobytes."""
    frames = np.unique(np.linspace(0, len(video) - 1, SHEET_COLUMNS).round().astype(int))
    height, width = video.shape[1:3]
    scale = _TILE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    row = np.hstack([resize_image(np.ascontiguousarray(video[frame]), *size) for frame in frames])
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(row, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG])
    assert done
    return encoded.tobytes()


@dataclass(frozen=True, kw_only=True)
class KeptScores:
    """Scores of a subject's takes of one clip."""

    frames: int
    """Number of measured frames of the clip."""
    seeds: Mapping[int, Scores]
    """Seed → scores."""


class ScoreFolder:
    """Scores of an evaluation; a file of them counts where it was made of the same weights, data and settings.

    Args:
        folder: Folder of the files; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, subject: str, key: str, made_of: str) -> KeptScores | None:
        """Scores of a subject's clip; None where there are none, or they were made of something else."""
        path = self._path(subject, key, ".json")
        try:
            found = read_json(path)
            if found["format"] != FORMAT or found["made_of"] != made_of:
                return None
            seeds = {
                int(seed): Scores(values=_numbers(entry["values"]), reasons=dict(entry["reasons"]))
                for seed, entry in found["seeds"].items()
            }
            return KeptScores(frames=int(found["frames"]), seeds=seeds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Whatever the file is, it can be made again.
            return None

    def keep(
        self, subject: str, key: str, made_of: str, scores: Mapping[int, Scores], *, frames: int, strip: bytes
    ) -> None:
        """Write scores, and before them the frames of the first seed: scores that are there have their frames.

        Args:
            subject: Name of the subject.
            key: Key of the clip.
            made_of: Hash of what decides the scores.
            scores: Seed → scores.
            frames: Number of measured frames.
            strip: Frames, as `strip_of` makes them.
        """
        seeds = {
            str(seed): {"values": dict(entry.values), "reasons": dict(entry.reasons)} for seed, entry in scores.items()
        }
        write_whole(self._path(subject, key, ".jpg"), strip)
        about = {"format": FORMAT, "made_of": made_of, "subject": subject, "clip": key, "frames": frames}
        write_whole(self._path(subject, key, ".json"), pretty_json(about | {"seeds": seeds}))

    def strip(self, subject: str, key: str) -> bytes | None:
        """Frames of a subject's clip as a JPEG; None where there are none."""
        try:
            return read_limited(self._path(subject, key, ".jpg"), _MOST_BYTES, "frames")
        except FileNotFoundError:
            return None

    def _path(self, subject: str, key: str, suffix: str) -> Path:
        # Names of pairs hold what users call their folders: readable, and apart by a hash.
        readable = re.sub(r"[^A-Za-z0-9]+", "-", subject).strip("-")[:60]
        apart = hashlib.sha256(subject.encode()).hexdigest()[:8]
        return self._folder / f"{readable}-{apart}" / f"{check_key(key)}{suffix}"


def _numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Values out of JSON; `TypeError` for anything but numbers."""
    for value in values.values():
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"{value!r:.40} is no number")
    return {name: None if value is None else float(value) for name, value in values.items()}
