"""Signatures of clips: a few hundred bytes by which the same recording is found again, encoded anew or renamed.

    movement  for each step of `detect_every` frames, 32 bits: the signs of the lowest frequencies of what changed in
              the image since the step before. Movement tells moments apart that look alike, as one speaker's do.
    sound     every 64 ms, 32 bits: whether the differences between 33 neighbouring bands from 300 to 2000 Hz rose or
              fell since the step before (Haitsma and Kalker, ISMIR 2002). Quiet steps have none.

Both are made of what ingest has at hand: the reduced frames that faces are searched in, and a piece's sound. Images
are compared from the beginning of the clip, sounds at any offset, so a part of a recording is found by its sound.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from talkinghead.timebase import SAMPLE_RATE

HOP = 1024
"""Samples from one word of sound to the next."""

_SIDE = 32  # pixels of the image whose changes are looked at
_MOST_STEPS = 128  # of an image: 26 seconds at the default distance of detections
_MOST_WORDS = 4096  # of a piece's sound, far more than a piece has
_WINDOW = 6 * HOP  # samples that a word of sound is made of
_EDGES_HZ = np.geomspace(300.0, 2000.0, 34)  # of the bands
_QUIET = 0.03  # of the piece's loud steps (amplitude), below which a step counts as silence
_SILENT = 1e-3  # amplitude of full scale below which everything does
_LEAST_CHANGE = 0.4  # levels: mean change of the image in a step from which its signs are more than noise
# The lowest frequencies in the order of their sum, without the constant one.
_LOWEST = sorted(((u, v) for u in range(8) for v in range(8) if u + v), key=lambda uv: (sum(uv), uv))[:32]
_ROWS, _COLUMNS = np.array(_LOWEST).T


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Signature of one clip. A word of 0 says nothing."""

    step_frames: int
    """Frames from one word of the image to the next."""
    movement: np.ndarray
    """Words of what changes in the image, from the clip's first frame on, uint32 `[steps]`."""
    sounds: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Key of a piece → words of its sound, uint32 `[steps]`."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back into an equal signature."""
        sounds = {key: _packed(words) for key, words in self.sounds.items()}
        return {"step_frames": self.step_frames, "movement": _packed(self.movement), "sounds": sounds}

    @classmethod
    def from_json(cls, value: Any) -> Signature:
        """Inverse of `to_json`; raises `ValueError` for anything else."""
        try:
            step_frames, sounds = value["step_frames"], value["sounds"].items()
            if type(step_frames) is not int or step_frames < 1:
                raise ValueError
            return cls(
                step_frames=step_frames,
                movement=_unpacked(value["movement"], _MOST_STEPS),
                sounds={key: _unpacked(words, _MOST_WORDS) for key, words in sounds},
            )
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ValueError("it is no signature of a clip") from None


def _packed(words: np.ndarray) -> str:
    return base64.b64encode(words.astype("<u4").tobytes()).decode()


def _unpacked(text: str, most: int) -> np.ndarray:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if len(data) % 4 or len(data) > 4 * most:
        raise ValueError(f"{len(data)} bytes")
    return np.frombuffer(data, "<u4").astype(np.uint32)


class MovementSigner:
    """Makes the words of an image, from one view of it after the other."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._words: list[int] = []

    def add(self, view: np.ndarray) -> None:
        """Take in the next view.

        Args:
            view: The frame or a part of it, RGB uint8 `[H, W, 3]`, of the same place each time.
        """
        import cv2  # here only: planning a job imports this module

        if len(self._words) == _MOST_STEPS:
            return
        # One channel of fractions: fast, and a mean over many pixels is not rounded to whole levels.
        whole = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(np.float32)
        grey = cv2.resize(whole, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        if self._last is not None:
            change = grey - self._last
            signs = cv2.dct(change)[_ROWS, _COLUMNS] > 0
            self._words.append(int(_words(signs[None])[0]) if np.abs(change).mean() >= _LEAST_CHANGE else 0)
        self._last = grey

    @property
    def words(self) -> np.ndarray:
        """Words of all changes so far, uint32 `[steps]`."""
        return np.array(self._words, np.uint32)


def sound_words(samples: np.ndarray) -> np.ndarray:
    """Words of a sound at 16 kHz.

    Args:
        samples: Amplitudes from -1 to 1, `[N]`.

    Returns:
        A word for each `HOP` samples, uint32 `[steps]`; 0 where it is quiet.
    """
    count = min((len(samples) - _WINDOW) // HOP + 1, _MOST_WORDS + 1)
    if count < 2:
        return np.zeros(0, np.uint32)
    # The power of each band in each step: [steps, 33].
    edges = np.round(_EDGES_HZ * _WINDOW / SAMPLE_RATE).astype(int)
    window = np.hanning(_WINDOW).astype(np.float32)
    powers, levels = np.empty((count, len(edges) - 1)), np.empty(count)
    for step in range(count):
        part = samples[step * HOP : step * HOP + _WINDOW].astype(np.float32)
        levels[step] = np.sqrt(np.mean(part**2))
        spectrum = np.abs(np.fft.rfft(part * window)) ** 2
        powers[step] = np.add.reduceat(spectrum, edges)[:-1]
    differences = np.diff(powers, axis=1)
    words = _words(np.diff(differences, axis=0) > 0)
    loud = levels > max(_SILENT, _QUIET * float(np.quantile(levels, 0.9)))
    return np.where(loud[1:] & loud[:-1], words, 0).astype(np.uint32)


def _words(bits: np.ndarray) -> np.ndarray:
    """Bits `[N, 32]` as words `[N]`."""
    return np.packbits(bits, axis=1).view(">u4")[:, 0].astype(np.uint32)
