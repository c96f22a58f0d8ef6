"""The reader returns the packed contents window by window, and reads only the bytes that it needs."""

from __future__ import annotations

import copy
import dataclasses
import io
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import ranges
from shards.index import build_index, write_index
from shards.manifest import read_manifest, write_manifest
from shards.pack import pack_shard
from shards.reader import ShardReader
from shards.verify import verify
from talkinghead.annotation import COLUMN, COLUMNS
from tests.support.indexes import edit_rows
from tests.support.packed_data import pack, write_unit
from tests.support.shard_data import (
    LENGTHS,
    annotation_contents,
    clip_arrays,
    clip_audio,
    clip_frames,
    media_contents,
    sample_key,
)


def number_of(key: str) -> int:
    return int(key.split("_")[1][:2])


def test_selects_by_split_and_verdict(built):
    assert {number_of(k) for k in ShardReader(built).keys} == {0, 1, 2, 3, 4, 8}
    assert {number_of(k) for k in ShardReader(built, split="val").keys} == {6, 7}
    assert len(ShardReader(built, split=None)) == 8
    assert len(ShardReader(built, split=None, kept=False)) == len(LENGTHS)
    assert len(ShardReader(built, split="test")) == 0
    reader = ShardReader(str(built.local_root), split=None, kept=False)
    assert sorted(reader.num_frames) == sorted(LENGTHS)
    assert reader.find(sample_key(3)).index.scores == {"sharpness": 4.5, "yaw": 3.0}
    with pytest.raises(IndexError):
        reader[len(LENGTHS)]


def test_selects_by_score_and_person(built):
    everything = ShardReader(built, split=None, kept=False)
    scored = {everything[i].key: everything[i].index.scores["sharpness"] for i in range(len(everything))}
    most = sorted(value for value in scored.values() if value is not None)[2]
    chosen = ShardReader(built, split=None, kept=False, at_most={"sharpness": most})
    assert set(chosen.keys) == {key for key, sharpness in scored.items() if sharpness is not None and sharpness <= most}
    with pytest.raises(ValueError, match=r"no score 'loudness'.*make reannotate"):
        ShardReader(built, at_most={"loudness": 0.0})

    groups = {everything[i].key: everything[i].index.split_group for i in range(len(everything))}
    group = groups[everything.keys[0]]
    of_group = ShardReader(built, split=None, kept=False, persons=(group,))
    assert set(of_group.keys) == {key for key, value in groups.items() if value == group}
    with pytest.raises(ValueError, match="person or split group 'nobody'"):
        ShardReader(built, persons=(group, "nobody"))


def test_members_and_info(built):
    reader = ShardReader(built, split=None, kept=False)
    for number in range(len(LENGTHS)):
        sample = reader.find(sample_key(number))
        expected = media_contents(number) | annotation_contents(number)
        assert {suffix: bytes(data) for suffix, data in sample.members().items()} == expected
        assert {s: bytes(d) for s, d in sample.members("mp4", "pose.npy").items()}.keys() == {"mp4", "pose.npy"}
        assert sample.member("wav") == expected["wav"]
        assert sample.info.key == sample.key and sample.info.num_frames == sample.num_frames


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_windows(built, data):
    reader = ShardReader(built, split=None, kept=False)
    sample = reader[data.draw(st.integers(0, len(reader) - 1))]
    number = number_of(sample.key)
    first = data.draw(st.integers(0, sample.num_frames - 1))
    count = data.draw(st.integers(1, sample.num_frames - first))
    assert np.array_equal(sample.audio(first, count), clip_audio(number)[first * 640 : (first + count) * 640])
    column = data.draw(st.sampled_from(COLUMNS))
    found = sample.annotation(column.name, first, count)
    expected = clip_arrays(number)[column.name][first : first + count]
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=5e-4, rtol=0)
    assert np.array_equal(
        found, sample.annotation(column.name)[first : first + count], equal_nan=column.name != "valid"
    )


def test_video_windows(built):
    reader = ShardReader(built, split=None, kept=False)
    for number, first, count in ((1, 0, 60), (1, 26, 3), (7, 49, 1), (4, 20, 10)):
        video = reader.find(sample_key(number)).video(first, count)
        expected = clip_frames(number)[first : first + count]
        assert video.shape == expected.shape and video.dtype == np.uint8
        assert np.abs(video.astype(int) - expected).max() <= 3
    sample = reader.find(sample_key(1))
    whole = sample.video()
    assert np.array_equal(sample.video(3, 5, 4), whole[3:20:4]) and np.array_equal(
        sample.video(2, stride=7), whole[2::7]
    )


def test_window_outside_and_unknown_column(built):
    sample = ShardReader(built)[0]
    for first, count in ((0, 0), (-1, 3), (sample.num_frames, 1), (0, sample.num_frames + 1)):
        for read in (sample.video, sample.audio, lambda f, c: sample.annotation("pose", f, c)):
            with pytest.raises(ValueError, match="frames"):
                read(first, count)
    for window in ((0, 2, 0), (5, 3, sample.num_frames)):
        with pytest.raises(ValueError, match=r"stride|frames"):
            sample.video(*window)
    with pytest.raises(ValueError, match="make reannotate"):
        sample.annotation("latents")
    with pytest.raises(ValueError, match="make reannotate"):
        ShardReader(built, columns=("latents",))
    with pytest.raises(ValueError, match="make reannotate"):
        ShardReader(built, version="v9")


def test_damage_is_named_not_returned(copied):
    for path, sample_call in (
        ("clips-000000.tar", lambda s: s.audio()),
        ("ann/v1/ann-000000.tar", lambda s: s.annotation("mesh")),
    ):
        reader = ShardReader(copied, split=None, kept=False)
        (copied.local_root / path).write_bytes(bytes((copied.local_root / path).stat().st_size))
        with pytest.raises(ValueError, match=path):
            sample_call(reader[0])
        (copied.local_root / path).write_bytes(b"")
        with pytest.raises(ValueError, match="make verify"):
            sample_call(ShardReader(copied, split=None, kept=False)[0])


def _sum_of(reader: ShardReader) -> float:
    return sum(float(reader[i].audio(2, 5).sum()) for i in range(len(reader)))


def _sums_in_two_processes(method: str, reader: ShardReader) -> list[float]:
    ranges.OPEN_FILES = 1
    here = _sum_of(reader)  # files are open when the others begin
    with multiprocessing.get_context(method).Pool(2) as pool:
        return [here, *pool.map(_sum_of, [reader] * 2)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_and_threads(built, method, monkeypatch):
    monkeypatch.setattr(ranges, "OPEN_FILES", 1)  # shards are closed and opened all the time
    reader = ShardReader(built)
    expected = _sum_of(reader)
    # Fork from a process without threads: forking one with threads can leave a child waiting for ever.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as clean:
        assert clean.submit(_sums_in_two_processes, method, reader).result() == [expected] * 3
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(_sum_of, [reader] * 40)) == [expected] * 40
    assert _sum_of(copy.deepcopy(reader)) == expected


def test_extra_columns_join_by_key(copied):
    """A later column set (latents, …) is a version of its own: own tars, own index, same keys; one sample lacks it."""
    base = ShardReader(copied, split=None, kept=False)
    rows, shards = [], []
    for shard in range(len(read_manifest(copied).media)):
        planned = []
        for row in base.index.rows(base.index.shard_rows(shard)):
            number = number_of(row.key)
            if number != 2:
                latents = np.full((row.num_frames, 4, 8), number, np.float16)
                layout = _npy(latents)
                made = write_unit(copied, f"units/vae/{number}.tar", [(row.key, {"latents.npy": layout})])[row.key]
                planned.append(dataclasses.replace(made, num_frames=row.num_frames))
        packed, entry = pack(copied, f"ann/vae/ann-{shard:06d}.tar", planned)
        shards.append(entry)
        members = {sample.key: sample.members for sample in packed.samples}
        for row in base.index.rows(base.index.shard_rows(shard)):
            rows.append(dataclasses.replace(row, annotation=members.get(row.key, [])))
    path, sha256 = write_index(copied, build_index("vae", rows))
    manifest = read_manifest(copied)
    entry = dataclasses.replace(manifest.annotation(), version="vae", index=path, index_sha256=sha256, shards=shards)
    write_manifest(copied, dataclasses.replace(manifest, annotations=[entry, *manifest.annotations]))
    reader = ShardReader(copied, split=None, columns=("latents", "mesh"), extra=("vae",))
    assert reader.version == "v1" and sample_key(2) not in reader.keys and len(reader) == 7
    sample = reader.find(sample_key(4))
    assert sample.annotation("latents", 3, 2).shape == (2, 4, 8) and (sample.annotation("latents") == 4).all()
    assert sample.annotation("mesh", 3, 2).shape == (2, *COLUMN["mesh"].shape)
    lenient = ShardReader(copied, split=None, extra=("vae",))
    with pytest.raises(ValueError, match="1 of 8 samples have no latents"):
        lenient.check_column("latents")
    with pytest.raises(ValueError, match=r"has no latents\.npy"):
        lenient.find(sample_key(2)).annotation("latents")
    path, sha256 = write_index(copied, build_index("vae", [row for row in rows if row.shard < 2]))
    copied.write(entry.index, copied.read(path))
    with pytest.raises(ValueError, match="not the index that"):
        ShardReader(copied, extra=("vae",))
    entry = dataclasses.replace(entry, index=path, index_sha256=sha256)
    write_manifest(copied, dataclasses.replace(manifest, annotations=[entry, *manifest.annotations]))
    with pytest.raises(ValueError, match="do not hold the same samples"):
        ShardReader(copied, extra=("vae",))


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, version=(1, 0))
    return buffer.getvalue()


def test_reads_from_an_object_store_like_from_disk(built, tmp_path):
    """`file://` goes through `pyarrow.fs`, as s3:// does."""
    local, remote = ShardReader(built), ShardReader(f"file://{built.local_root}")
    assert remote.storage.local_root is None
    for here, there in zip(local, remote, strict=True):
        assert here.members() == there.members()
        assert np.array_equal(here.video(5, 4), there.video(5, 4))
        assert np.array_equal(here.annotation("mesh", 5, 4), there.annotation("mesh", 5, 4), equal_nan=True)
    with remote.storage.staged("copy.tar") as sink:
        assert pack_shard(remote.storage, [], sink).size == 1024
    remote.storage.delete("copy.tar")


def test_an_index_cannot_ask_for_more_than_the_shard_has(copied):
    """Memory is taken before anything is read."""

    def change(rows):
        for name in ("media", "annotation"):
            members = [dataclasses.replace(member, size=2**44) for member in getattr(rows[0], name)]
            rows[0] = dataclasses.replace(rows[0], **{name: members})

    edit_rows(copied, change)
    sample = ShardReader(copied, split=None, kept=False)[0]
    for read in (
        sample.members,
        lambda: sample.info,
        lambda: sample.annotation("mesh"),
        lambda: sample.member("mp4"),
    ):
        with pytest.raises(ValueError, match=r"run make verify|make verify lists"):
            read()


def test_a_shard_that_is_no_file_is_not_waited_for(copied):
    path = copied.local_root / "clips-000000.tar"
    path.unlink()
    os.mkfifo(path)
    sample = ShardReader(copied, split=None, kept=False)[0]
    with pytest.raises(ValueError, match="is a named pipe, not a file"):
        sample.video(0, 1)
    found = {(problem.file, problem.kind) for problem in verify(copied).problems}
    assert ("clips-000000.tar", "missing") in found


def test_damaged_members_name_file_and_key(copied, edit_shard):
    def change(samples):
        for _, contents in samples:
            contents["json"] = b"[" * len(contents["json"])
            contents["mp4"] = contents["mp4"][:400] + bytes(len(contents["mp4"]) - 400)

    edit_shard(copied, "clips-000000.tar", change)
    sample = ShardReader(copied, split=None, kept=False)[0]
    for suffix, read in (("json", lambda: sample.info), ("mp4", lambda: sample.video(0, 1))):
        with pytest.raises(ValueError, match=rf"clips-000000\.tar: {sample.key}\.{suffix}: .*make verify"):
            read()
