"""Hard cuts are found where they are; motion, flashes, noise and slow sources are no cuts."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.faces import Sighting, follow
from ingest.settings import CutSettings, IngestSettings
from ingest.shots import CutDetector, split
from talkinghead.media.frame_clock import constant_rate
from talkinghead.media.video_source import VideoSource


def _cuts(frames: list[np.ndarray]) -> list[int]:
    detector = CutDetector(CutSettings())
    for frame in frames:
        detector.add(frame)
    return detector.cuts()


@pytest.fixture(scope="module")
def clips(media: Path) -> dict[str, list[np.ndarray]]:
    """The eight real clips at 25 frames per second, small."""
    found = {}
    for file in sorted((media / "video").glob("*.mp4")):
        with VideoSource(file) as source:
            small = ((f.time_s, f.end_s, f.reduced(96, 96)) for f in source.frames())
            shown = constant_rate((_Small(*frame) for frame in small), 0.0, None, source.info.tick_s)
            found[file.name] = [frame.image for frame in shown]
    assert len(found) == 8
    return found


class _Small:
    def __init__(self, time_s: float, end_s: float, image: np.ndarray) -> None:
        self.time_s, self.end_s, self.image = time_s, end_s, image


@pytest.mark.parametrize("speed", [1, 2, 3])
def test_real_clips_have_no_cut_even_played_faster(clips: dict[str, list[np.ndarray]], speed: int) -> None:
    assert [name for name, frames in clips.items() if _cuts(frames[::speed])] == []


@pytest.mark.parametrize("blend", [False, True])
def test_every_cut_between_real_clips_is_found(clips: dict[str, list[np.ndarray]], blend: bool) -> None:
    for a, b in itertools.permutations(clips.values(), 2):
        middle = [cv2.addWeighted(a[50], 0.5, b[50], 0.5, 0)] if blend else []
        found = _cuts(a[:50] + middle + b[50:100])
        assert len(found) == 1 and found[0] in ((50, 51) if blend else (50,))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9])
def test_a_cut_blended_over_two_frames_is_found_whatever_the_shares(
    clips: dict[str, list[np.ndarray]], share: float
) -> None:
    for a, b in itertools.permutations(clips.values(), 2):
        found = _cuts([*a[:50], cv2.addWeighted(a[50], share, b[50], 1 - share, 0), *b[51:100]])
        assert len(found) == 1 and found[0] in (50, 51)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_flash_is_no_cut(clips: dict[str, list[np.ndarray]], length: int) -> None:
    for frames in clips.values():
        bright = [cv2.convertScaleAbs(frame, alpha=1.3, beta=90) for frame in frames[40 : 40 + length]]
        assert _cuts(frames[:40] + bright + frames[40 + length : 80]) == []


def test_slow_source_shown_at_25_has_no_cuts(clips: dict[str, list[np.ndarray]]) -> None:
    for frames in clips.values():
        slow = [frame for frame in frames[::3] for _ in range(3)]
        assert _cuts(slow) == []


def test_cut_between_slow_sources_is_found_at_its_first_frame(clips: dict[str, list[np.ndarray]]) -> None:
    a, b = list(clips.values())[:2]
    slow = [frame for frame in a[:60:3] + b[:60:3] for _ in range(3)]
    assert _cuts(slow) == [60]


def test_a_source_that_drops_frames_has_no_cuts(clips: dict[str, list[np.ndarray]]) -> None:
    """A quarter of the frames is missing here and there: what moves has moved farther over each gap."""
    for name, frames in clips.items():
        kept = [k for k in range(len(frames)) if np.random.default_rng(k).random() > 0.25]
        detector = CutDetector(CutSettings())
        for before, k in zip([kept[0], *kept], kept, strict=False):
            detector.add(frames[k], float(max(1, k - before)))
        assert detector.cuts() == [], name


def test_a_step_is_divided_by_its_time() -> None:
    """A bar that moves evenly; in one place four frames are missing."""
    images = [np.zeros((48, 48, 3), np.uint8) for _ in range(60)]
    for k, image in enumerate(images):
        image[:, k // 2 : k // 2 + 10] = 120
    kept = [*range(20), *range(24, 60)]
    for gaps, expected in (([1.0] * len(kept), 1), ([1.0] * 20 + [5.0] + [1.0] * 35, 0)):
        detector = CutDetector(CutSettings(least=1.0, difference=2.0, ratio=2.0))
        for k, gap in zip(kept, gaps, strict=True):
            detector.add(images[k], gap)
        assert len(detector.cuts()) == expected


@pytest.mark.parametrize("length", [1, 6, 20])
def test_damaged_images_are_no_shots_of_their_own(clips: dict[str, list[np.ndarray]], length: int) -> None:
    """Nor do they hide a cut: it is found at the first image that is whole."""
    torn = [np.full_like(next(iter(clips.values()))[0], 90)] * length
    a, b = list(clips.values())[:2]
    for after, expected in ((a[40:80], []), (b[40:80], [40 + length])):
        detector = CutDetector(CutSettings())
        for number, frame in enumerate(a[:40] + torn + after):
            damaged = 40 <= number < 40 + length
            detector.add(frame, 1.0 + (number == 40 + length) * length, damaged=damaged)
        assert detector.cuts() == expected
        assert len(detector.steps) == 80 + length


def test_a_cut_over_two_frames_is_at_the_larger_step_also_where_time_is_missing() -> None:
    """Out of a shot in two steps, the first one over a longer time: its frame shows the new shot."""
    detector = CutDetector(CutSettings())
    levels = [50] * 20 + [190, 100] + [100] * 20
    grain = np.random.default_rng(0).integers(0, 9, (len(levels), 48, 48, 3)).astype(np.uint8)
    for number, level in enumerate(levels):
        detector.add(grain[number] + np.uint8(level), 1.7 if number == 20 else 1.0)
    assert detector.cuts() == [20]


def _scenes(*scenes: tuple[int, int], grain: int = 2) -> list[np.ndarray]:
    """Scenes of (level, number of frames), with grain of 0 .. `grain` - 1 levels."""
    noise = np.random.default_rng(0)
    levels = [level for level, count in scenes for _ in range(count)]
    return [noise.integers(0, grain, (48, 48, 3)).astype(np.uint8) + np.uint8(level) for level in levels]


def test_copies_and_damaged_frames_take_no_part() -> None:
    detector, (first, second, third) = CutDetector(CutSettings()), _scenes((50, 3))
    taken = [detector.add(frame) for frame in (first, first, second)]
    assert taken == [True, False, True], "grain of half a level makes another frame, no change makes a copy"
    assert not detector.add(third, damaged=True) and len(detector.steps) == 4


def test_a_change_must_be_large_enough_and_its_size_is_not_halved() -> None:
    assert _cuts(_scenes((50, 20), (54, 20))) == [20]
    assert _cuts(_scenes((50, 20), (52, 20))) == [], "below 3 levels"


def test_a_scene_of_three_frames_has_both_its_cuts() -> None:
    """Each stands out from the two steps on either side; what is further away does not count."""
    assert _cuts(_scenes((50, 20), (120, 3), (190, 20))) == [20, 23]


def test_a_flash_soon_after_a_cut_ends_without_one() -> None:
    """The frames just before the flash come back after it; those of the shot before do not."""
    found = _cuts(_scenes((50, 20), (120, 2), (250, 3), (120, 20)))
    assert not {22, 25} & set(found)


def test_motion_that_grows_and_ends_is_no_cut() -> None:
    """Steps of 15, 20, 30 and 15 levels: the largest is twice the others, and must be three times as large."""
    assert _cuts(_scenes((50, 20), (65, 1), (85, 1), (115, 1), (130, 20))) == []


def test_nothing_and_noise_have_no_cuts() -> None:
    random = np.random.default_rng(0)
    assert _cuts([]) == [] and _cuts([np.zeros((9, 9, 3), np.uint8)]) == []
    assert _cuts([random.integers(0, 256, (200, 200, 3), dtype=np.uint8) for _ in range(40)]) == []


# --- faces and shots --------------------------------------------------------------------------------------------------

SETTINGS = IngestSettings()


def _seen(first: int, end: int, x: float = 100.0, size: float = 100.0, step: float = 0.0) -> list[Sighting]:
    """A face in every fifth frame."""
    return [
        Sighting(k, (x + step * k, 50.0, x + step * k + size, 50.0 + size), 0.9)
        for k in range(first + -first % 5, end, 5)
    ]


def _split(num_frames: int, sightings: list[Sighting], cuts: list[int] | None = None, change: int | None = None):
    steps = [1.0] * num_frames
    if change is not None:
        steps[change] = 5.0
    ordered = sorted(sightings, key=lambda s: s.frame)
    parts = split(num_frames, cuts or [], steps, ordered, SETTINGS)
    assert [p.first for p in parts[1:]] == [p.end for p in parts[:-1]], "no frame is lost or used twice"
    assert parts[0].first == 0 and parts[-1].end == num_frames
    return [(p.first, p.end, p.face is not None) for p in parts]


def test_one_face_stays_whole() -> None:
    assert _split(100, _seen(0, 100)) == [(0, 100, True)]


def test_missed_looks_never_split() -> None:
    for gap in (5, 10, 20):
        assert _split(150, _seen(0, 50) + _seen(50 + gap, 150)) == [(0, 150, True)]
    assert _split(100, _seen(15, 90)) == [(0, 100, True)], "nor at the ends"


def test_long_absence_splits_and_is_cut_off() -> None:
    parts = _split(200, _seen(0, 60) + _seen(120, 200))
    assert [face for *_, face in parts] == [True, False, True]
    assert 56 <= parts[0][1] <= 60 and 116 <= parts[2][0] <= 120
    assert _split(160, _seen(0, 73), change=73) == [(0, 73, True), (73, 160, False)]


def test_cuts_split_exactly() -> None:
    assert _split(150, _seen(0, 150), cuts=[75]) == [(0, 75, True), (75, 150, True)]


def test_another_face_in_another_place_splits_where_the_image_changed() -> None:
    assert _split(150, _seen(0, 75) + _seen(75, 150, x=400), change=73) == [(0, 73, True), (73, 150, True)]


def test_two_people_side_by_side_stay_whole_and_the_larger_is_followed() -> None:
    large, small = _seen(0, 100, x=400, size=120), _seen(0, 100)
    parts = split(100, [], [1.0] * 100, sorted(large + small, key=lambda s: s.frame), SETTINGS)
    assert len(parts) == 1 and parts[0].face is not None
    assert set(parts[0].face.sightings) == set(large)


def test_a_single_mistake_of_the_detector_is_no_face() -> None:
    assert _split(100, _seen(50, 56)) == [(0, 100, False)]


def test_no_faces_at_all_and_too_long_pieces() -> None:
    assert _split(90, []) == [(0, 90, False)]
    long = _split(7000, _seen(0, 7000))
    assert [end - first for first, end, _ in long] == [2333, 2333, 2334]


def test_what_is_too_long_is_told_by_its_own_length() -> None:
    """Not by where it ends; and two parts are parts."""
    parts = _split(6200, _seen(0, 6200), cuts=[3100])
    assert [end - first for first, end, _ in parts] == [1550] * 4
    assert _split(6200, _seen(0, 3100), cuts=[3100])[-1] == (3100, 6200, False), "without a face it stays whole"


def test_three_looks_make_a_face() -> None:
    assert [face for *_, face in _split(50, _seen(20, 31))] == [True]
    assert [face for *_, face in _split(50, _seen(20, 30))] == [False]


def _seen_from(frame: int, end: int) -> list[Sighting]:
    return [Sighting(k, (100.0, 50.0, 200.0, 150.0), 0.9) for k in range(frame, end, 5)]


def test_a_gap_of_a_second_splits_and_a_shorter_one_does_not() -> None:
    assert _split(150, _seen_from(24, 150)) == [(0, 150, True)]
    assert [face for *_, face in _split(150, _seen_from(25, 150))] == [False, True]


@pytest.mark.parametrize(("change", "border"), [(70, 71), (71, 71), (73, 73), (75, 75), (76, 71)])
def test_a_face_comes_after_the_last_look_without_it(change: int, border: int) -> None:
    """The looks are at 70 and 75; the change of the image that counts lies after one and no later than the other."""
    assert _split(150, _seen(75, 150), change=change) == [(0, border, False), (border, 150, True)]


def test_a_face_never_comes_with_the_first_frame_of_a_shot_that_began_without_it() -> None:
    settings = IngestSettings(max_gap=5)
    for change in (0, 1, 2):
        steps = [1.0] * 60
        steps[change] = 5.0
        parts = split(60, [], steps, _seen(5, 60), settings)
        assert [part.first for part in parts] == [0, max(1, change)]


def test_moving_face_is_one_track_and_a_jump_is_two() -> None:
    assert len(follow(_seen(0, 100, step=8.0), every=5, max_gap=25)) == 1
    assert len(follow(_seen(0, 50) + _seen(50, 100, x=300), every=5, max_gap=25)) == 2
    assert len(follow(_seen(0, 50) + _seen(50, 100, size=250), every=5, max_gap=25)) == 2
