"""Dissolves, wipes, fades and black ends are found where they are; motion and light are none of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.faces import Sighting
from ingest.settings import IngestSettings, TransitionSettings
from ingest.shots import THUMBNAIL, split
from ingest.transitions import Transition, TransitionDetector
from talkinghead.media.frame_clock import constant_rate
from talkinghead.media.video_source import VideoSource
from tests.support.ingested_clips import pieces_of
from tests.support.media_files import write_video
from tests.support.shot_changes import Shot, dissolve, fade, shot, wipe

A, B = 11, 4


def _found(images: Shot, settings: TransitionSettings | None = None) -> list[Transition]:
    detector = TransitionDetector(settings or TransitionSettings())
    for image in images:
        detector.add(cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA))
    return detector.transitions()


CHANGES: dict[str, Callable[[Shot, Shot, int], Shot]] = {
    "dissolve": dissolve,
    "wipe right": lambda a, b, length: wipe(a, b, length, "right"),
    "wipe left": lambda a, b, length: wipe(a, b, length, "left"),
    "wipe down": lambda a, b, length: wipe(a, b, length, "down"),
    "wipe up": lambda a, b, length: wipe(a, b, length, "up"),
    "fade black": lambda a, b, length: fade(a, b, length, 0),
    "fade white": lambda a, b, length: fade(a, b, length, 255),
}


@pytest.mark.parametrize("length", [8, 16, 25, 50])
@pytest.mark.parametrize("change", CHANGES)
def test_each_kind_is_found_with_its_ends(change: str, length: int) -> None:
    first = 100 - length
    for a, b in ((A, B), (1, 2)):
        (found,) = _found(CHANGES[change](shot(a, 100), shot(b, 100), length))
        assert found.kind == change.split()[0] and 0 < found.score <= 1
        slack = 2 + length // 8
        assert abs(found.first - first) <= slack and abs(found.end - 100) <= slack


def test_a_long_clip_is_searched_block_by_block_and_needs_no_more_memory() -> None:
    """Wherever in the blocks a dissolve lies, it is found once."""
    a, b = shot(A, 70), shot(B, 70)
    for lead in (0, 40, 90, 140, 190, 260):
        still = shot(A, 20)[:1] * lead
        (found,) = _found([*still, *dissolve(a, b, 25), *b[-1:] * 300])
        assert abs(found.first - lead - 45) <= 5 and abs(found.end - lead - 70) <= 5
    detector = TransitionDetector(TransitionSettings())
    for image in shot(A, 50) * 40:
        detector.add(image)
        assert len(detector._images) <= 400


def test_motion_and_light_are_no_transitions() -> None:
    images = shot(A, 150)
    large = shot(A, 150, 3 * 96)
    ramps = np.clip((np.arange(150) - 60) / 20, 0, 1)
    cases: dict[str, Shot] = {
        "speech": images,
        "fast": shot(A, 600)[::4],
        "slow source": [image for image in images[::3] for _ in range(3)],
        "dimmed": [cv2.convertScaleAbs(image, alpha=1 - 0.7 * ramp) for image, ramp in zip(images, ramps, strict=True)],
        "brighter": [
            cv2.convertScaleAbs(image, alpha=1 + 0.4 * ramp, beta=30 * ramp)
            for image, ramp in zip(images, ramps, strict=True)
        ],
        "flash": [*images[:70], *[np.full_like(images[0], 255)] * 3, *images[73:]],
        "flash that fades": [
            cv2.addWeighted(image, 1 - light, np.full_like(image, 255), light, 0)
            for k, image in enumerate(images)
            for light in [0.0 if k < 70 else float(np.exp(-(k - 70) / 4))]
        ],
        "zoom": [
            image[edge : 288 - edge, edge : 288 - edge]
            for image, ramp in zip(large, ramps, strict=True)
            for edge in [round(70 * ramp)]
        ],
        "noise": [np.random.default_rng(k).integers(0, 255, (48, 48, 3), dtype=np.uint8) for k in range(150)],
        "cut": [*images[:75], *shot(B, 75)],
        "nothing": [np.zeros_like(images[0])] * 60,
        "one": images[:1],
        "none": [],
    }
    assert [name for name, case in cases.items() if _found(case)] == []


def test_black_ends_are_found_with_their_fades() -> None:
    images = shot(A, 100)
    black = [np.zeros_like(images[0])] * 12
    assert _near_blank(_found(black + images), [(0, 12)])
    fades = [cv2.convertScaleAbs(image, alpha=k / 10) for k, image in enumerate(images[:10])]
    assert _near_blank(_found([*black, *fades, *images[10:]]), [(0, 22)])
    assert _near_blank(_found([*images[:-10], *fades[::-1], *black]), [(90, 112)])
    assert _near_blank(_found([*black[:2], *images, *black[:1]]), [(0, 2), (102, 103)])
    assert _found([*black, *images], TransitionSettings(blank=0.0)) == []


def _near_blank(found: list[Transition], expected: list[tuple[int, int]]) -> bool:
    return [t.kind for t in found] == ["blank"] * len(expected) and all(
        abs(t.first - first) <= 2 and abs(t.end - end) <= 2 for t, (first, end) in zip(found, expected, strict=True)
    )


def test_a_damaged_frame_does_not_hide_a_dissolve() -> None:
    images = dissolve(shot(A, 90), shot(B, 90), 20)
    detector = TransitionDetector(TransitionSettings())
    for k, image in enumerate(images):
        damaged = k in (76, 80, 81)
        detector.add(np.full_like(image, 90) if damaged else image, damaged=damaged)
    (found,) = detector.transitions()
    assert abs(found.first - 70) <= 4 and abs(found.end - 90) <= 4


@pytest.mark.parametrize("changes", [{"dissolve": 0.0}, {"wipe": -1.0}, {"blank": -1.0}, {"shortest": 0}])
def test_settings_that_make_no_sense(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="transitions"):
        TransitionSettings(**changes)  # pyright: ignore[reportArgumentType]


# --- pieces -----------------------------------------------------------------------------------------------------------


def _seen(first: int, end: int) -> list[Sighting]:
    return [Sighting(k, (100.0, 50.0, 200.0, 150.0), 0.9) for k in range(first + -first % 5, end, 5)]


def _borders(transition: Transition, cuts: list[int], sightings: list[Sighting]) -> list[tuple[int, int, bool]]:
    stretches = split(200, cuts, [1.0] * 200, sightings, IngestSettings(), [transition])
    return [(part.first, part.end, part.transition is not None) for part in stretches]


def test_a_transition_is_a_piece_of_its_own() -> None:
    change = Transition(90, 110, "dissolve", 0.7)
    assert _borders(change, [], _seen(0, 200)) == [(0, 90, False), (90, 110, True), (110, 200, False)]
    # Cuts in it do not count, and one next to it is its end.
    assert _borders(change, [95, 113], _seen(0, 200)) == [(0, 90, False), (90, 113, True), (113, 200, False)]
    assert _borders(change, [40], _seen(0, 200)) == [
        (0, 40, False), (40, 90, False), (90, 110, True), (110, 200, False),
    ]  # fmt: skip


def test_a_transition_without_a_face_near_it_changes_nothing() -> None:
    change = Transition(90, 110, "dissolve", 0.7)
    assert _borders(change, [], []) == [(0, 200, False)]
    assert not any(flag for *_, flag in _borders(change, [], _seen(0, 50)))


@pytest.mark.parametrize("change", ["dissolve", "wipe right", "fade black"])
def test_pieces_before_and_after_cover_the_clip(tmp_path: Path, change: str) -> None:
    images = CHANGES[change](shot(A, 80, 128), shot(B, 80, 128), 25)
    file = write_video(tmp_path / "a.mp4", images, options={"crf": "18"})
    before, between, after = pieces_of(file)
    assert sum(piece.num_frames for piece in (before, between, after)) == 135
    assert before.rejection is None and after.rejection is None
    assert between.rejection is not None and between.rejection.reason == "transition" and between.contents is None
    assert between.rejection.score is not None and 0 < between.rejection.score <= 1
    assert change.split()[0] in between.rejection.detail
    assert before.num_frames <= 57 and after.num_frames <= 57


def test_black_ends_are_trimmed(tmp_path: Path) -> None:
    images = shot(A, 60, 128)
    black = [np.zeros_like(images[0])]
    file = write_video(tmp_path / "a.mp4", [*black * 15, *images, *black * 5], options={"crf": "18"})
    head, kept, tail = pieces_of(file)
    assert kept.rejection is None and abs(kept.num_frames - 60) <= 4
    assert [piece.rejection and piece.rejection.reason for piece in (head, tail)] == ["blank", "blank"]
    assert head.num_frames + kept.num_frames + tail.num_frames == 80


# --- real clips -------------------------------------------------------------------------------------------------------


class _Small:
    def __init__(self, time_s: float, end_s: float, image: np.ndarray) -> None:
        self.time_s, self.end_s, self.image = time_s, end_s, image


@pytest.fixture(scope="module")
def clips(media: Path) -> dict[str, Shot]:
    """The eight real clips at 25 frames per second, small."""
    found = {}
    for file in sorted((media / "video").glob("*.mp4")):
        with VideoSource(file) as source:
            small = ((f.time_s, f.end_s, f.reduced(96, 96)) for f in source.frames())
            shown = constant_rate((_Small(*frame) for frame in small), 0.0, None, source.info.tick_s)
            found[file.name] = [frame.image for frame in shown]
    assert len(found) == 8
    return found


@pytest.mark.parametrize("speed", [1, 2, 3])
def test_real_clips_have_no_transition_even_played_faster(clips: dict[str, Shot], speed: int) -> None:
    assert [name for name, images in clips.items() if _found(images[::speed])] == []


@pytest.mark.parametrize("change", ["dissolve", "wipe right", "wipe up", "fade black"])
def test_transitions_between_real_clips_are_found(clips: dict[str, Shot], change: str) -> None:
    pairs = list(itertools.permutations(clips.values(), 2))
    for length in (8, 16, 25):
        for a, b in pairs[length % 3 :: 3]:
            (found,) = _found(CHANGES[change](a[:75], b[:75], length))
            assert found.first < 75 - length / 2 < found.end


def test_hard_cuts_between_real_clips_are_no_transitions(clips: dict[str, Shot]) -> None:
    for (a, one), (b, other) in itertools.permutations(clips.items(), 2):
        for at in (50, 80, 110):
            assert _found([*one[at - 50 : at], *other[at - 50 : at]]) == [], (a, b, at)
