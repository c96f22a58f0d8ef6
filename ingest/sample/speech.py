"""Speech-like sound: syllables of a glottal pulse train through moving formants, with consonants and breath.

It says nothing in any language, but it has what drives a talking head: phrases and pauses, voiced and unvoiced
sounds, loudness and vowel colour, and a mouth opening that goes with them. Source-filter synthesis after
G. Fant, "Acoustic Theory of Speech Production", 1960; formants of the vowels after Peterson and Barney, 1952 (women).

Letters: T moments at `CONTROL_RATE`, N audio samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkinghead.rng import generator

CONTROL_RATE = 200
"""Rate at which the mouth and the filters are controlled, Hz."""

_BANDWIDTHS = (80.0, 110.0, 160.0, 250.0)  # bandwidths of the four formants, Hz
_FOURTH_FORMANT = 3900.0  # Hz; about the same for all vowels


@dataclass(frozen=True)
class Vowel:
    """A vowel: its formants in Hz, and opening and rounding of the mouth (0 .. 1)."""

    formants: tuple[float, float, float]
    opening: float
    rounding: float


VOWELS = (
    Vowel((850, 1220, 2810), 1.00, 0.15),  # father
    Vowel((860, 2050, 2850), 0.90, 0.00),  # had
    Vowel((610, 2330, 2990), 0.62, 0.00),  # head
    Vowel((310, 2790, 3310), 0.34, 0.00),  # heed
    Vowel((590, 920, 2710), 0.70, 0.75),  # hawed
    Vowel((370, 950, 2670), 0.36, 1.00),  # who'd
    Vowel((500, 1640, 1960), 0.50, 0.35),  # heard
)


@dataclass(frozen=True)
class Speech:
    """Speech: the sound, and the mouth that goes with it."""

    audio: np.ndarray
    """Mono sound, `[N]` float32, peak 0.7."""
    sample_rate: int
    """Rate of the sound, Hz."""
    opening: np.ndarray
    """Opening of the mouth, `[T]` at `CONTROL_RATE`: 0 lips closed … 1 wide open."""
    rounding: np.ndarray
    """Rounding of the lips, `[T]` at `CONTROL_RATE`: 0 spread … 1 rounded."""

    def at(self, track: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Values of a control track `[T]` at `times` in seconds, linear in between."""
        return np.interp(times, np.arange(len(track)) / CONTROL_RATE, track)

    def stress(self) -> np.ndarray:
        """Slow course of the opening, for nods, `[T]`: smoothed over 0.4 s."""
        window = np.hanning(int(0.4 * CONTROL_RATE) | 1)
        return np.convolve(self.opening, window / window.sum(), mode="same")


@dataclass
class _Score:
    """Score for the synthesiser, `[T]` each at `CONTROL_RATE`."""

    voice: np.ndarray  # loudness of the vowels, of the consonants and of the breath
    hiss: np.ndarray
    breath: np.ndarray
    pitch: np.ndarray  # Hz
    formants: np.ndarray  # [T, 3], Hz
    opening: np.ndarray
    rounding: np.ndarray


def synthesise(seed: int, name: str, duration_s: float, sample_rate: int) -> Speech:
    """Random speech of `duration_s` seconds; another `name` gives other speech.

    Args:
        seed: Seed of the sample.
        name: Name of the clip.
        duration_s: Length in seconds.
        sample_rate: Rate of the sound, Hz.
    """
    # What is said, at the control rate; then everything at the rate of the sound, [N] each.
    score = _write_score(seed, name, round(duration_s * CONTROL_RATE))
    count = round(duration_s * sample_rate)
    times = np.arange(count) / sample_rate
    noise = generator(seed, "sample-noise", name)

    def track(values: np.ndarray) -> np.ndarray:
        return np.interp(times, np.arange(len(values)) / CONTROL_RATE, values)

    # Vowels: the derivative of the glottal flow, since lips radiate it so, with some noise, through the formants.
    white = noise.standard_normal(count)
    flow = _glottal_flow(np.cumsum(track(score.pitch)) / sample_rate)
    voiced = np.diff(flow, prepend=0.0) * sample_rate / 1500 + 0.03 * white * flow
    vowels = _filter(track(score.voice) * voiced, sample_rate, score.formants)
    audio = vowels / max(np.abs(vowels).max(), 1e-9)
    # Consonants are bright noise, breath is dull noise, and the room has a floor of -66 dB.
    bright = np.diff(white, n=2, prepend=[0.0, 0.0]) * 0.25
    audio += 0.10 * track(score.hiss) * bright + 0.035 * track(score.breath) * _smooth(white, sample_rate // 6000)
    audio += 10 ** (-66 / 20) * white
    return Speech(
        audio=(0.7 * audio / np.abs(audio).max()).astype(np.float32),
        sample_rate=sample_rate,
        opening=score.opening,
        rounding=score.rounding,
    )


def _write_score(seed: int, name: str, length: int) -> _Score:
    """Score of phrases of three to seven syllables, with a breath before each phrase."""
    # The order of the draws is part of the sample: another one would give other speech.
    noise = generator(seed, "sample-speech", name)
    score = _silence(length)
    position = int(noise.uniform(0.25, 0.4) * CONTROL_RATE)
    last = VOWELS[-1]
    while position < length:
        breath = slice(max(0, position - int(0.22 * CONTROL_RATE)), position)
        score.breath[breath] = np.hanning(breath.stop - breath.start)
        syllables = int(noise.integers(3, 8))
        for syllable in range(syllables):
            vowel = VOWELS[int(noise.integers(len(VOWELS)))]
            span = int(noise.uniform(0.17, 0.29) * CONTROL_RATE * (1.25 if syllable == syllables - 1 else 1.0))
            # The mouth is closed again before the clip ends.
            if position + span > length - CONTROL_RATE // 10:
                return _finish(score)
            # The pitch falls over a phrase, Hz.
            pitch = 212 - 34 * syllable / syllables + noise.normal(0, 7)
            _write_syllable(score, slice(position, position + span), last, vowel, pitch, noise)
            position, last = position + span, vowel
        position += int(noise.uniform(0.3, 0.6) * CONTROL_RATE)
    return _finish(score)


def _silence(length: int) -> _Score:
    voice, hiss, breath, opening, rounding = np.zeros((5, length))
    formants = np.full((length, 3), VOWELS[-1].formants, float)
    return _Score(voice, hiss, breath, np.full(length, 190.0), formants, opening, rounding)


def _write_syllable(
    score: _Score, place: slice, last: Vowel, vowel: Vowel, pitch: float, noise: np.random.Generator
) -> None:
    """Write one syllable, a consonant and a vowel: the lips meet at its ends, formants glide from the vowel before."""
    phase = np.linspace(0, 1, place.stop - place.start, endpoint=False)
    stress = noise.uniform(0.7, 1.0)
    bump = np.sin(np.pi * phase**0.85) ** 0.9
    score.opening[place] = bump**1.4 * stress * (0.12 + 0.88 * vowel.opening)
    score.voice[place] = bump**1.2 * stress * (0.3 + 0.7 * vowel.opening)
    if noise.random() < 0.4:
        score.hiss[place] = np.exp(-(((phase - 0.08) / 0.07) ** 2)) * noise.uniform(0.4, 1.0)
    # Share of the new vowel, [T, 1]: most of the glide is over after a fifth of the syllable.
    glide = (1 - np.exp(-phase / 0.18))[:, None]
    score.formants[place] = np.array(last.formants) * (1 - glide) + np.array(vowel.formants) * glide
    score.rounding[place] = last.rounding * (1 - glide[:, 0]) + vowel.rounding * glide[:, 0]
    score.pitch[place] = pitch * (1 + 0.05 * bump) * (1 + 0.006 * noise.standard_normal(len(phase)))


def _finish(score: _Score) -> _Score:
    """The score without sudden jumps; rounding is slower than opening."""
    score.pitch = _smooth(score.pitch, 9)
    score.opening = np.clip(_smooth(score.opening, 5), 0, 1)
    score.rounding = np.clip(_smooth(score.rounding, 25), 0, 1)
    return score


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Moving average of about `width` values under a Hann window, same length; ends are continued."""
    window = np.hanning(width + 2)
    padded = np.pad(values, (width + 2, width + 2), mode="edge")
    return np.convolve(padded, window / window.sum(), mode="same")[width + 2 : -(width + 2)]


def _glottal_flow(cycles: np.ndarray) -> np.ndarray:
    """Glottal pulse after Rosenberg (1971, type B): opens over 40 % of the cycle, closes over 16 %."""
    phase = cycles % 1.0
    rise, fall = phase / 0.40, (phase - 0.40) / 0.16
    return np.where(rise < 1, rise**2 * (3 - 2 * rise), np.where(fall < 1, 1 - np.minimum(fall, 1) ** 2, 0.0))


def _filter(source: np.ndarray, sample_rate: int, formants: np.ndarray) -> np.ndarray:
    """Filter of `source` `[N]` by four moving resonances: overlap-add of 21 ms windows, each with its own spectrum."""
    # Windows that overlap four times: [windows, size].
    size = 1 << round(np.log2(0.021 * sample_rate))
    hop = size // 4
    starts = np.arange(-size + hop, len(source), hop)
    padded = np.pad(source, (size, 2 * size))
    window = np.hanning(size + 1)[:-1]
    blocks = padded[(starts + size)[:, None] + np.arange(size)] * window
    # Frequency response of each window, by the formants at its middle: [windows, frequencies]. Twice the length, so
    # that the tail of the filter does not wrap around.
    middle = np.clip((starts + size // 2) * CONTROL_RATE // sample_rate, 0, len(formants) - 1)
    hertz = np.fft.rfftfreq(2 * size, 1 / sample_rate)
    response = np.ones((len(starts), len(hertz)), complex)
    for number, bandwidth in enumerate(_BANDWIDTHS):
        centre = formants[middle, number][:, None] if number < 3 else np.full((len(starts), 1), _FOURTH_FORMANT)
        response *= centre**2 / (centre**2 - hertz**2 + 1j * hertz * bandwidth)
    filtered = np.fft.irfft(np.fft.rfft(blocks, 2 * size) * response, axis=1)
    result = np.zeros(len(padded) + size)
    for start, block in zip(starts + size, filtered, strict=True):
        result[start : start + 2 * size] += block
    return result[size : size + len(source)] / 2  # Hann windows at a quarter hop add up to 2
