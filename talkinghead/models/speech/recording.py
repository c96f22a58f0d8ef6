"""A recording that speech models go through window by window: its samples, and the moments that normalise each part.

Mean and variance are those of the whole recording, as the encoders were trained, so they are taken once, at the
beginning. After that no more than a window is needed at a time: the samples may lie in a file, and memory does not grow
with the length of the speech.
"""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np
import torch
from torch import Tensor

from talkinghead.models.speech.encoder import moments, standardise

_BYTES = 4  # of a sample, float32


class Recording:
    """Mono speech at 16 kHz.

    Args:
        samples: Float samples `[N]`.
        on_disk: Whether a scratch file holds them from now on, which has no name and vanishes with this object or the
            process; else they stay in memory.

    Raises:
        ValueError: No samples, another shape than `[N]`, or values that are not finite.
        OSError: The scratch file cannot be written (no space left, no permission).
    """

    def __init__(self, samples: np.ndarray, *, on_disk: bool = False) -> None:
        if samples.ndim != 1:
            raise ValueError(f"speech is mono samples [N], not an array {list(samples.shape)}")
        if not len(samples):
            raise ValueError("the speech has no samples")
        raw = np.ascontiguousarray(samples, np.float32)
        self._mean, self._variance = moments(torch.from_numpy(raw))
        if not torch.isfinite(self._variance).all():  # a single NaN or infinity makes it one
            raise ValueError("the speech holds samples that are not finite numbers")
        self._count = len(raw)
        self._held: np.ndarray | IO[bytes] = _scratch_file(raw) if on_disk else raw

    def __len__(self) -> int:
        return self._count

    def samples(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """Samples `first` … `end - 1`, float32 `[n]`, as they were given; fewer where the recording ends before."""
        end = self._count if end is None else min(end, self._count)
        if isinstance(self._held, np.ndarray):
            return self._held[first:end]
        self._held.seek(first * _BYTES)
        return np.fromfile(self._held, np.float32, max(0, end - first))

    def normalised(self, first: int, end: int) -> Tensor:
        """Samples `first` … `end - 1` as the encoders want them: mean 0 and variance 1 over the whole recording.

        What is beyond its end is left out.
        """
        return standardise(torch.from_numpy(self.samples(first, end)), self._mean, self._variance)


def _scratch_file(samples: np.ndarray) -> IO[bytes]:
    """Open file with the bytes of samples; its name is gone already where the system knows files without one."""
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the recording
        file.write(samples.data)
        file.flush()  # a full disk shows now, not when the samples are needed
    except OSError as error:
        place = tempfile.tempdir or "any temporary folder"  # `gettempdir` raises where none can be written
        text = f"cannot write the speech to {place}: {error.strerror or error}; TMPDIR names another folder"
        raise OSError(error.errno, text) from error
    return file
