"""The user's speech: read and checked, with a warning when it is silent."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.memory_limit import GIGABYTE, memory_limit
from talkinghead.media.audio import SILENCE_PEAK, read_sound
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.provenance import hash_file
from talkinghead.timebase import SAMPLE_RATE

_BYTES_OF_A_SECOND = SAMPLE_RATE * 8  # twice the samples: they are copied where they begin late

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Speech at the rate of the models."""

    path: Path
    """File that the speech was read from."""
    samples: np.ndarray
    """Mono samples `[N]`, float32 at 16 kHz; N is at least 1."""
    peak: float
    """Largest absolute value of a sample; full scale is 1."""
    notes: tuple[str, ...] = ()
    """What is unusual about the sound of the file, a line each."""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def silent(self) -> bool:
        """Whether the peak is below `SILENCE_PEAK`, 60 dB below full scale."""
        return self.peak < SILENCE_PEAK


def read_speech(path: Path, *, seconds: float | None = None) -> Speech:
    """Read the audio of a file as mono at 16 kHz, by the same rules as ingest.

    Warns when it is silent, because the face will hardly move, and of what is unusual: channels that cancel, damage.

    Args:
        path: Audio file, or video file with sound.
        seconds: Longest length to keep, in seconds; None: all of it, up to two hours (`SOUND_SECONDS`).

    Raises:
        ValueError: The file is missing, empty, damaged, too long, or has no audio; the message names the file.
    """
    limit = GIGABYTE + (0 if seconds is None else math.ceil(seconds) * _BYTES_OF_A_SECOND)
    try:
        with memory_limit(f"the audio {path}", limit):
            sound = read_sound(path, seconds)
    except UnreadableMediaError as error:
        if error.cause != "too_long":
            raise
        raise UnreadableMediaError(
            error.cause, f"{error}: give --limit-seconds with the length that is wanted, or cut the file"
        ) from error
    except ValueError as error:
        raise ValueError(f"the audio of {path} is too short or cannot be read: {error}") from error
    samples = sound.samples
    if not len(samples):
        raise ValueError(f"the audio of {path} is shorter than one sample at {SAMPLE_RATE} Hz")

    # The peak of the part that is kept, which alone moves the face; without a copy of hours of speech.
    peak = max(float(samples.max()), -float(samples.min()))
    speech = Speech(path=path, samples=samples, peak=peak, notes=sound.notes)
    for note in speech.notes:
        log.warning("warning: the audio of %s: %s", path, note)
    if speech.silent:
        log.warning(
            "warning: the audio of %s is silent (peak %.5f of full scale): the mouth will hardly move",
            path,
            speech.peak,
        )
    return speech


def describe_speech(path: Path, speech: Speech) -> dict[str, Any]:
    """Entry for `inputs` of a sidecar."""
    entry = {"sha256": hash_file(path), "seconds": round(speech.duration_s, 6), "silent": speech.silent}
    return entry | ({"notes": list(speech.notes)} if speech.notes else {})
