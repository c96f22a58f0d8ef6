"""One channel out of many: the voice, whole and at its level, however the channels go together."""

from __future__ import annotations

import numpy as np
import pytest

from talkinghead.media.mono import ChannelMeter, Mix, plain_mix, to_mono
from tests.support.sound_files import voice

RATE = 48000
STEREO = ("FL", "FR")
FIVE = ("FL", "FR", "FC", "LFE", "SL", "SR")
SEVEN = ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return voice(3, RATE)


def late(samples: np.ndarray, delay: int) -> np.ndarray:
    return np.concatenate([np.zeros(delay), samples])[: len(samples)]


@pytest.mark.parametrize("layout", [STEREO, None])
def test_stereo_with_speech_in_both_channels_is_the_mean(speech: np.ndarray, layout: tuple[str, ...] | None) -> None:
    room = 0.2 * np.random.default_rng(0).standard_normal((2, len(speech))) * np.abs(speech)
    for right in (speech, 0.3 * speech, speech + room[0], 0.5 * voice(3, RATE, seed=1)):
        found, note = to_mono(np.stack([speech, right]), layout, RATE)
        assert note is None
        assert np.array_equal(found, np.stack([speech, right], axis=1).mean(axis=1).astype(np.float32)), "to the byte"


@pytest.mark.parametrize("gain", [-1.0, -0.9, -0.5])
def test_channels_that_cancel_give_the_louder_one(speech: np.ndarray, gain: float) -> None:
    noise = 1e-3 * np.random.default_rng(0).standard_normal((2, len(speech)))
    for order in (1, -1):
        channels = (np.stack([speech, gain * speech]) + noise)[::order]
        found, note = to_mono(channels, STEREO, RATE)
        louder = channels[0] if order == 1 or (gain == -1.0 and note and "channel 1" in note) else channels[1]
        if gain == -1.0:  # equally loud: either
            assert np.abs(np.abs(found) - np.abs(speech)).max() < 0.01
        else:
            assert np.array_equal(found, louder.astype(np.float32))
        assert note is not None and "cancel" in note


def test_a_part_that_cancels_is_enough(speech: np.ndarray) -> None:
    """A tenth of a recording whose mean is silence is lost, however good the rest is."""
    right = np.concatenate([voice(27, RATE, 2), -speech])
    left = np.concatenate([voice(27, RATE, 2), speech])
    found, note = to_mono(np.stack([left, right]), STEREO, RATE)
    assert note is not None and np.abs(found - left).max() < 1e-6


@pytest.mark.parametrize("delay_s", [0.2e-3, 0.5e-3, 1e-3, 3e-3, 5e-3])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_nearer_of_two_microphones(speech: np.ndarray, delay_s: float, sign: int) -> None:
    rng = np.random.default_rng(0)
    far = sign * 0.9 * late(speech, round(delay_s * RATE))
    channels = np.stack([far, speech]) + 2e-3 * rng.standard_normal((2, len(speech)))
    found, note = to_mono(channels, STEREO, RATE)
    assert np.array_equal(found, channels[1].astype(np.float32)), "no comb filter"
    assert note is not None and f"{delay_s * 1000:.1f} ms" in note and "channel 2" in note


@pytest.mark.parametrize("hiss", [0.0, 1e-3])
@pytest.mark.parametrize("layout", [STEREO, None, ("FL", "FR", "BL", "BR"), FIVE])
def test_one_channel_with_sound_keeps_its_level(
    speech: np.ndarray, hiss: float, layout: tuple[str, ...] | None
) -> None:
    count = 3 if layout is None else len(layout)
    for place in range(count):
        channels = hiss * np.random.default_rng(place).standard_normal((count, len(speech)))
        channels[place] += speech
        found, note = to_mono(channels, layout, RATE)
        assert np.array_equal(found, channels[place].astype(np.float32))
        assert note is not None and f"channel {place + 1}" in note


def test_silent_channels_are_left_out_of_a_mean(speech: np.ndarray) -> None:
    channels = np.stack([speech, speech, np.zeros_like(speech), np.zeros_like(speech)])
    found, note = to_mono(channels, ("FL", "FR", "BL", "BR"), RATE)
    assert np.array_equal(found, speech.astype(np.float32)) and note is not None and "2 of 4" in note


def test_a_person_who_speaks_seldom_in_the_other_channel_is_kept(speech: np.ndarray) -> None:
    """Two people, a microphone each: no channel is silent, though one is for most of the time."""
    left = np.concatenate([voice(25, RATE, 3), 1e-4 * speech])
    right = np.concatenate([1e-4 * voice(25, RATE, 3), speech])
    found, note = to_mono(np.stack([left, right]), STEREO, RATE)
    assert note is None and np.abs(found[-len(speech) :]).max() > 0.4 * np.abs(speech).max()


@pytest.mark.parametrize("layout", [FIVE, SEVEN, ("FL", "FR", "FC", "LFE", "BL", "BR")])
def test_surround_keeps_the_centre_at_full_level(speech: np.ndarray, layout: tuple[str, ...]) -> None:
    """ITU-R BS.775-4, annex 4, table 2: centre 1, left and right 0.7071, surround 0.5; no low frequencies."""
    rng = np.random.default_rng(0)
    channels = 0.05 * rng.standard_normal((len(layout), len(speech)))
    channels[2] = speech
    expected = sum(
        {"FC": 1.0, "FL": 0.7071, "FR": 0.7071, "LFE": 0.0}.get(name, 0.5) * channel
        for name, channel in zip(layout, channels, strict=True)
    )
    found, note = to_mono(channels, layout, RATE)
    below = np.abs(expected) < 0.9
    assert note is None and np.abs(found - expected)[below].max() < 1e-4
    assert np.dot(found, speech) / np.dot(speech, speech) == pytest.approx(1, abs=0.02)


def test_surround_never_clips(speech: np.ndarray) -> None:
    channels = np.stack([voice(3, RATE, seed) * 1.99 for seed in range(6)])
    channels[3] *= 0.5
    found, _ = to_mono(channels, FIVE, RATE)
    assert 0.5 < np.abs(found).max() <= 1.0
    # What was not measured is bent back rather than cut off, by the same rule at every place.
    quiet = ChannelMeter(6, FIVE, RATE)
    quiet.add(0.1 * channels)
    found = quiet.mix().apply(channels)
    assert np.abs(found).max() <= 1.0
    assert np.array_equal(quiet.mix().apply(channels[:, 500:900]), found[500:900])


def test_what_is_too_short_or_silent_is_mixed_as_always() -> None:
    for samples in (np.zeros((2, 0)), np.zeros((2, 100000)), np.full((2, 1), 0.5), 1e-7 * np.ones((2, 5000))):
        found, note = to_mono(samples, STEREO, 16000)
        assert note is None and np.array_equal(found, samples.mean(axis=0).astype(np.float32))


def test_mono_is_left_alone(speech: np.ndarray) -> None:
    found, note = to_mono(speech[None], ("FC",), RATE)
    assert note is None and np.array_equal(found, speech.astype(np.float32))


@pytest.mark.parametrize("rate", [1000, 8000, 16000, 192000])
def test_rates(rate: int) -> None:
    tone = 0.5 * np.sin(np.arange(2 * rate) * 2 * np.pi * 250 / rate)
    found, note = to_mono(np.stack([tone, -tone]), STEREO, rate)
    assert note is not None and np.abs(found).max() > 0.4


def test_the_meter_does_not_depend_on_how_sound_is_handed_out(speech: np.ndarray) -> None:
    channels = np.stack([speech, -0.8 * speech])
    one, two = ChannelMeter(2, STEREO, RATE), ChannelMeter(2, STEREO, RATE)
    one.add(channels)
    for begin in range(0, len(speech), 1009):
        two.add(channels[:, begin : begin + 1009])
    assert one.mix() == two.mix()


def test_weights_of_layouts_without_a_centre() -> None:
    assert plain_mix(3, ("FL", "FR", "LFE")).weights == (0.5, 0.5, 0.0)
    assert plain_mix(4, ("FL", "FR", "BL", "BR")).weights == (0.25,) * 4
    assert plain_mix(1, ("LFE",)).weights == (1.0,)
    assert plain_mix(6, None).weights == (1 / 6,) * 6


def test_stereo_stays_unless_something_is_unusual_about_it() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((2, 1000))
    plain = plain_mix(2, STEREO)
    assert np.array_equal(plain.stereo(samples), samples.astype(np.float32))
    taken = Mix(weights=(0.0, 1.0), note="the first is silent")
    assert np.array_equal(taken.stereo(samples), samples[[1, 1]].astype(np.float32))
    wide = plain_mix(6, FIVE)
    six = rng.standard_normal((6, 1000)) * 0.1
    assert np.array_equal(wide.stereo(six), np.stack([wide.apply(six)] * 2))
