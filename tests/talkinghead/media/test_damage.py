"""Damaged frames are marked up to the next key frame, and undamaged ones are not."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from talkinghead.media.damage import TornLook
from talkinghead.media.video_source import VideoSource
from tests.support.damaged_packets import ENCODERS, encoded, flipped, moving_scene, with_packets_changed

_SEEN = 12  # levels in one block of 16 x 16 pixels: a difference that is seen


def _read(path: Path) -> dict[int, tuple[np.ndarray, bool]]:
    """Number of each frame → its brightness, and whether it is marked."""
    with VideoSource(path) as source:
        frames = {
            round(frame.time_s * 25): (cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), frame.damaged)
            for frame in source.frames()
        }
        assert source.damaged_frames == sum(damaged for _, damaged in frames.values())
    return frames


def _differs(one: np.ndarray, two: np.ndarray) -> bool:
    difference = np.abs(one.astype(np.int16) - two).astype(np.float32)
    return bool(cv2.resize(difference, (16, 16), interpolation=cv2.INTER_AREA).max() > _SEEN)


def _seen_and_marked(clean: Path, damaged: Path) -> tuple[list[int], list[int]]:
    """Numbers of the frames that differ visibly from the undamaged ones, and of those that are marked."""
    right, found = _read(clean), _read(damaged)
    seen = [n for n, (image, _) in found.items() if _differs(image, right[n][0])]
    return seen, [n for n, (_, marked) in found.items() if marked]


@pytest.mark.parametrize(("codec", "least"), [("h264", 0.97), ("mpeg4", 0.75)])
@pytest.mark.parametrize("count", [1, 5])
def test_flipped_bytes_of_codecs_whose_decoders_notice(tmp_path: Path, codec: str, least: float, count: int) -> None:
    clean = encoded(tmp_path / "clean.mkv", codec, moving_scene(100))
    all_seen = all_found = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        damaged = with_packets_changed(
            clean,
            tmp_path / "damaged.mkv",
            lambda n, packet, rng=rng: flipped(packet, rng, count) if n in (33, 55) else bytes(packet),
        )
        seen, marked = _seen_and_marked(clean, damaged)
        all_seen += len(seen)
        all_found += len({*seen} & {*marked})
        assert not any(n < 25 or n >= 75 for n in marked), "nothing before the first hit, nothing from a key frame on"
    assert all_seen and all_found >= least * all_seen


@pytest.mark.parametrize(("codec", "least"), [("vp9", 0.4), ("hevc", 0.6)])
def test_flipped_bytes_of_codecs_whose_decoders_notice_nothing(tmp_path: Path, codec: str, least: float) -> None:
    clean = encoded(tmp_path / "clean.mkv", codec, moving_scene(100, 448, 448), crf="22")
    with av.open(str(clean)) as container:
        sizes = [p.size for p in container.demux(video=0) if p.size]
    large = [max(range(first + 3, first + 15), key=lambda n: sizes[n]) for first in (25, 50)]  # others build on these
    hits = found = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        damaged = with_packets_changed(
            clean,
            tmp_path / "damaged.mkv",
            lambda n, packet, rng=rng: flipped(packet, rng, 8) if n in large else bytes(packet),
        )
        seen, marked = _seen_and_marked(clean, damaged)
        for first, end in ((25, 50), (50, 75)):  # one hit in each
            torn = {n for n in seen if first <= n < end}
            hits += bool(torn)
            found += bool(torn & {*marked})
        assert not any(n < 25 or n >= 75 for n in marked)
    assert hits >= 4 and found >= least * hits


def test_frames_shown_before_the_damaged_one_that_they_are_predicted_from(tmp_path: Path) -> None:
    """B-frames come out of the decoder before the frame after them, which says that it is damaged."""
    images = moving_scene(50)
    clean = encoded(tmp_path / "clean.mkv", "h264", images, **{"x264-params": "b-adapt=0:b-pyramid=0", "bf": "3"})
    with av.open(str(clean)) as container:
        order = [round(p.pts * p.time_base * 25) for p in container.demux(video=0) if p.size]
    hit = order.index(12)
    assert {9, 10, 11} <= {*order[hit + 1 : hit + 4]}, "three B-frames are decoded after it"
    damaged = with_packets_changed(
        clean,
        tmp_path / "damaged.mkv",
        lambda n, packet: flipped(packet, np.random.default_rng(0), 20) if n == hit else bytes(packet),
    )
    _, marked = _seen_and_marked(clean, damaged)
    assert marked == list(range(9, 25))


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_packet_that_cannot_be_decoded(tmp_path: Path, codec: str) -> None:
    clean = encoded(tmp_path / "clean.mkv", codec, moving_scene(75), bf="0")
    damaged = with_packets_changed(
        clean, tmp_path / "damaged.mkv", lambda n, packet: b"\x00" * 40 if n == 30 else bytes(packet)
    )
    with VideoSource(damaged) as source:
        marked = [round(f.time_s * 25) for f in source.frames() if f.damaged]
        assert source.broken_packets >= 1
    assert marked and min(marked) > 30 and max(marked) < 50
    assert codec == "vp9" or marked == list(range(31, 50))


def _transport_stream(path: Path, images: list[np.ndarray]) -> Path:
    return encoded(path, "h264", images, bf="0")


def test_a_hole_in_a_transport_stream(tmp_path: Path) -> None:
    """Lost packets of whole frames leave nothing that a decoder could notice: the hole itself says it."""
    clean = _transport_stream(tmp_path / "clean.ts", moving_scene(75))
    data = clean.read_bytes()
    with av.open(str(clean)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    damaged = tmp_path / "damaged.ts"
    damaged.write_bytes(data[: places[32]] + data[places[34] :])
    with VideoSource(damaged) as source:
        frames = [(round((f.time_s - source.info.start_s) * 25), f.damaged) for f in source.frames()]
    marked = [n for n, is_marked in frames if is_marked]
    assert marked and min(marked) >= 30 and max(marked) == 49
    assert {*range(36, 50)} <= {*marked}


def test_the_border_between_two_recordings_is_no_hole(tmp_path: Path) -> None:
    one = _transport_stream(tmp_path / "one.ts", moving_scene(33))
    two = _transport_stream(tmp_path / "two.ts", moving_scene(40, seed=1))
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    with VideoSource(both) as source:
        assert len(list(source.frames())) == 73 and source.damaged_frames == 0


@pytest.mark.parametrize("codec", ENCODERS)
def test_cuts_flashes_pans_and_low_rates_are_no_damage(tmp_path: Path, codec: str) -> None:
    scene, other = moving_scene(60), moving_scene(60, seed=1)
    images = [*scene[:20], *other[:20], *scene[20:40]]
    for flash in (10, 30):
        images[flash] = np.clip(images[flash].astype(int) + 90, 0, 255).astype(np.uint8)
    for number in range(45, 60):  # a fast pan
        images[number] = np.roll(images[number], 9 * (number - 45), axis=1)
    low = {"h264": {"crf": "45"}, "hevc": {"crf": "45"}, "vp9": {"crf": "60"}, "mpeg4": {"qscale": "28"}}[codec]
    for options in ({}, low):
        file = encoded(tmp_path / "v.mkv", codec, images, **options)
        for start in (0.0, 1.3):
            with VideoSource(file) as source:
                assert len(list(source.frames(start))) == 60 - round(start * 25 - 0.4)
                assert source.damaged_frames == 0


def _frame(image: np.ndarray, pixel_format: str) -> av.VideoFrame:
    grey = np.repeat(image[..., None], 3, axis=2)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(grey), format="rgb24").reformat(format=pixel_format)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "nv12"])
def test_blocks_that_appear_all_at_once(pixel_format: str) -> None:
    scene = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in moving_scene(3, 250, 190)]
    torn = scene[1].copy()
    blocks = np.random.default_rng(0).integers(0, 255, (8, 16), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    torn[64:128, 64:192] = blocks
    look = TornLook()
    answers = [look.is_torn(_frame(image, pixel_format)) for image in (scene[0], torn, torn, scene[2])]
    assert answers == [False, True, False, False], "torn where they appear, not while they stay or go"


def test_images_without_a_plane_of_brightness_are_not_judged() -> None:
    look = TornLook()
    for _ in range(2):
        assert not look.is_torn(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24"))
    assert not look.is_torn(_frame(np.zeros((16, 16), np.uint8), "yuv420p"))


def test_real_files(media: Path, shared: Path) -> None:
    for folder in ("video", "hard", "derived"):
        for file in sorted((media / folder).glob("*.m*")):
            if file.name not in ("truncated.mp4", "decord_corrupted.mp4"):
                with VideoSource(file) as source:
                    for _ in source.frames():
                        pass
                    assert source.damaged_frames == 0, file.name
    with VideoSource(shared / "failing" / "bitrot_every10.mp4") as source:
        damaged = [number for number, frame in enumerate(source.frames()) if frame.damaged]
    assert 100 < len(damaged) < 125 and not {0, 1, 2, 50, 51, 52, 100, 101, 102} & {*damaged}
