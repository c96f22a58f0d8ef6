"""The user's speech: read, checked, and what is odd about it said."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from talkinghead.media.audio import SILENCE_PEAK, read_whole_audio
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.provenance import hash_file
from talkinghead.timebase import SAMPLE_RATE

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Speech as the models take it."""

    path: Path
    samples: np.ndarray
    """Float32 mono `[N]` at 16 kHz, at least one."""
    peak: float
    """Largest absolute sample; full scale is 1."""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def silent(self) -> bool:
        """Whether nothing can be heard in it."""
        return self.peak < SILENCE_PEAK


def read_speech(path: Path, *, seconds: float | None = None) -> Speech:
    """All audio of a file (of a video too) as mono 16 kHz. Silence is warned of: it gives a face that hardly moves.

    Args:
        path: File with sound.
        seconds: Keep no more than this.

    Raises:
        ValueError: It is missing, empty, damaged, or no audio; the message names the file.
    """
    try:
        samples = read_whole_audio(path)
    except UnreadableMediaError:
        raise
    except ValueError as error:
        raise ValueError(f"the audio of {path} is too short or cannot be read: {error}") from error
    if not len(samples):
        raise ValueError(f"the audio of {path} is shorter than one sample at {SAMPLE_RATE} Hz")
    if not np.isfinite(samples).all():
        raise ValueError(f"the audio of {path} holds values that are not finite: it is damaged")
    if seconds is not None:
        samples = samples[: max(1, math.ceil(min(seconds * SAMPLE_RATE, len(samples))))]
    speech = Speech(path=path, samples=samples, peak=float(np.abs(samples).max()))
    if speech.silent:
        log.warning(
            "warning: the audio of %s is silent (peak %.5f of full scale): the mouth will hardly move",
            path,
            speech.peak,
        )
    return speech


def describe_speech(path: Path, speech: Speech) -> dict[str, Any]:
    """The speech, for a sidecar's `inputs`."""
    return {"sha256": hash_file(path), "seconds": round(speech.duration_s, 6), "silent": speech.silent}
