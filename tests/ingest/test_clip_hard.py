"""Sources that are damaged or unusual, one clip each, drawn here: clocks, torn frames, orientation, colour, sound."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from annotate.filters import FilterSettings, judge
from annotate.scores import info_scores
from ingest.settings import CutSettings, TransitionSettings
from shards.reader import SPEECH
from talkinghead.media.video_source import VideoSource
from tests.support.damaged_clock import MKV_TICKS, TS_TICKS, number_of, numbered, restamp_mkv, restamp_ts
from tests.support.damaged_packets import encoded, flipped, moving_scene, with_packets_changed
from tests.support.display_matrices import MATRICES, with_track_matrix
from tests.support.hdr_pictures import PATCH, hdr_signal, patches, write_hdr
from tests.support.ingested_clips import SMALL, Made, NoFace, made_of, pieces_of, with_sound_changed
from tests.support.interlaced_video import moments, woven, write_fields
from tests.support.media_files import write_video
from tests.support.sound_files import click_times, ticking, voice, with_bytes

RATE = 48000
WHOLE: dict[str, Any] = {"box": (0.0, 0.0, 1.0, 1.0), "box_width": 1.0, "box_height": 1.0}
"""A box that is the whole frame."""
UNCUT = dataclasses.replace(
    SMALL,
    cuts=CutSettings(least=255.0, difference=255.0),
    transitions=TransitionSettings(dissolve=2.0, wipe=2.0, blank=0.0),
)
"""Numbered images differ as shots do."""
NATIVE = dataclasses.replace(SMALL, size=0, min_frames=1, min_sightings=1)


def _texture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(20, 220, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (128, 128), interpolation=cv2.INTER_CUBIC)


def _numbers(made: Made) -> list[int]:
    """Numbers that the frames show; a face crop of the middle 64 of 64 pixels shows all of the image."""
    return [number_of(frame) for frame in made.frames]


def _all(file: Path, **changes: Any) -> list[Made]:
    return [made_of(piece) for piece in pieces_of(file, settings=UNCUT, **WHOLE, **changes)]


def _only(file: Path, **changes: Any) -> Made:
    (made,) = _all(file, **changes)
    return made


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_one_damaged_stamp_moves_one_frame(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mkv", numbered(75), options={"g": "10", "crf": "1", "bf": "0"})
    restamp_mkv(file, lambda kind, number, old: old + 20 * MKV_TICKS if number == 40 else old)
    made = _only(file)
    assert _numbers(made) == list(range(75))
    assert made.info.source_damaged_stamps == 1 and made.info.source_clock_jumps == 0
    assert made.info.source_pts == pytest.approx(np.arange(75) / 25, abs=1e-3)
    assert "1 damaged time stamp: placed where the neighbours say" in made.info.notes
    scores = info_scores(made.info)
    assert (scores["damaged_time_stamps"], scores["clock_jumps"], scores["repeated_frame_fraction"]) == (1, 0, 0)


def test_what_counts_as_a_jump_can_be_set(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mkv", numbered(80), options={"g": "10", "crf": "1", "bf": "0"})
    restamp_mkv(file, lambda kind, number, old: old + 2 * MKV_TICKS if number >= 40 else old)
    first, second = _all(file)
    assert (first.info.num_frames, second.info.num_frames) == (40, 40) and first.info.source_clock_jumps == 1
    settings = dataclasses.replace(UNCUT, max_step_s=3.0)
    (whole,) = (made_of(piece) for piece in pieces_of(file, settings=settings, **WHOLE))
    assert whole.info.num_frames == 130 and whole.info.source_clock_jumps == 0


def _recording(path: Path, first: int, clicks: list[float], rate: int = RATE) -> Path:
    """A transport stream of 40 images from number `first` on, with clicks at these times after its start."""
    sound = 0.02 * voice(1.6, rate) + ticking(clicks, 1.6, rate)
    return write_video(
        path, numbered(first + 40)[first:], options={"g": "10", "crf": "1", "bf": "0"}, audio=sound[None],
        audio_rate=rate,
    )  # fmt: skip


def test_two_recordings_in_one_file_are_two_clips_with_their_own_sound(tmp_path: Path) -> None:
    one = _recording(tmp_path / "one.ts", 0, [0.5, 1.1])
    two = _recording(tmp_path / "two.ts", 40, [0.3, 1.3])
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    first, second = _all(both)
    assert _numbers(first) == list(range(40)) and _numbers(second) == list(range(40, 80))
    alone = [_only(file) for file in (one, two)]
    for made, own in zip((first, second), alone, strict=True):
        assert made.info.audio == "present" and made.info.source_clock_jumps == 1
        assert click_times(made.audio) == pytest.approx(click_times(own.audio), abs=2e-3), "as in each recording alone"
        assert any("clock jumps once" in note for note in made.info.notes)
        # The sound's end less that of the pictures is that of two recordings of equal length, not of the header.
        assert made.info.av_duration_difference_s == pytest.approx(0.0, abs=0.08)
        assert made.info.start_s == pytest.approx(own.info.start_s, abs=1e-3), "times are those of the source"
    assert info_scores(first.info)["clock_jumps"] == 1


@pytest.mark.parametrize("rates", [(48000, 44100), (22050, 48000)])
def test_a_new_rate_of_the_sound_in_the_middle(tmp_path: Path, rates: tuple[int, int]) -> None:
    one = _recording(tmp_path / "one.ts", 0, [0.5, 1.1], rates[0])
    two = _recording(tmp_path / "two.ts", 40, [0.3, 1.3], rates[1])
    alone = [_only(file) for file in (one, two)]
    # The second one goes on where the first one ends, on the same clock.
    leads = [made.info.start_s for made in alone]
    restamp_ts(two, lambda kind, number, old: old + round((1.6 + leads[0] - leads[1]) * TS_TICKS))
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    made = _all(both)
    assert [number for part in made for number in _numbers(part)] == list(range(80))
    before, clicks = 0.0, []
    for part in made:
        clicks += [before + time for time in click_times(part.audio)]
        before += part.info.num_frames / 25
    wanted = [*click_times(alone[0].audio), *(1.6 + time for time in click_times(alone[1].audio))]
    assert clicks == pytest.approx(wanted, abs=3e-3)


def test_metadata_name_times_as_players_show_them(tmp_path: Path) -> None:
    """A still image held for ten seconds is one frame of the file: intervals after it are still in players' time."""
    ticks = [*range(40), *range(290, 354)]
    sound = 0.02 * voice(14.16, RATE) + ticking([12.4, 13.4], 14.16, RATE)
    file = write_video(
        tmp_path / "a.mov",
        numbered(104),
        ticks=ticks,
        time_base=Fraction(1, 25),
        audio=sound[None],
        audio_rate=RATE,
        audio_codec="pcm_s16le",
        options={"g": "10", "crf": "1", "bf": "0"},
    )
    made = _only(file, start_s=11.8, end_s=13.8)
    assert (made.info.start_s, made.info.end_s, made.info.num_frames) == (11.8, 13.8, 50)
    assert _numbers(made) == list(range(45, 95))
    assert made.info.source_pts == pytest.approx(11.8 + np.arange(50) / 25, abs=1e-3)
    assert click_times(made.audio) == pytest.approx([0.6, 1.6], abs=2e-3)
    # An interval that begins in the gap begins after it, one that ends in it ends before it.
    late = _only(file, start_s=5.0, end_s=13.2)
    assert (late.info.start_s, _numbers(late)) == (11.6, list(range(40, 80)))
    early = _only(file, start_s=0.0, end_s=5.0)
    assert (early.info.end_s, _numbers(early)) == (1.6, list(range(40)))


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(tmp_path_factory.mktemp("scene") / "a.mp4", "h264", moving_scene(100), g="25", bf="0")


def test_a_damaged_frame_costs_those_up_to_the_next_key_frame(tmp_path: Path, scene: Path) -> None:
    rng = np.random.default_rng(0)

    def change(number: int, packet: av.Packet) -> bytes:
        return flipped(packet, rng, 20) if number == 60 else bytes(packet)

    (piece,) = pieces_of(with_packets_changed(scene, tmp_path / "torn.mp4", change))
    made = made_of(piece)
    assert made.info.damaged_frames == list(range(60, 75))
    assert "15 frames are damaged" in made.info.notes
    scores = info_scores(made.info)
    assert scores["damaged_fraction"] == 0.15 and judge(scores, FilterSettings()) is None
    tighter = judge(scores, FilterSettings(max_damaged_fraction=0.1))
    assert tighter is not None and (tighter.reason, tighter.score) == ("damaged", 0.15)


def test_much_damage_is_rejected_and_is_no_shot_of_its_own(tmp_path: Path) -> None:
    """Torn images look like other shots. Whether it is still the same one after them, nobody knows: it may be split."""
    rng = np.random.default_rng(1)
    (wide,) = moving_scene(1, 512, 512)
    images = [np.ascontiguousarray(wide[100:356, 40 + 2 * k : 296 + 2 * k]) for k in range(100)]
    whole = encoded(tmp_path / "whole.mp4", "h264", images, g="50", bf="0")

    def change(number: int, packet: av.Packet) -> bytes:
        return flipped(packet, rng, 60) if number in (5, 10, 15) else bytes(packet)

    first, *rest = pieces_of(with_packets_changed(whole, tmp_path / "torn.mp4", change))
    assert (first.num_frames, [piece.num_frames for piece in rest]) in ((100, []), (50, [50]))
    made = made_of(first)
    damaged = set(made.info.damaged_frames)
    assert set(range(16, 50)) <= damaged <= set(range(5, 50))
    verdict = judge(info_scores(made.info), FilterSettings())
    assert verdict is not None and verdict.reason == "damaged"


def test_an_undamaged_clip_says_nothing_new(scene: Path) -> None:
    (piece,) = pieces_of(scene)
    assert piece.contents is not None
    text = piece.contents["json"].decode()
    assert "damaged" not in text and "source_hdr" not in text and "audio_gap" not in text


# --- orientation, colour, fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", MATRICES)
def test_any_display_matrix_is_applied(tmp_path: Path, matrix: tuple[float, float, float, float]) -> None:
    upright = _texture(5)
    plain = write_video(tmp_path / "plain.mp4", [upright] * 40, options={"crf": "8"})
    made = _only(with_track_matrix(plain, tmp_path / "a.mp4", matrix))
    # Shown x = a·x + c·y, shown y = b·x + d·y about the middle: each shown pixel from where it lay.
    a, b, c, d = (int(value) for value in matrix)
    y, x = np.mgrid[0:128, 0:128] * 2 - 127
    determinant = a * d - b * c
    from_x, from_y = (d * x - c * y) // determinant, (a * y - b * x) // determinant
    wanted = upright[(from_y + 127) // 2, (from_x + 127) // 2]
    assert np.abs(made.frames[20].astype(int) - wanted).mean() < 6
    assert made.info.source_mirrored == (determinant < 0)
    assert info_scores(made.info)["mirrored"] == float(determinant < 0)


@pytest.mark.parametrize("transfer", ["HLG", "PQ"])
def test_hdr_is_mapped_and_said(tmp_path: Path, transfer: str) -> None:
    picture = patches()
    file = write_hdr(
        tmp_path / "a.mkv", hdr_signal(picture, transfer), transfer, options={"x265-params": "log-level=0"}
    )
    (piece,) = pieces_of(file, settings=NATIVE, **WHOLE)
    made = made_of(piece)
    assert made.info.source_hdr == transfer and f"{transfer} tone-mapped to BT.709" in made.info.notes
    scale = made.frames.shape[1] / picture.shape[0]
    size = round(PATCH * scale)
    errors = []
    for top in range(0, made.frames.shape[1] - size + 1, size):
        for left in range(0, made.frames.shape[2] - size + 1, size):
            shown = made.frames[0, top : top + size, left : left + size]
            middle = shown[size // 4 : -size // 4, size // 4 : -size // 4].mean(axis=(0, 1))
            wanted = picture[round((top + size / 2) / scale), round((left + size / 2) / scale)]
            errors.append(np.abs(middle - wanted).mean())
    assert np.mean(errors) < 6 and max(errors) < 20
    verdict = judge(info_scores(made.info), FilterSettings(reject_hdr=True))
    assert verdict is not None and verdict.reason == "hdr"
    assert judge(info_scores(made.info), FilterSettings(min_frames=None)) is None


def test_interlaced_sources_are_deinterlaced_and_said(tmp_path: Path) -> None:
    pictures = moments(120)
    file = write_fields(tmp_path / "a.mp4", woven(pictures, True), "tff")
    (piece,) = pieces_of(file, settings=NATIVE, **WHOLE)
    made = made_of(piece)
    assert made.info.source_interlaced and "deinterlaced" in made.info.notes
    # Teeth: lines that stick out of both neighbours where it moves. In the woven frames they are several times as many.
    moving = made.frames[10:50, 40:].astype(int)
    with VideoSource(file) as source:
        assert source.info.interlaced
    assert np.abs(2 * moving[:, 1:-1] - moving[:, :-2] - moving[:, 2:]).mean() < 12
    verdict = judge(info_scores(made.info), FilterSettings(reject_interlaced=True))
    assert verdict is not None and verdict.reason == "interlaced"


# --- sound ------------------------------------------------------------------------------------------------------------


def _with_sound(path: Path, sound: np.ndarray, frames: int = 100, **more: object) -> Path:
    """Two pictures with a cut in the middle, and mono sound."""
    images = [_texture(1)] * (frames // 2) + [_texture(2)] * (frames // 2)
    return write_video(path, images, audio=sound[None], audio_rate=RATE, **more)  # pyright: ignore


def test_sound_of_the_second_piece_is_its_own(tmp_path: Path) -> None:
    sound = 0.02 * voice(4.0, RATE) + ticking([0.5, 2.9], 4.0, RATE)
    first, second = (made_of(piece) for piece in pieces_of(_with_sound(tmp_path / "a.mp4", sound)))
    assert (first.info.num_frames, second.info.num_frames) == (50, 50)
    assert click_times(first.audio) == pytest.approx([0.5], abs=2e-3)
    assert click_times(second.audio) == pytest.approx([0.9], abs=2e-3)
    assert second.info.audio_offset_samples == 0


def test_a_gap_of_broken_packets_is_silent_and_counted(tmp_path: Path) -> None:
    sound = 0.3 * voice(4.0, RATE) + ticking([3.1, 3.6], 4.0, RATE, level=0.9)
    whole = _with_sound(tmp_path / "whole.mkv", sound)

    def change(number: int, packet: av.Packet) -> av.Packet:
        broken = 2.4 <= float((packet.pts or 0) * packet.time_base) < 2.7
        return with_bytes(packet, np.random.default_rng(number).bytes(packet.size)) if broken else packet

    file = with_sound_changed(whole, tmp_path / "broken.mkv", change)
    before, now = (made_of(pieces_of(each)[1]) for each in (whole, file))
    quiet = now.audio[round(0.46 * 16000) : round(0.66 * 16000)]  # the piece begins at 2 s; margins for overlapping
    assert not quiet.any(), "silence, and nothing made up"
    assert np.abs(before.audio[round(0.46 * 16000) : round(0.66 * 16000)]).max() > 0.05
    assert now.info.audio_gap_samples == pytest.approx(0.3 * 16000, abs=0.05 * 16000)
    assert click_times(now.audio, level=0.6) == pytest.approx(click_times(before.audio, level=0.6), abs=2e-3)
    scores = info_scores(now.info)
    assert scores["audio_padded_fraction"] == pytest.approx(now.info.audio_gap_samples / 32000)
    assert judge(scores, FilterSettings()) is None
    verdict = judge(scores, FilterSettings(require_audio=True))
    assert verdict is not None and (verdict.reason, verdict.score) == ("no_audio", scores["audio_padded_fraction"])


def test_samples_that_are_no_numbers_do_not_silence_the_rest(tmp_path: Path) -> None:
    sound = 0.3 * voice(4.0, RATE)
    sound[100_000:100_100:5] = np.nan
    sound[150_000:150_010] = np.inf
    file = _with_sound(tmp_path / "a.mkv", sound, audio_codec="pcm_f32le")
    first, second = (made_of(piece) for piece in pieces_of(file))
    assert (first.info.audio, second.info.audio) == ("present", "present")
    assert (first.info.audio_nan_samples, second.info.audio_nan_samples) == (0, 30)
    assert info_scores(second.info)["audio_nan_samples"] == 30
    assert any("no numbers" in note for note in second.info.notes)
    assert np.abs(second.audio).max() > 0.1


@pytest.mark.parametrize("seconds", [0.7, 2.0, 3.6])
def test_sound_that_ends_early_never_trains_from_speech(tmp_path: Path, seconds: float) -> None:
    made = [made_of(p) for p in pieces_of(_with_sound(tmp_path / "a.mp4", 0.3 * voice(seconds, RATE)))]
    left = seconds
    for part in made:
        scores = info_scores(part.info)
        padded = max(0.0, 1 - left / 2)
        assert scores["audio_padded_fraction"] == pytest.approx(padded, abs=0.03)
        kept = all((scores[name] or 0) <= most for name, most in SPEECH.items())
        assert kept == (padded < 0.04)
        verdict = judge(scores, FilterSettings(require_audio=True))
        assert (verdict is None) == kept and (verdict is None or verdict.reason in ("no_audio", "silent_audio"))
        assert judge(scores, FilterSettings()) is None, "pictures without sound still train a renderer"
        left = max(0.0, left - 2)


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_few_frames_are_short_whether_or_not_there_is_a_face(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", [_texture(1)] * 12 + [_texture(2)] * 40)
    short, long = pieces_of(file, NoFace())
    assert short.rejection is not None and long.rejection is not None
    assert (short.rejection.reason, short.rejection.score) == ("short_piece", 12.0)
    assert long.rejection.reason == "no_face"
