"""Global fits: their parts, the same bytes whoever makes them, and their files in DATA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pytest

from shards.fit_files import find_fit, fit_key, read_fit, write_fit
from shards.fits import (
    ReaderSample,
    fit_part,
    frames_of,
    keys_of,
    make_fit,
    merge_parts,
    plan_parts,
    reader_for,
    source_of,
)
from shards.manifest import FitEntry, read_manifest, write_manifest
from shards.order import spread
from shards.reader import ShardReader
from shards.selection import Selection
from talkinghead.annotation import blank_arrays
from talkinghead.column import Arrays
from talkinghead.derived import ColumnError, ColumnSample, Fit
from talkinghead.files.storage import Storage
from talkinghead.npz import decode_npz, encode_npz, pack_texts, unpack_texts
from tests.support.derived_data import TOY, add_version, toy
from tests.support.packed_data import PackedClip, annotation_members, media_members, pack_data

T = TypeVar("T")
SPEAKERS = ["eve", "adam", "adam", "carl", "bob", "bob", "bob", "adam", "carl"]
"""Speaker of each clip."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the fit below."""

    factor: float = 1.0


class Keys:
    """Fit that notes the clips in their order, and sums something that depends on the order of the additions."""

    name = "keys"
    version = 1
    needs: tuple[str, ...] = ("valid", "wav")
    fits: tuple[str, ...] = ()
    settings = Settings
    most_clips: int | None = None

    def __init__(self, parts: Literal["shards", "speakers"] = "shards", most_clips: int | None = None) -> None:
        self.parts: Literal["shards", "speakers"] = parts
        self.most_clips = most_clips
        self.merged: list[int] = []

    def partial(
        self, samples: Iterable[ColumnSample], settings: Settings, fits: Mapping[str, Fit], num_frames: int
    ) -> dict[str, np.ndarray]:
        seen = list(samples)
        total = sum((float(np.abs(sample.audio()).sum()) + 0.1) * settings.factor for sample in seen)
        return {**pack_texts("key", (sample.key for sample in seen)), "sum": np.array([total / num_frames])}

    def merge(self, one: Arrays, two: Arrays, num_frames: int) -> dict[str, np.ndarray]:
        keys = [*unpack_texts("key", one), *unpack_texts("key", two)]
        self.merged.append(len(keys))
        return {**pack_texts("key", keys), "sum": one["sum"] + two["sum"]}

    def finish(self, sums: Arrays, settings: Settings, fits: Mapping[str, Fit]) -> dict[str, np.ndarray]:
        return dict(sums)


def build(root: Path) -> Storage:
    """Clips of four speakers in three shards; the last one is silent."""
    clips = []
    for number, speaker in enumerate(SPEAKERS):
        key, length = f"folder-clip_{number}-{number:06x}", 10 + number
        audio = np.full(length * 640, 0.1 * (number < len(SPEAKERS) - 1), np.float32)
        arrays = blank_arrays(length)
        clips.append(
            PackedClip(
                key=key,
                num_frames=length,
                media=media_members(
                    key, np.full((length, 64, 64, 3), number, np.uint8), audio, source_id=key, group=speaker
                ),
                annotation=annotation_members(key, arrays),
                split="val" if speaker == "eve" else "train",
                split_group=speaker,
                scores={"audio_missing": 0.0, "audio_silent": float(not audio.any()), "audio_padded_fraction": 0.0},
            )
        )
    return pack_data(root, clips, min_shards=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build(tmp_path_factory.mktemp("fits") / "data")


@pytest.fixture
def own(tmp_path: Path) -> Storage:
    return build(tmp_path / "data")


def joined(lists: Iterable[list[T]]) -> list[T]:
    return [item for each in lists for item in each]


def speakers_of(reader: ShardReader, part: Iterable[int]) -> list[str]:
    return [ReaderSample(reader, number).speaker for number in part]


# --- clips and parts --------------------------------------------------------------------------------------------------


def test_clips_are_kept_training_clips_with_what_the_fit_needs(own: Storage) -> None:
    reader = reader_for(Keys(), own)
    assert len(reader) == 7  # neither the held-out one nor the silent one
    fit = Keys()
    fit.needs = ("valid",)
    assert len(reader_for(fit, own)) == 8
    assert len(reader_for(Keys(), own, selection=Selection(person=("bob", "carl")))) == 4
    # A stricter bound of the user's holds, a weaker one does not.
    assert not len(reader_for(Keys(), own, selection=Selection(at_most={"audio_silent": -1.0})))
    assert len(reader_for(Keys(), own, selection=Selection(at_most={"audio_silent": 1.0}))) == 7
    assert len(reader_for(fit, own, selection=Selection(at_most={"audio_silent": 0.0}))) == 7


def test_derived_columns_that_a_fit_needs_are_joined(own: Storage) -> None:
    fit = Keys()
    fit.needs = ("valid", "toy")
    with pytest.raises(ValueError, match="no derived column 'toy'"):
        reader_for(fit, own)
    failed = ShardReader(own).keys[2]
    first = add_version(own, TOY, toy, failed=[failed])
    newest = add_version(own, TOY, toy, settings=TOY.settings(number=1))
    assert reader_for(fit, own).joined == {"toy": newest.version} and len(reader_for(fit, own)) == 8
    # Of the pinned version one clip is missing.
    reader = reader_for(fit, own, join=(f"toy@{first.version}",))
    assert reader.joined == {"toy": first.version} and len(reader) == 7 and failed not in reader.keys
    sample = ReaderSample(reader, 0)
    assert sample.column("toy_rows").shape == (sample.num_frames, 3)
    # A rule joins, too, and what is joined is pinned.
    ruled = reader_for(Keys(), own, selection=Selection(at_least={"toy_score": 0.5}))
    assert source_of(ruled, Settings()).pins == {"toy": newest.version} and 0 < len(ruled) < 7


def test_parts_of_shards_are_the_shards(data: Storage) -> None:
    reader = reader_for(Keys(), data)
    parts = plan_parts(Keys(), reader)
    assert joined(parts) == list(range(len(reader))) and len(parts) == 3
    for part in parts:
        assert len({reader[number].index.shard for number in part}) == 1
    few = plan_parts(Keys(most_clips=3), reader)
    assert joined(few) == spread(len(reader), 3)
    assert frames_of(reader, few) == sum(reader[number].num_frames for number in joined(few))
    assert keys_of(reader, few) == [reader.keys[number] for number in spread(len(reader), 3)]


@pytest.mark.parametrize("frames", [1, 20, 40, 60, 1000])
def test_a_speakers_clips_are_in_one_part(data: Storage, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    monkeypatch.setattr("shards.fits.FRAMES_OF_A_PART", frames)
    reader = reader_for(Keys("speakers"), data)
    parts = plan_parts(Keys("speakers"), reader)
    names = [speakers_of(reader, part) for part in parts]
    assert joined(names) == sorted(speakers_of(reader, range(len(reader))))
    for part, of_part in zip(parts, names, strict=True):
        for name in set(of_part):
            own = [number for number in part if ReaderSample(reader, number).speaker == name]
            assert own == [n for n in range(len(reader)) if ReaderSample(reader, n).speaker == name]
    found = [sorted(set(of_part)) for of_part in names]
    few = [["adam", "bob", "carl"]] if frames > 47 else [["adam"], ["bob", "carl"]]
    assert found == ([["adam"], ["bob"], ["carl"]] if frames <= 30 else few), "of 40, 45 and 13 frames"


def test_no_clips_are_no_parts(data: Storage) -> None:
    reader = reader_for(Keys(), data, selection=Selection(person=("eve",)))
    assert plan_parts(Keys(), reader) == plan_parts(Keys("speakers"), reader) == []
    with pytest.raises(ValueError, match="no training clip for the fit keys: look at make report"):
        make_fit(Keys(), Settings(), {}, reader)


def test_a_sample_gives_what_the_reader_has(data: Storage) -> None:
    reader = reader_for(Keys(), data)
    sample = ReaderSample(reader, 1)
    plain = reader[1]
    assert (sample.key, sample.speaker, sample.num_frames) == (plain.key, plain.index.speaker, plain.num_frames)
    assert sample.info == plain.info
    assert np.array_equal(np.stack(list(sample.video())), plain.video())
    assert np.array_equal(sample.audio(), plain.audio())
    assert np.array_equal(sample.column("mesh"), plain.annotation("mesh"), equal_nan=True)
    with pytest.raises(ColumnError, match="no 'toy_rows'"):
        sample.column("toy_rows")


# --- making a fit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["shards", "speakers"])
def test_workers_in_any_order_make_the_bytes_of_one_process(
    data: Storage, monkeypatch: pytest.MonkeyPatch, parts: Literal["shards", "speakers"]
) -> None:
    monkeypatch.setattr("shards.fits.FRAMES_OF_A_PART", 20)
    fit, settings = Keys(parts), Settings(factor=0.3)
    reader = reader_for(fit, data)
    told: list[tuple[int, int]] = []
    expected = encode_npz(make_fit(fit, settings, {}, reader, lambda _, *how_far: told.append(how_far)), {})
    assert told == [(done, len(reader)) for done in range(len(reader))]
    planned = plan_parts(fit, reader)
    frames = frames_of(reader, planned)
    sums = {}
    for number in (2, 0, 1):  # each with a reader of its own, and through a file
        part = fit_part(fit, settings, {}, reader_for(fit, data), planned[number], frames)
        sums[number] = decode_npz(encode_npz(part, {}), "part")[0]
    merged = merge_parts(fit, (sums[number] for number in range(3)), frames)
    assert merged is not None
    assert encode_npz(fit.finish(merged, settings, {}), {}) == expected


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 100])
def test_merging_keeps_the_order_and_copies_little(count: int) -> None:
    fit = Keys()
    parts = [{**pack_texts("key", [str(number)]), "sum": np.ones(1)} for number in range(count)]
    merged = merge_parts(fit, iter(parts), 0)
    if not count:
        assert merged is None
        return
    assert merged is not None
    assert unpack_texts("key", merged) == [str(number) for number in range(count)] and merged["sum"][0] == count
    assert sum(fit.merged) <= count * np.ceil(np.log2(count + 1))


# --- files ------------------------------------------------------------------------------------------------------------


def write(data: Storage, settings: Settings, selection: Selection | None = None) -> FitEntry:
    """Make a fit and enter it in the manifest, as the job does."""
    fit = Keys()
    reader = reader_for(fit, data, selection=selection)
    source = source_of(reader, settings, selection)
    arrays = make_fit(fit, settings, {}, reader)
    entry = write_fit(data, fit, source, keys_of(reader, plan_parts(fit, reader)), arrays)
    manifest = read_manifest(data)
    write_manifest(data, replace(manifest, fits=[*manifest.fits, entry]))
    return entry


def test_a_fit_is_found_by_everything_that_it_was_made_of(own: Storage) -> None:
    bob = Selection(person=("bob",), at_most={"audio_silent": 0.0})
    entry, other = write(own, Settings()), write(own, Settings(factor=2.0), bob)
    manifest, fit = read_manifest(own), Keys()
    index = manifest.annotation().index

    def find(settings: Settings = Settings(), selection: Selection | None = None, **changes: object) -> Fit | None:
        arguments: dict[str, object] = {"index": index, "pins": {}, **changes}
        return find_fit(own, manifest, fit, settings, selection=selection, **arguments)  # type: ignore[arg-type]

    found = find()
    assert found is not None and found.sha256 == entry.sha256 and entry.clips == 7
    assert np.array_equal(found.arrays["sum"], read_fit(own, "keys", entry.sha256).arrays["sum"])
    there = find(Settings(factor=2.0), bob)
    assert there is not None and there.sha256 == other.sha256
    for missing in (
        find(Settings(factor=3.0)),
        find(Settings(), bob),
        find(Settings(factor=2.0), replace(bob, person=("adam",))),
        find(index="index/v1.000000000000.parquet"),
        find(pins={"toy": "toy-0"}),
        find(keys=["others"]),
    ):
        assert missing is None
    assert find(keys=reader_for(fit, own).keys) is not None
    fit.version = 2
    assert find() is None
    # The file tells what it was made of.
    _, about = decode_npz(own.read(entry.path), "it")
    assert (
        about["keys"] == reader_for(Keys(), own).keys and about["index"] == index and about["settings"]["factor"] == 1
    )


def test_of_equal_fits_the_newest_is_read(own: Storage) -> None:
    entry = write(own, Settings())
    reader = reader_for(Keys(), own)
    newer = write_fit(own, Keys(), source_of(reader, Settings()), reader.keys, {"sum": np.zeros(1)})
    manifest = replace(read_manifest(own), fits=[entry, newer])
    found = find_fit(own, manifest, Keys(), Settings(), entry.index)
    assert found is not None and found.sha256 == newer.sha256


def test_a_damaged_or_missing_file_is_one_line(own: Storage) -> None:
    entry = write(own, Settings())
    path = own.local_root / entry.path  # type: ignore[operator]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    for said in ("is damaged", "is missing"):
        with pytest.raises(ValueError, match=rf"{entry.sha256}\.npz {said}.*run make basis again$"):
            find_fit(own, read_manifest(own), Keys(), Settings(), entry.index)
        path.unlink(missing_ok=True)


def test_the_key_is_of_everything_that_shapes_the_fit(own: Storage) -> None:
    fit, other = Keys(), Keys()
    other.version = 2
    reader = reader_for(fit, own)
    source = source_of(reader, Settings(), fits={"a": Fit(sha256="1" * 64, arrays={})})
    keys = {
        fit_key(fit, source),
        fit_key(other, source),
        fit_key(fit, replace(source, settings=Settings(factor=2.0))),
        fit_key(fit, replace(source, annotation="v2")),
        fit_key(fit, replace(source, index="index/v1.000000000000.parquet")),
        fit_key(fit, replace(source, selection=Selection(licence=("CC0-1.0",)))),
        fit_key(fit, replace(source, pins={"toy": "toy-0"})),
        fit_key(fit, replace(source, fits={"a": "2" * 64})),
    }
    assert len(keys) == 8 and fit_key(fit, source_of(reader, Settings())) == fit_key(fit, replace(source, fits={}))
