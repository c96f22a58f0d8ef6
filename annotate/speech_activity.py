"""Speech activity of a clip: how likely somebody speaks in each frame, and how much else there is to be heard.

    speech_activity  [F]: probability of speech, 0 … 1, by Silero VAD (`talkinghead/models/speech/activity.py`)

The sound is brought to one level first, since a quiet recording would pass for silence: the 99.9th percentile of its
absolute samples becomes half of full scale (one loud click does not count), and what is louder is cut off. The network
says nothing about who speaks: reversed speech, several voices and a voice over music are speech to it.

The signal-to-noise ratio compares frames that speak with those that do not: power of the frames at or above the
threshold minus the noise, over the noise; the noise is the median power of the frames below half the threshold whose
neighbours are, too, since words fade into the ends of a pause. So it counts whatever sounds between the words, also
music, and is missing where there are fewer than 5 such frames (0.2 s). White noise put under 16 real recordings that
were 10 dB cleaner is found again within 0.7 dB at 0, 10 and 20 dB; of 19 clean recordings of 4 to 10 s, three have
pauses too short for it.

Storage: steps of 1/16384 (at most 0.00004 off).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talkinghead.column import Column
from talkinghead.derived import ColumnSample, Derived, DerivedColumn, Fit, Provenance
from talkinghead.provenance import hash_files
from talkinghead.timebase import SAMPLES_PER_FRAME

BUILT_IN = "silero-vad"
"""Weights that are found, or fetched, by themselves."""
MOST_SNR_DB = 80.0
"""Largest signal-to-noise ratio; pauses of digital silence have no noise at all."""
_LEAST_FRAMES = 5  # that speak, and that do not, for a signal-to-noise ratio
_LOUD_QUANTILE, _LOUD_DB = 0.95, 20.0

SCORES = (
    "speech_share",  # share of the frames at or above the threshold: 0.5 to 1 in talking clips, 0 in music and noise
    "speech_snr_db",  # level of the speech above what sounds between it, dB: 25 to 45 in good recordings
    "other_sound_share",  # share of the frames that are loud (within 20 dB of the loudest) without speech: music, noise
)


@dataclass(frozen=True, kw_only=True)
class SpeechActivitySettings:
    """Settings of the column `speech_activity`."""

    weights: str = BUILT_IN
    """Weights: `silero-vad` (in TALKINGHEAD_MODELS, in the cache, or out of a package registry), or a file of them."""
    threshold: float = 0.5
    """Probability at and above which a frame speaks, for the scores."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}, must lie between 0 and 1")


def weights_provenance(settings: SpeechActivitySettings) -> Provenance:
    """Name and SHA-256 of the weights.

    Raises:
        ValueError: They are missing, damaged or of another network.
        UnreachableError: They are nowhere on this machine, and no package registry gives them.
    """
    from talkinghead.models.speech.activity import load_speech_activity

    path = _file(settings)
    load_speech_activity(path)  # a fault is reported before any work begins
    kind = BUILT_IN if settings.weights == BUILT_IN else "file"
    return {"weights": {"kind": kind, "name": path.name, "sha256": hash_files([path])}}


def _file(settings: SpeechActivitySettings) -> Path:
    from talkinghead.models.speech.activity_weights import find_activity_weights

    return find_activity_weights() if settings.weights == BUILT_IN else Path(settings.weights)


def open_speech_activity(
    settings: SpeechActivitySettings, fits: Mapping[str, Fit], device: str
) -> Callable[[ColumnSample], Derived]:
    """Function that listens to a sample. It runs on the CPU, where a second of sound takes some 3 ms."""
    import torch

    from talkinghead.models.speech.activity import at_one_level, load_speech_activity, probability_of_frames

    del fits, device
    torch.set_num_threads(1)  # the samples are the parallelism
    network = load_speech_activity(_file(settings))

    def listen(sample: ColumnSample) -> Derived:
        audio = sample.audio()
        with torch.inference_mode():
            pieces = network(torch.from_numpy(at_one_level(audio))).numpy()
        probability = probability_of_frames(pieces, sample.num_frames)
        power = np.square(audio.astype(np.float64)).reshape(sample.num_frames, SAMPLES_PER_FRAME).mean(axis=1)
        scores = speech_scores(probability, power, settings.threshold)
        return Derived(arrays={"speech_activity": probability}, scores=scores)

    return listen


def speech_scores(probability: np.ndarray, power: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Scores of a clip.

    Args:
        probability: Probability of speech of each frame, `[F]`.
        power: Mean square of each frame's samples, `[F]`.
        threshold: Probability at and above which a frame speaks.
    """
    speaks, quiet = probability >= threshold, probability < threshold / 2
    loudest = np.quantile(power, _LOUD_QUANTILE)
    loud = (power > 0) & (power >= loudest * 10 ** (-_LOUD_DB / 10))
    return {
        "speech_share": float(speaks.mean()),
        "speech_snr_db": _snr_db(power[speaks], power[_inside(quiet)]),
        "other_sound_share": float((loud & quiet).mean()),
    }


def _inside(frames: np.ndarray) -> np.ndarray:
    """Those of the frames whose neighbours belong to them, too, `[F]` bool; beyond the ends of the clip all do."""
    around = np.pad(frames, 1, constant_values=True)
    return around[:-2] & frames & around[2:]


def _snr_db(speech: np.ndarray, pauses: np.ndarray) -> float | None:
    """Ratio of speech to noise from the power of frames with speech and of those without, dB; None for too few."""
    if min(len(speech), len(pauses)) < _LEAST_FRAMES:
        return None
    noise = float(np.median(pauses))
    signal = max(float(speech.mean()) - noise, noise * 10 ** (-_LOUD_DB / 10))  # noise drawn louder than both together
    ratio = signal / noise if noise > 0 else np.inf
    return min(10 * float(np.log10(ratio)), MOST_SNR_DB)


SPEECH_ACTIVITY = DerivedColumn(
    name="speech_activity",
    version=1,
    arrays=(Column("speech_activity", (), "probability of speech", np.dtype("<i2"), 1 / 16384),),
    scores=SCORES,
    needs=("wav",),
    settings=SpeechActivitySettings,
    provenance=weights_provenance,
    open=open_speech_activity,
    libraries=("numpy", "torch"),
    built_in=(BUILT_IN,),
    frame_seconds=lambda settings: 0.01,
)
