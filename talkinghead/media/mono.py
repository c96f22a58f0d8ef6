"""One channel out of many, the same for data sets and for a user's speech.

Normally it is the mean of the channels, and of named surround layouts the mix of ITU-R BS.775-4, annex 4, table 2
(1/0): the centre at full level, left and right at -3 dB, each surround channel at -6 dB, no low-frequency channel.
That is wrong where channels hold the same voice and cancel: one of them inverted, or two microphones at different
distances, whose mean is a comb filter. There one channel is taken as it is. A channel without sound is left out, since
a mean with it would be 6 dB too quiet.

What to do is decided for a file as a whole, so that every span of it is mixed alike: `ChannelMeter` is fed with its
sound (or with stretches from all over it) and gives a `Mix`.

Why one of two spaced microphones, and not their sum after alignment: in a made-up room (three voices, microphones 0.1
to 4 ms apart, reverberation and noise of their own), the spectrum of the nearer microphone was 2.4 to 2.6 dB off that
of the dry voice, the sum after alignment 1.9 to 2.7 dB, the further microphone 2.8 to 5.3 dB, and the mean as it is 2.8
to 4.6 dB. The little that alignment gains is lost where its one delay is wrong: with one person at each microphone, the
sum aligned to one of them was 4.0 to 4.7 dB off for the other, one microphone alone 2.7 to 3.8 dB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

_FULL_LEVEL, _FRONT, _SURROUND = 1.0, 2**-0.5, 0.5  # ITU-R BS.775-4, annex 4, table 2
_FRONTS = ("FL", "FR", "FLC", "FRC", "DL", "DR")
_NO_SPEECH = ("LFE", "LFE2")

_BLOCK_S = 0.08  # of a spectrum: its bins are finer than the notches of two microphones 10 ms apart
_WINDOW_S = 1.0  # over which spectra are averaged: what does not belong together then no longer seems to cancel
_BAND_HZ = (100.0, 7500.0)  # of speech at 16 kHz
_LOST = 0.5  # power of the mix over that of its strongest part alone: below, the channels cancel
_LOST_SHARE = 0.06  # of the band; two microphones 0.1 to 4 ms apart lose 0.05 to 0.17, real stereo speech up to 0.006
_LOUD_DB = 30.0  # what is further below the loudest second is no speech
_SILENT_DB = 25.0  # a channel whose loudest second is further below the loudest of all has no sound of its own
_FLOOR = 1e-9  # power (-90 dB of full scale) that is no sound
_APART_S = (1e-4, 1e-2)  # delays that are told as a distance between microphones
_KNEE = 0.95  # a mix with the centre at full level bends here, where stretches that were not measured are louder


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How the channels of a file become one."""

    weights: tuple[float, ...]
    """Weight of each channel."""
    limited: bool = False
    """Whether the weights add up to more than 1, so that what goes over full scale is bent back."""
    note: str | None = None
    """What is unusual about the channels; None: nothing."""

    def apply(self, samples: np.ndarray) -> np.ndarray:
        """Channels `[C, N]` → mono float32 `[N]`."""
        # Powers of two, as those of stereo, make this exactly the mean.
        mono = np.zeros(samples.shape[1], np.float64)
        for weight, channel in zip(self.weights, samples, strict=True):
            if weight:
                mono += weight * channel
        if self.limited:
            over = np.maximum(np.abs(mono) - _KNEE, 0) / (1 - _KNEE)
            mono = np.where(over > 0, np.sign(mono) * (_KNEE + (1 - _KNEE) * np.tanh(over)), mono)
        return mono.astype(np.float32)

    def stereo(self, samples: np.ndarray) -> np.ndarray:
        """Channels `[C, N]` → stereo float32 `[2, N]`.

        Stereo stays as it is. Where something is unusual about it, as channels that cancel, and of any other number of
        channels, both sides get the mono sound: it is what is heard by who listens with one ear, and by the models.
        """
        if len(samples) == 2 and self.note is None:
            return samples.astype(np.float32)
        return np.repeat(self.apply(samples)[None], 2, axis=0)


def to_mono(samples: np.ndarray, layout: tuple[str, ...] | None, rate: int) -> tuple[np.ndarray, str | None]:
    """One channel out of sound that is in memory as a whole, and a note where its channels are unusual.

    Args:
        samples: Channels `[C, N]`, full scale = 1.
        layout: FFmpeg's name of each channel, such as `("FL", "FR")`; None: they have none.
        rate: Sampling rate, Hz.

    Returns:
        Mono float32 `[N]`, and the note.
    """
    meter = ChannelMeter(len(samples), layout, rate)
    for begin in range(0, samples.shape[1], rate):
        meter.add(samples[:, begin : begin + rate])
    mix = meter.mix()
    return mix.apply(samples), mix.note


def plain_mix(channels: int, layout: tuple[str, ...] | None) -> Mix:
    """The mix of channels about whose sound nothing is known.

    Args:
        channels: Number of channels.
        layout: Name of each channel, or None.
    """
    heard = [c for c in range(channels) if layout is None or layout[c] not in _NO_SPEECH] or list(range(channels))
    if layout is None or "FC" not in layout or len(heard) == 1:
        return _mean(channels, heard)
    weights = {"FC": _FULL_LEVEL, **dict.fromkeys(_FRONTS, _FRONT), **dict.fromkeys(_NO_SPEECH, 0.0)}
    return Mix(weights=tuple(weights.get(name, _SURROUND) for name in layout), limited=True)


class ChannelMeter:
    """Running measure of how the channels of a file go together; memory does not grow but by a row each second.

    Args:
        channels: Number of channels.
        layout: Name of each channel, or None.
        rate: Sampling rate, Hz.
    """

    def __init__(self, channels: int, layout: tuple[str, ...] | None, rate: int) -> None:
        self._rate = rate
        self._plain = plain_mix(channels, layout)
        self._weights = np.array(self._plain.weights)
        self._block = 1 << round(np.log2(rate * _BLOCK_S))
        self._window = max(1, round(_WINDOW_S * rate / self._block))  # blocks
        self._taper = np.hanning(self._block)
        # The hearing's own measure of a band: equal steps of mel.
        frequency = np.arange(self._block // 2 + 1) * rate / self._block
        self._band = np.where((frequency >= _BAND_HZ[0]) & (frequency <= _BAND_HZ[1]), 1 / (700 + frequency), 0)
        self._band /= max(self._band.sum(), 1e-12)
        self._held: list[np.ndarray] = []  # not yet measured
        self._count = 0  # of samples in it
        self._peak = 0.0  # of the plain mix
        self._powers: list[np.ndarray] = []  # [C] of each window
        self._lost: list[float] = []  # share of the band that cancels, of each window
        self._crossed = np.zeros(self._block // 2 + 1, complex)  # phase between the first two channels

    def add(self, samples: np.ndarray) -> None:
        """Take the next samples `[C, n]`."""
        if len(self._weights) == 1:
            return
        self._peak = max(self._peak, float(np.abs(self._weights @ samples).max(initial=0.0)))
        self._held.append(samples)
        self._count += samples.shape[1]
        size = self._block * self._window
        if self._count >= size:
            held = np.concatenate(self._held, axis=1)
            for begin in range(0, self._count - size + 1, size):
                self._measure(held[:, begin : begin + size])
            self._held = [held[:, self._count // size * size :]]
            self._count %= size

    def mix(self) -> Mix:
        """The mix for what was added so far."""
        channels = len(self._weights)
        # The end, or sound of less than a second.
        if self._count >= min(self._block, 256):
            short = -self._count % self._block
            self._measure(np.pad(np.concatenate(self._held, axis=1), ((0, 0), (0, short))))
            self._held, self._count = [], 0
        if not self._powers:
            return self._plain
        powers = np.stack(self._powers)  # [windows, C]
        loudest = powers.max(axis=0)
        if loudest.max() < _FLOOR:
            return self._plain
        # Channels without sound.
        heard = [c for c in range(channels) if loudest[c] >= loudest.max() * 10 ** (-_SILENT_DB / 10)]
        if len(heard) == 1:
            silent = "the other is" if channels == 2 else f"the other {channels - 1} are"
            return replace(_mean(channels, heard), note=f"only channel {heard[0] + 1} has sound, {silent} silent")
        # Channels that cancel.
        speech = powers.max(axis=1) >= loudest.max() * 10 ** (-_LOUD_DB / 10)
        if np.mean(np.array(self._lost)[speech]) >= _LOST_SHARE:
            return self._one_of(powers[speech].sum(axis=0))
        if self._plain.limited:
            gain = min(1.0, 1 / max(self._peak, 1e-9))
            return replace(self._plain, weights=tuple(float(weight * gain) for weight in self._weights))
        counted = [c for c in heard if self._weights[c]]
        if len(counted) == np.count_nonzero(self._weights) or not counted:
            return self._plain
        silent = f"{channels - len(heard)} of {channels} channels are silent"
        return replace(_mean(channels, counted), note=f"{silent}: the mean of the others is taken")

    def _one_of(self, powers: np.ndarray) -> Mix:
        """The channel that is taken where channels cancel, out of the power `[C]` of each."""
        channels = len(powers)
        louder = int(np.argmax(powers * (self._weights > 0)))
        if channels == 2 and (delay := self._delay()) is not None:
            nearer = 0 if delay > 0 else 1
            note = f"two microphones {abs(delay) * 1000:.1f} ms apart: channel {nearer + 1}, the nearer one, is taken"
            return replace(_mean(channels, [nearer]), note=note)
        note = f"the channels cancel in their mean: channel {louder + 1}, the loudest, is taken"
        return replace(_mean(channels, [louder]), note=note)

    def _delay(self) -> float | None:
        """Seconds from the first channel to the second; None where they have no common delay between the limits."""
        found = np.abs(np.fft.irfft(self._crossed, self._block))
        reach = min(round(_APART_S[1] * self._rate), self._block // 2 - 1)
        near = np.concatenate([found[-reach:], found[: reach + 1]])
        best = int(np.argmax(near))
        delay = (best - reach) / self._rate
        clear = near[best] > 4 * np.median(found)
        return delay if clear and abs(delay) >= _APART_S[0] else None

    def _measure(self, samples: np.ndarray) -> None:
        """Add a window `[C, blocks * size]`."""
        blocks = samples.reshape(len(samples), -1, self._block)
        self._powers.append(np.mean(samples**2, axis=1))
        spectra = np.fft.rfft(blocks * self._taper, axis=2)  # [C, blocks, bins]
        # A bin is lost where the mix is weaker than its strongest part alone.
        parts = (self._weights**2)[:, None] * np.mean(np.abs(spectra) ** 2, axis=1)
        mixed = np.mean(np.abs(np.tensordot(self._weights, spectra, axes=1)) ** 2, axis=0)
        self._lost.append(float(self._band[mixed < _LOST * parts.max(axis=0)].sum()))
        crossed = np.sum(np.conj(spectra[0]) * spectra[1], axis=0)
        self._crossed += crossed / np.maximum(np.abs(crossed), 1e-20) * (self._band > 0)


def _mean(channels: int, heard: list[int]) -> Mix:
    """The mean of some of the channels."""
    return Mix(weights=tuple(1 / len(heard) if c in heard else 0.0 for c in range(channels)))
