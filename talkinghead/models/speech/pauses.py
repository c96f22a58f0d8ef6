"""Frames of a sound in which somebody speaks, by the network of speech activity.

The sound is brought to one level first, since a quiet recording would pass for silence. Words fade, and the network is
unsure of their ends: once there is speech, it lasts until the probability falls below `_ENDS`, as in the network's own
program (Silero VAD, `get_speech_timestamps`: threshold 0.5, negative threshold 0.35), and `HANGOVER_S` longer.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from talkinghead.models.speech.activity import PIECE, at_one_level, load_speech_activity
from talkinghead.models.speech.activity_weights import find_activity_weights
from talkinghead.timebase import SAMPLE_RATE

HANGOVER_S = 0.1
"""Time by which speech begins earlier and ends later than the network says, seconds: lips part before they sound."""
_BEGINS, _ENDS = 0.5, 0.35


def speech_active(samples: np.ndarray, fps: float, count: int, *, weights: Path | None = None) -> np.ndarray:
    """Frames in which somebody speaks.

    Args:
        samples: Mono sound at 16 kHz, `[N]`; what is beyond its end is silent.
        fps: Frame rate.
        count: Number of frames F.
        weights: File of the network's weights; None: found or fetched, see `activity_weights`.

    Returns:
        `[F]` bool.

    Raises:
        ValueError: The weights are damaged or of another network.
        UnreachableError: They are nowhere on this machine and cannot be fetched; the message names the command that
            fetches them.
    """
    return frames_of_speech(speech_probability(samples, weights=weights), fps, count)


def speech_probability(samples: np.ndarray, *, weights: Path | None = None) -> np.ndarray:
    """Probability of speech in each piece of `PIECE` samples, `[P]` float64; arguments as `speech_active`."""
    network = load_speech_activity(find_activity_weights() if weights is None else weights)
    with torch.inference_mode():
        return network(torch.from_numpy(at_one_level(samples))).double().numpy()


def frames_of_speech(probability: np.ndarray, fps: float, count: int) -> np.ndarray:
    """Frames in which somebody speaks, by the probability of each piece of `PIECE` samples.

    Args:
        probability: `[P]`, 0 … 1.
        fps: Frame rate.
        count: Number of frames F.

    Returns:
        `[F]` bool: frames that overlap speech, or what is within `HANGOVER_S` of it.
    """
    active = np.zeros(count, bool)
    begin: int | None = None
    # A piece more, of silence, ends the last stretch of speech.
    for number, value in enumerate([*probability, 0.0]):
        if begin is None and value >= _BEGINS:
            begin = number
        elif begin is not None and value < _ENDS:
            first = begin * PIECE / SAMPLE_RATE - HANGOVER_S
            last = number * PIECE / SAMPLE_RATE + HANGOVER_S
            active[max(0, math.floor(first * fps)) : max(0, math.ceil(last * fps))] = True
            begin = None
    return active
