"""The reader returns the packed contents window by window, and reads only the bytes that it needs."""

from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import ranges
from shards.pack import pack_shard
from shards.reader import Part, ShardReader
from shards.verify import verify
from talkinghead.annotation import COLUMN, COLUMNS
from tests.support.counted_store import counted, upload
from tests.support.indexes import edit_rows
from tests.support.packed_data import add_derived, npy
from tests.support.shard_data import (
    LENGTHS,
    TRACE,
    add_trace,
    annotation_contents,
    clip_arrays,
    clip_audio,
    clip_frames,
    made_of,
    media_contents,
    sample_key,
    trace_arrays,
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


def test_valid_is_read_unless_the_scores_say_that_it_holds_throughout(copied):
    """The clips have frames without a face; an index that denies it shows which are looked at."""
    shares = {0: 1.0, 1: 1 - 1e-6, 2: None}

    def score(rows):
        for place, row in enumerate(rows):
            share = shares.get(number_of(row.key))
            rows[place] = dataclasses.replace(row, scores=row.scores | {"valid_fraction": share})

    before = ShardReader(copied)
    assert not before.always_seen.any(), "an index without the score"
    edit_rows(copied, score)
    for reader in (ShardReader(copied), copy.deepcopy(ShardReader(copied))):
        for number in shares:
            sample = reader.find(sample_key(number))
            assert sample.always_seen == (number == 0)
            expected = np.ones(7, bool) if number == 0 else clip_arrays(number)["valid"][3:10]
            found = sample.annotation("valid", 3, 7)
            assert found.dtype == bool and np.array_equal(found, expected)
        with pytest.raises(ValueError, match="are not in"):
            reader.find(sample_key(0)).annotation("valid", 30, 2)
        # A score that is wrong gives no window in which a face would be taken for granted.
        valid = clip_arrays(0)["valid"]
        assert not valid.all() and valid.any()
        for name in ("landmarks", "mesh", "pose", "pose_matrix"):
            sample = reader.find(sample_key(0))
            with pytest.raises(ValueError, match="1 frames show no face, by the index's valid_fraction all do"):
                sample.annotation(name, int(np.argmin(valid)), 1)
            assert np.isfinite(sample.annotation(name, int(np.argmax(valid)), 1)).all()
    # Of a derived version that is read without the annotation, nothing is known about faces.
    assert ShardReader(copied, version=add_trace(copied)).always_seen.sum() == 0


def test_a_sample_takes_no_more_requests_than_it_may(built, s3, monkeypatch):
    monkeypatch.setattr(ranges, "READ_OVER", 0)
    sample = ShardReader(upload(built, s3, "few")).find(sample_key(1))
    with counted(s3) as requests:
        sample.fetch(Part("info"), requests=3)
        sample.fetch(Part("mesh", 0, 1), Part("mesh", 50, 1), Part("pose", 3, 4), Part("valid"), requests=3)
        assert sorted(name[:3] for _, name in requests) == ["ann", "ann", "cli"]
        for name, first, count in (("mesh", 0, 1), ("mesh", 50, 1), ("pose", 3, 4), ("valid", 0, 60)):
            expected = clip_arrays(1)[name][first : first + count]
            np.testing.assert_allclose(sample.annotation(name, first, count), expected, atol=1e-3)
        assert sample.info.key == sample.key and len(requests) == 3
        # None are left, and what is lacking needs one.
        sample.fetch(Part("landmarks", 0, 1), Part("quality", 0, 1), requests=3)
        assert len(requests) == 4


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


def test_a_joined_column_that_lacks_a_sample(copied):
    add_trace(copied, without=[2])
    reader = ShardReader(copied, split=None, columns=("trace_fast", "mesh"), join=("trace",))
    assert reader.version == "v1" and sample_key(2) not in reader.keys and len(reader) == 7
    assert reader.left_out == [("no trace_fast", 1), ("no mesh", 0)]
    sample = reader.find(sample_key(4))
    assert sample.annotation("mesh", 3, 2).shape == (2, *COLUMN["mesh"].shape)
    lenient = ShardReader(copied, split=None, join=("trace",))
    with pytest.raises(ValueError, match="1 of 8 samples have no trace_fast"):
        lenient.check_column("trace_fast")
    with pytest.raises(ValueError, match=r"has no trace_fast\.npy"):
        lenient.find(sample_key(2)).annotation("trace_fast")
    with pytest.raises(ValueError, match=r"'trace_fast' .*is in the derived column trace, .*join="):
        ShardReader(copied, columns=("trace_fast",))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_windows_of_derived_columns(traced, data):
    """Rows for the clip, one for each frame, and several."""
    reader = ShardReader(traced, split=None, kept=False, join=("trace",))
    sample = reader[data.draw(st.integers(0, len(reader) - 1))]
    first = data.draw(st.integers(0, sample.num_frames - 1))
    count = data.draw(st.integers(1, sample.num_frames - first))
    form = data.draw(st.sampled_from(TRACE))
    found, whole = sample.annotation(form.name, first, count), trace_arrays(number_of(sample.key))[form.name]
    expected = whole if form.rows == "clip" else whole[form.rows * first : form.rows * (first + count)]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(sample.annotation(form.name), whole)
    assert reader.form(form.name) == form and reader.form("mesh") == COLUMN["mesh"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("trace_steps", np.zeros((LENGTHS[0] - 1, 2), "<i2")),
        ("trace_steps", np.zeros((LENGTHS[0], 2), "<f4")),
        ("trace_steps", np.zeros((LENGTHS[0], 3), "<i2")),
        ("trace_fast", np.zeros((LENGTHS[0], 3), "<f2")),
        ("trace_clip", np.zeros((2, 5), "<f4")),
        ("trace_clip", np.zeros((1, 5, 1), "<f4")),
        ("trace_level", np.zeros((2 * LENGTHS[0],), "u1")),
    ],
)
def test_rows_that_the_form_does_not_allow_are_damage(copied, name, values):
    """The member of clip 0, and nothing else, is of another form than `DATASET.json` says."""
    members = {f"{name}.npy": npy(values)}
    about = made_of("trace", TRACE)
    version = add_derived(copied, about, {sample_key(0): members})
    sample = ShardReader(copied, split=None, kept=False, join=(version,)).find(sample_key(0))
    with pytest.raises(ValueError, match=rf"{sample.key}\.{name}\.npy: .*make verify"):
        sample.annotation(name, 0, 1)


def test_scores_and_labels_of_a_sample(traced):
    reader = ShardReader(traced, split=None, kept=False, join=("trace",))
    found = {number_of(reader[i].key): reader[i] for i in range(len(reader))}
    assert [found[number].score("sharpness") for number in (0, 3)] == [0.0, 4.5]
    assert found[5].score("yaw") is None and found[4].score("confidence") is None
    assert found[3].score("confidence") == found[3].score("trace.confidence") == 1.5
    assert [found[number].label("side") for number in (0, 1, 6)] == ["right", "left", None]
    with pytest.raises(ValueError, match=r"has no label 'mood'.*trace\.side"):
        found[0].label("mood")
    with pytest.raises(ValueError, match=r"'confidence' is in trace-.*join=\('trace',\)"):
        ShardReader(traced)[0].score("confidence")


def test_latents_of_earlier_releases_are_read_as_stored(copied):
    """Their entry in `DATASET.json` says what they were made of, not how their arrays are stored."""
    latents = np.arange(LENGTHS[0] * 8, dtype=np.float16).reshape(LENGTHS[0], 2, 2, 2)
    contents = {sample_key(0): {"embedding.npy": npy(latents[:, 0, 0]), "latents.npy": npy(latents)}}
    version = add_derived(copied, made_of("latents"), contents, version="latents-0123456789ab")
    value = json.loads(copied.read("DATASET.json"))
    value["annotations"][-1]["details"] = {
        "encoding": 1,
        "width": 64,
        "height": 64,
        "vae": {"name": "tiny", "sha256": "0" * 64},
        "image_encoder": {"name": "tiny", "sha256": "1" * 64},
        "columns": ["embedding", "latents"],
    }
    copied.write("DATASET.json", json.dumps(value).encode())
    reader = ShardReader(copied, columns=("latents", "embedding"), join=("latents",))
    assert reader.joined == {"latents": version} and reader.keys == [sample_key(0)]
    for name, expected in (("latents", latents), ("embedding", latents[:, 0, 0])):
        found = reader[0].annotation(name, 3, 5)
        assert found.dtype == np.float16 and np.array_equal(found, expected[3:8])


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


def test_both_decoders_give_the_same_frames(built):
    pyav, decord = (ShardReader(built, split=None, decoder=name) for name in ("pyav", "decord"))
    for sample in range(3):
        for window in ((0, None, 1), (7, 5, 1), (3, 4, 6)):
            one, other = pyav[sample].video(*window), decord[sample].video(*window)
            assert one.shape == other.shape and np.abs(one.astype(int) - other).mean() < 2.5
    assert copy.deepcopy(decord).decoder == "decord", "as a worker gets it"
    with pytest.raises(ValueError, match="decoder is 'opencv', must be pyav or decord"):
        ShardReader(built, decoder="opencv")  # pyright: ignore[reportArgumentType]


def test_damage_names_file_and_key_whatever_decodes(copied, edit_shard):
    def change(samples):
        for _, contents in samples:
            contents["mp4"] = contents["mp4"][: len(contents["mp4"]) // 3].ljust(len(contents["mp4"]), b"\0")

    edit_shard(copied, "clips-000000.tar", change)
    for decoder in ("pyav", "decord"):
        sample = ShardReader(copied, split=None, kept=False, decoder=decoder)[0]
        with pytest.raises(ValueError, match=rf"clips-000000\.tar: {sample.key}\.mp4: .*make verify"):
            sample.video()
