"""Copies of a recording are found, encoded anew or cut; other clips of the same speaker are not taken for copies."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ingest.same_recording import Groups, find_matches
from ingest.scan import clip_frames
from ingest.signatures import MovementSigner, Signature, sound_words
from talkinghead.media.audio import read_whole_audio
from talkinghead.media.video_source import VideoSource
from talkinghead.timebase import SAMPLE_RATE

EVERY = 5
SPEAKERS = ("Moore-AnimateAnyone_4", "SadTalker_WDA_AlexandriaOcasioCortez_000", "Talking-Face_PC-AVS_00086")


def words(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1 << 32, count, np.uint32)


def spoiled(values: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Words of which a share of the bits is turned."""
    bits = np.unpackbits(values.view(np.uint8))
    flips = np.random.default_rng(seed).random(len(bits)) < share
    return np.packbits(bits ^ flips).view(np.uint32)


def clip(movement: np.ndarray, sound: np.ndarray | None = None, step_frames: int = EVERY) -> Signature:
    sounds = {} if sound is None else {"piece": sound}
    return Signature(step_frames=step_frames, movement=movement, sounds=sounds)


def pairs(signatures: dict[str, Signature], groups: dict[str, str] | None = None) -> list[tuple[str, str, str]]:
    found = find_matches(signatures, groups or {key: key for key in signatures})
    return [(match.first, match.second, match.by) for match in found]


def test_copies_are_found_by_movement_or_sound() -> None:
    a, b = words(1, 30), words(2, 90)
    assert pairs({"x": clip(a), "y": clip(spoiled(a, 0.1))}) == [("x", "y", "movement")]
    assert pairs({"x": clip(words(3, 30), b), "y": clip(words(4, 30), spoiled(b, 0.1))}) == [("x", "y", "sound")]
    assert pairs({"x": clip(a, b), "y": clip(words(3, 30), words(4, 90))}) == []


def test_a_part_of_a_recording_is_found_by_its_sound_at_any_place() -> None:
    sound = words(2, 300)
    part = clip(words(4, 20), spoiled(sound[117:177], 0.06))
    assert pairs({"whole": clip(words(3, 30), sound), "part": part}) == [("part", "whole", "sound")]


def test_too_little_is_no_evidence() -> None:
    assert pairs({"x": clip(words(1, 11)), "y": clip(words(1, 11))}) == []
    assert pairs({"x": clip(words(3, 30), words(1, 23)), "y": clip(words(4, 30), words(1, 23))}) == []
    still = clip(np.zeros(100, np.uint32), np.zeros(300, np.uint32))
    assert pairs({"x": still, "y": still}) == []
    other_step = clip(words(1, 30), step_frames=4)
    assert pairs({"x": clip(words(1, 30)), "y": other_step}) == []


def test_clips_of_one_group_need_no_match_and_many_copies_are_one() -> None:
    a = words(1, 30)
    copies = {f"c{n:02d}": clip(spoiled(a, 0.05, n)) for n in range(40)}
    assert pairs(copies, dict.fromkeys(copies, "one")) == []
    groups = Groups()
    for match in find_matches(copies, {key: key for key in copies}):
        groups.join(match.first, match.second)
    assert groups.members() == {"c00": sorted(copies)}


def test_the_order_does_not_matter() -> None:
    made = {f"c{n:02d}": clip(spoiled(words(n % 5, 30), 0.05, n)) for n in range(20)}
    keys = list(made)
    expected = pairs(made)
    for seed in range(5):
        random.Random(seed).shuffle(keys)
        assert pairs({key: made[key] for key in keys}) == expected
    assert len(expected) == 15


def test_a_thousand_unrelated_clips_do_not_match() -> None:
    made = {f"c{n:04d}": clip(words(2 * n, 40), words(2 * n + 1, 90)) for n in range(1000)}
    assert pairs(made) == []


def test_copies_among_many_clips() -> None:
    """All of them are found, and what is held at a time does not grow with the clips, or their pairs."""
    count, length = 6000, 200  # more words of sound than are sorted at a time
    draws = np.random.default_rng(0)
    sounds = draws.integers(1, 1 << 32, (count, length), np.uint32)
    made = {f"c{n:04d}": clip(np.zeros(0, np.uint32), sound) for n, sound in enumerate(sounds)}
    copies = {}
    for number in range(60):
        original, name = f"c{97 * number:04d}", f"copy{number:02d}"
        sound = spoiled(sounds[97 * number], 0.08, number)
        # At the same place, or a part from anywhere.
        made[name] = clip(words(number, 30), sound if number % 2 else sound[number : number + 100])
        copies[name] = original
    tracemalloc.start()
    found = find_matches(made, {key: key for key in made})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {match.second: match.first for match in found} == copies
    assert peak < 150 << 20


def test_copies_among_more_clips_than_half_a_word_tells_apart() -> None:
    movements = np.random.default_rng(0).integers(1, 1 << 32, (140_000, 12), np.uint32)
    made = {f"c{n:06d}": clip(movement) for n, movement in enumerate(movements)}
    copies = {f"d{n}": f"c{n:06d}" for n in range(0, 140_000, 2000)}
    made |= {name: clip(spoiled(made[original].movement, 0.05, 1)) for name, original in copies.items()}
    assert {match.second: match.first for match in find_matches(made, {key: key for key in made})} == copies


def test_a_word_that_many_clips_share_hides_no_copies() -> None:
    """A thousand clips begin with the same opening titles, too short to be a match."""
    titles = words(7, 10)
    made = {f"c{n:04d}": clip(np.concatenate([titles, words(1000 + n, 40)])) for n in range(1000)}
    made["copy"] = clip(spoiled(made["c0500"].movement, 0.1))
    assert pairs(made) == [("c0500", "copy", "movement")]


# --- real clips -------------------------------------------------------------------------------------------------------


def real(path: Path, start_s: float | None = None, end_s: float | None = None) -> Signature:
    signer = MovementSigner()
    with VideoSource(path) as source:
        start, frames = clip_frames(source, start_s, end_s)
        count = 0
        for number, frame in enumerate(frames):
            if number % EVERY == 0:
                signer.add(frame.reduced(160, 160))
            count += 1
    begin = round(start * SAMPLE_RATE)
    sound = read_whole_audio(path)[begin : begin + count * 640]
    return Signature(step_frames=EVERY, movement=signer.words, sounds={"all": sound_words(sound)})


@pytest.fixture(scope="module")
def parts(shared: Path) -> dict[str, Signature]:
    """First and second half of clips in which somebody speaks, and the whole of each."""
    made = {}
    for name in SPEAKERS:
        path = shared / "media" / "video" / f"{name}.mp4"
        with VideoSource(path) as source:
            length = sum(1 for _ in source.frames()) / 25
        middle = length / 2
        made[f"{name}-1"], made[f"{name}-2"] = real(path, 0.0, middle), real(path, middle, length)
        made[f"{name}-all"] = real(path)
    return made


def test_other_moments_of_a_speaker_are_no_copies(parts: dict[str, Signature]) -> None:
    halves = {key: value for key, value in parts.items() if not key.endswith("-all")}
    assert pairs(halves) == []


def test_parts_of_real_clips_are_found_in_the_whole(parts: dict[str, Signature]) -> None:
    found = {frozenset(pair[:2]) for pair in pairs(parts)}
    expected = {frozenset((f"{name}-{part}", f"{name}-all")) for name, part in itertools.product(SPEAKERS, "12")}
    assert found == expected
