"""Samples taken out of the indexes, and then out of the shards, of a data set without any records of jobs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.manifest import DatasetManifest, read_manifest, write_manifest
from shards.reader import ShardReader, read_column, read_media
from shards.removal import count, holed, rewritten, without_samples
from shards.verify import verify
from talkinghead.files.storage import Storage
from tests.support.indexes import open_index
from tests.support.shard_data import LENGTHS, clip_frames, sample_key, trace_arrays

GONE = [sample_key(number) for number in (0, 5, 7)]


@pytest.fixture
def copied(traced: Storage, tmp_path: Path) -> Storage:
    assert traced.local_root
    return Storage(shutil.copytree(traced.local_root, tmp_path / "data"))


def remove(storage: Storage) -> DatasetManifest:
    manifest = without_samples(storage, read_manifest(storage), GONE).manifest
    write_manifest(storage, manifest)
    return manifest


def check_content(storage: Storage) -> None:
    """Every sample that is left reads as it was made."""
    reader = ShardReader(storage, split=None, kept=False, join=("trace",))
    assert sorted(reader.keys) == sorted({sample_key(number) for number in range(len(LENGTHS))} - set(GONE))
    for sample in reader:
        number = int(sample.key.split("_")[1][:2])
        shown = sample.video()[:, 0, 0, 0].astype(int)
        assert np.abs(shown - clip_frames(number)[:, 0, 0, 0]).max() < 4
        np.testing.assert_array_equal(sample.annotation("trace_steps"), trace_arrays(number)["trace_steps"])


def test_indexes_come_first_and_readers_of_the_old_ones_are_not_disturbed(copied: Storage) -> None:
    old = ShardReader(copied, split=None, kept=False, join=("trace",))
    before = {sample.key: sample.members() for sample in old}
    manifest = remove(copied)
    assert {sample.key: sample.members() for sample in old} == before
    check_content(copied)
    report = verify(copied, deep=True)
    assert report.problems == [] and report.samples == 6
    assert sum(shard.removed for shard in manifest.media) == 3
    # The counts are those of what is left; what a data set did not count it does not count now.
    assert manifest.counts["samples"] == 6 and manifest.counts["inputs"] == 9
    assert manifest.licences == {"CC0-1.0": 6}


def test_ordinals_count_on_in_every_version(copied: Storage) -> None:
    remove(copied)
    for entry in read_manifest(copied).annotations:
        found = [(row.shard, row.ordinal) for row in open_index(copied, entry.version).rows()]
        assert found == sorted(found) and {ordinal for _, ordinal in found} <= {0, 1, 2, 3}


def test_shards_are_rewritten_under_new_names(copied: Storage) -> None:
    manifest = remove(copied)
    numbers = holed(manifest)
    made = rewritten(copied, manifest, numbers)
    # The old data set is whole until the manifest is written, and after it nothing needs the old files.
    check_content(copied)
    write_manifest(copied, made.manifest)
    for shard in made.old:
        copied.delete(shard.name)
    check_content(copied)
    report = verify(copied, deep=True)
    assert report.problems == [] and holed(made.manifest) == []
    assert {shard.name for shard in made.manifest.media if shard.name.endswith(".r1.tar")} == {
        f"clips-{number:06d}.r1.tar" for number in numbers
    }
    # Callers without a reader find them, too.
    row = next(iter(open_index(copied, "v1").rows()))
    assert len(read_column(copied, "v1", row, "valid")) == row.num_frames
    assert json.loads(read_media(copied, row, "json"))["key"] == row.key


def test_untouched_shards_keep_their_files(copied: Storage) -> None:
    manifest = remove(copied)
    part = holed(manifest)[:1]
    made = rewritten(copied, manifest, part)
    for before, after in zip(manifest.media, made.manifest.media, strict=True):
        assert (before == after) is (int(before.name[6:12]) not in part)


def test_verify_finds_removed_samples_that_are_not_as_many_as_the_manifest_says(copied: Storage) -> None:
    manifest = remove(copied)
    number = holed(manifest)[0]
    media = list(manifest.media)
    media[number] = replace(media[number], removed=media[number].removed + 1)
    write_manifest(copied, replace(manifest, media=media))
    assert {problem.kind for problem in verify(copied).problems} == {"counts"}
    media[number] = replace(media[number], removed=0)
    write_manifest(copied, replace(manifest, media=media))
    assert {problem.kind for problem in verify(copied).problems} >= {"counts", "order"}


def test_nothing_left_is_refused(copied: Storage) -> None:
    keys = [sample_key(number) for number in range(len(LENGTHS))]
    with pytest.raises(ValueError, match=r"no sample of .* would be left"):
        without_samples(copied, read_manifest(copied), keys)


def test_counts_add_up(copied: Storage) -> None:
    found = count(open_index(copied, "v1"), 3)
    assert (found.samples, found.kept, sum(found.shards)) == (9, 8, 9)
    assert sum(found.splits.values()) == 9
