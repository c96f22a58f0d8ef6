"""Sound files with known sounds at known times, and ways to damage them: packets lost, broken, or in another place."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext


def write_pcm(path: Path, samples: np.ndarray, rate: int) -> Path:
    """A 16-bit WAV file of samples `[N, C]`, with any number of channels."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def ticking(times_s: Sequence[float], seconds: float, rate: int, level: float = 0.8) -> np.ndarray:
    """Clicks (2 ms of a 3 kHz tone with a smooth envelope, centred on each time), float `[N]`."""
    samples = np.zeros(round(seconds * rate))
    t = np.arange(len(samples)) / rate
    for time_s in times_s:
        near = np.abs(t - time_s) < 1e-3
        around = t[near] - time_s
        samples[near] = level * np.cos(2 * np.pi * 3000 * around) * np.cos(np.pi * around / 2e-3) ** 2
    return samples


def click_times(samples: np.ndarray, rate: int = 16000, level: float = 0.2) -> list[float]:
    """Centres of the clicks that `ticking` made, seconds: to a fraction of a sample."""
    energy = samples.astype(np.float64) ** 2
    loud = np.flatnonzero(energy > level**2)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > 0.02 * rate) + 1) if len(loud) else []
    times = []
    for group in groups:
        first, end = max(0, group[0] - rate // 500), group[-1] + rate // 500
        part = energy[first:end]
        times.append(float((np.arange(first, first + len(part)) * part).sum() / part.sum() / rate))
    return times


def voice(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """Something like speech: harmonics of a gliding pitch through changing formants, with pauses; float `[N]`."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 0.7 * t + seed)) / rate
    formants = 500 + 200 * np.sin(2 * np.pi * 2.3 * t), 1500 + 500 * np.sin(2 * np.pi * 1.7 * t + 1)
    samples = np.zeros(len(t))
    for harmonic in range(1, int(min(7000, rate * 0.45) / 140)):
        distance = np.min([np.abs(harmonic * 120 - f) / 250 for f in formants], axis=0)
        samples += np.exp(-0.5 * np.minimum(distance, 3) ** 2) * np.sin(harmonic * pitch + rng.uniform(0, 2 * np.pi))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * t) + 0.4, 0, 1)
    samples = samples * syllables + 0.02 * rng.standard_normal(len(t))
    return 0.5 * samples / np.abs(samples).max()


def repack(
    source: Path,
    target: Path,
    change: Callable[[int, av.Packet], av.Packet | None],
    options: dict[str, str] | None = None,
) -> Path:
    """Copy the packets of a sound file; `change` gets each one's number, and returns it, another, or None to lose it.

    `options` are the muxer's.
    """
    with av.open(str(source)) as one, av.open(str(target), "w", options=options or {}) as two:
        stream = one.streams.audio[0]
        copy = two.add_stream_from_template(stream)
        for number, packet in enumerate(one.demux(stream)):
            if packet.dts is None:
                continue
            changed = change(number, packet)
            if changed is not None:
                changed.stream = copy
                two.mux(changed)
    return target


def with_bytes(packet: av.Packet, data: bytes) -> av.Packet:
    """A packet at the same time with other contents."""
    made = av.Packet(data)
    made.pts, made.dts, made.time_base, made.duration = packet.pts, packet.dts, packet.time_base, packet.duration
    return made


def write_runs(path: Path, runs: Sequence[tuple[np.ndarray, int]], codec: str = "aac", gap_s: float = 0.0) -> Path:
    """A transport stream whose sound `[C, N]` changes its rate and layout from run to run, on one running clock.

    Each run's first sample lies where the run before ended (and `gap_s` later), to the codec's own delay.
    """
    layouts = {1: "mono", 2: "stereo", 6: "5.1"}
    packets: list[tuple[bytes, float, float]] = []
    begin_s = 1.0  # the encoder's own delay comes before
    for samples, rate in runs:
        context = cast(AudioCodecContext, av.CodecContext.create(codec, "w"))
        context.sample_rate, context.layout, context.format = rate, layouts[len(samples)], "fltp"
        context.time_base = Fraction(1, rate)
        context.options = {"aac_pns": "0"}  # noise that the decoder makes up would depend on where it began
        frames = []
        for first in range(0, samples.shape[1], 1024):
            values = np.ascontiguousarray(samples[:, first : first + 1024].astype(np.float32))
            frame = av.AudioFrame.from_ndarray(values, format="fltp", layout=layouts[len(samples)])
            frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
            frames.append(frame)
        made = [packet for frame in [*frames, None] for packet in context.encode(frame)]
        # The first packet lies before the run (the codec's delay), in place of the last ones of the run before.
        packets = [row for row in packets if row[1] < begin_s + (made[0].pts or 0) / rate - 1e-6]
        for packet in made:
            packets.append((adts(bytes(packet), rate, len(samples)), begin_s + (packet.pts or 0) / rate, 1024 / rate))
        begin_s += samples.shape[1] / rate + gap_s
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream(codec, rate=runs[0][1], layout=layouts[len(runs[0][0])])
        for data, time_s, length_s in packets:
            packet = av.Packet(data)
            packet.time_base = Fraction(1, 90000)
            packet.pts = packet.dts = round(time_s * 90000)
            packet.duration = round(length_s * 90000)
            packet.stream = stream
            container.mux(packet)
    return path


def adts(data: bytes, rate: int, channels: int) -> bytes:
    """An AAC frame with the header that says its rate and channels (ISO/IEC 13818-7, 6.2)."""
    rates = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
    size = len(data) + 7
    index, channels = rates.index(rate), channels
    head = [
        0xFF,
        0xF1,
        1 << 6 | index << 2 | channels >> 2,
        (channels & 3) << 6 | size >> 11,
        size >> 3 & 0xFF,
        (size & 7) << 5 | 0x1F,
        0xFC,
    ]
    return bytes(head) + data
