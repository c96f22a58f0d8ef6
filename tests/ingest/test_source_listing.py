"""Sound files in SOURCE are named as what they are: a folder of them is refused, next to videos they are a problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.source_listing import SourceListing, list_source


def listed(source: Path, *names: str) -> SourceListing:
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    return list_source(source)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.wav"], "1 sound file (.wav) and no video"),
        (["a.WAV", "b/c.flac", "b/d.mp3", "b/e.mp3"], "4 sound files (.flac, .mp3, .wav) and no video"),
        (["wavs/LJ001.wav", "metadata.csv", "README.md", "wavs/LJ001.TextGrid"], "1 sound file (.wav) and no video"),
    ],
)
def test_a_folder_of_sound_is_refused_in_one_line(tmp_path: Path, names: list[str], said: str) -> None:
    listing = listed(tmp_path, *names)
    with pytest.raises(ValueError, match="Name the folder with the videos") as refused:
        listing.check_not_sound_alone(tmp_path)
    assert said in str(refused.value) and str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "names",
    [[], ["notes.txt"], ["a.wav", "a.mp4"], ["a.wav", "clip"], ["a.wav", "film.ogg"], ["a.wav", "frames.mp4/1.png"]],
)
def test_what_may_be_a_video_is_not_refused_by_its_name(tmp_path: Path, names: list[str]) -> None:
    listed(tmp_path, *names).check_not_sound_alone(tmp_path)


def test_sound_next_to_videos_is_one_problem(tmp_path: Path) -> None:
    listing = listed(tmp_path, "a.mp4", "a.wav", "b.mp4", "b.flac", "sub/c.wav")
    assert listing.sounds == ("a.wav", "b.flac", "sub/c.wav")
    [problem] = listing.problems
    assert problem.file == "a.wav"
    assert "is sound without video, one of 3 sound files (.flac, .wav) in SOURCE" in problem.message
    one = listed(tmp_path / "one", "a.mp4", "a.wav")
    assert "one of" not in one.problems[0].message
    assert listed(tmp_path / "none", "a.mp4", "film.ogg", "a.wav.part").problems == ()
