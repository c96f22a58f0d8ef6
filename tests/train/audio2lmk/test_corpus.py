"""What a run derives from speech: out of fits in the data set or by itself; in the RUN of a stranger; and exported."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import Wav2Vec2Config, Wav2Vec2Model

from talkinghead.derived import Derived
from talkinghead.files.storage import Storage
from talkinghead.models.speech.weights import Pretrained
from talkinghead.schema import SampleIndex
from tests.support.derived_data import TOY, ToySettings, add_version, toy
from tests.support.speech_data import build_speech_data, clip_key, store_fits
from train.audio2lmk.clip_table import FILE as CLIPS_FILE
from train.audio2lmk.corpus import STATISTICS_FILE, Corpus, CorpusConfig
from train.clip_choice import ClipChoice, PinnedVersion, ReadVersions
from train.data_sets import DataSets
from train.recipe import make_task, recipes_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data")


@pytest.fixture
def corpus(data: Storage, tmp_path: Path) -> Corpus:
    (tmp_path / "task").mkdir()
    Corpus(CorpusConfig(data=DataSets.of(data.uri)), tmp_path / "task").derive()
    return Corpus(CorpusConfig(data=DataSets.of(data.uri)), tmp_path / "task")


# --- out of the data set, or made here --------------------------------------------------------------------------------


@pytest.fixture
def own(data: Storage, tmp_path: Path) -> Storage:
    """A copy that a test may change."""
    assert data.local_root is not None
    return Storage(shutil.copytree(data.local_root, tmp_path / "own"))


def derived(storage: Storage, folder: Path, choice: ClipChoice = ClipChoice(), **settings: Any) -> Corpus:  # noqa: B008
    folder.mkdir()
    Corpus(CorpusConfig(data=DataSets.of(storage.uri), choice=choice, **settings), folder).derive()
    return Corpus(CorpusConfig(data=DataSets.of(storage.uri), choice=choice, **settings), folder)


def spoil_shards(storage: Storage) -> None:
    """Overwrite every shard: whoever reads a clip fails."""
    assert storage.local_root is not None
    shards = [*storage.local_root.glob("clips-*.tar"), *storage.local_root.glob("ann/*/*.tar")]
    assert len(shards) == 4
    for shard in shards:
        shard.write_bytes(b"\0" * shard.stat().st_size)


@pytest.mark.parametrize("origin", ["rest", "first"])
def test_fits_in_the_data_set_are_read_without_a_clip(
    own: Storage, tmp_path: Path, origin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    here = derived(own, tmp_path / "here", pose_origin=origin)
    assert caplog.text.count(f"make basis DATA={own.uri} makes it once for all runs") == 2
    caplog.clear()
    entries = store_fits(own, pose_origin=origin)
    spoil_shards(own)
    there = derived(own, tmp_path / "there", pose_origin=origin)
    assert "make basis" not in caplog.text and caplog.text.count("read out of the data set") == 2
    hashes = {entry.name: entry.sha256 for entry in entries}
    assert there.statistics == dataclasses.replace(here.statistics, fits=hashes)
    assert there.reads() == (ReadVersions(versions=("v1",), fits=tuple(sorted(hashes.values()))),)
    assert here.reads() == (ReadVersions(versions=("v1",)),)
    names = {path.name for path in here.folder.iterdir()}
    assert names == {path.name for path in there.folder.iterdir()} and len(names) == 5
    for name in names - {STATISTICS_FILE}:
        assert (there.folder / name).read_bytes() == (here.folder / name).read_bytes(), name
    # About another origin, or of other clips, there is none.
    other = "first" if origin == "rest" else "rest"
    for case, change in enumerate(({"pose_origin": other}, {"choice": ClipChoice(person=("speaker-0",))})):
        with pytest.raises(ValueError, match="speech_"):
            derived(own, tmp_path / f"other-{case}", **({"pose_origin": origin} | change))


def test_several_data_sets_together_are_gone_through_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stored fit is of one data set's clips, so it does not stand for all of them."""
    caplog.set_level("INFO")
    both = [build_speech_data(tmp_path / f"data-{first}", f"speech{first}", first) for first in (0, 4)]
    for storage in both:
        store_fits(storage)
    (tmp_path / "task").mkdir()
    corpus = Corpus(CorpusConfig(data=DataSets(locations=tuple(one.uri for one in both))), tmp_path / "task")
    corpus.derive()
    assert caplog.text.count(f"of the clips of {both[0].uri} and {both[1].uri} together") == 2
    assert not corpus.statistics.fits and corpus.statistics.num_clips == 6


def test_a_fit_of_other_clips_is_not_read(own: Storage, tmp_path: Path) -> None:
    """The same version of a column may lead to other clips, once its failures are mended."""
    choice = ClipChoice(at_least=("toy_score=0",))
    add_version(own, TOY, toy, failed=[clip_key(0)])
    store_fits(own, selection=choice.selection())
    assert len(derived(own, tmp_path / "a", choice).statistics.fits) == 2
    add_version(own, TOY, toy)
    mended = derived(own, tmp_path / "b", choice)
    assert not mended.statistics.fits and mended.statistics.num_clips == 3


@pytest.mark.parametrize("change", [{"rest": np.zeros(3)}, {"neutral_rule": np.full(2, 9)}])
def test_a_stranger_s_fit_is_one_line(own: Storage, tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    entry = store_fits(own, change=change)[0]
    with pytest.raises(ValueError, match=rf"{entry.sha256}\.npz is damaged: [^\n]+ run make basis again$"):
        derived(own, tmp_path / "task")


# --- rules ------------------------------------------------------------------------------------------------------------


def test_rules_choose_clips_of_both_splits_and_persons_only_those_to_train_on(
    own: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def scored(row: SampleIndex, valid: np.ndarray) -> Derived:
        scores = {clip_key(0): 1.0, clip_key(1): 5.0, clip_key(2): 7.0, clip_key(4): 2.0}
        return dataclasses.replace(toy(row, valid), scores={"toy_score": scores.get(row.key)})

    version = add_version(own, TOY, scored)
    corpus = derived(own, tmp_path / "one", ClipChoice(at_least=("toy_score=3",)))
    assert sorted(corpus.reader(("mesh",)).keys) == [clip_key(1), clip_key(2)]
    assert "2 of 4 samples are left out: toy_score below 3, or not measured" in caplog.text
    assert not corpus.reader(("mesh",), "val").keys
    # What was joined is pinned, and what came later is not read.
    pinned = PinnedVersion(version=version.version, index=version.index)
    assert corpus.statistics.joined == (pinned,)
    assert corpus.reads()[0].versions == ("v1", version.version)
    add_version(
        own, TOY, lambda row, valid: dataclasses.replace(toy(row, valid), scores={}), settings=ToySettings(number=1)
    )
    assert sorted(corpus.reader(("mesh",)).keys) == [clip_key(1), clip_key(2)]
    add_version(own, TOY, toy)
    with pytest.raises(ValueError, match=f"has changed since this run began .* instead of {version.index}"):
        corpus.reader(("mesh",))

    chosen = derived(own, tmp_path / "two", ClipChoice(person=("speaker-1",), licence=("CC0-1.0",)))
    assert chosen.reader(("mesh",)).keys == [clip_key(2)] and list(chosen.speakers) == ["speaker-1"]
    assert chosen.reader(("mesh",), "val").keys == [clip_key(4)], "another person's"
    with pytest.raises(ValueError, match="fulfils all rules"):
        derived(own, tmp_path / "three", ClipChoice(at_most=("audio_silent=-1",)))


def test_clips_without_speech_are_left_out_by_runs_that_begin_after_the_column_was_made(
    own: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = derived(own, tmp_path / "before", ClipChoice())
    assert "make derive COLUMNS=speech_activity" in caplog.text and before.statistics.num_clips == 3
    activity = dataclasses.replace(TOY, name="speech_activity", arrays=(), scores=("speech_share",), needs=("wav",))

    def listened(row: SampleIndex, valid: np.ndarray) -> Derived:
        return Derived(scores={"speech_share": 0.0 if row.key == clip_key(1) else 0.9})

    version = add_version(own, activity, listened, pins={})
    after = derived(own, tmp_path / "after", ClipChoice())
    assert sorted(after.reader(("mesh",)).keys) == [clip_key(0), clip_key(2)] and after.statistics.num_clips == 2
    assert after.reads()[0].versions == ("v1", version.version)
    # The one that had begun goes on with its clips.
    going_on = Corpus(before.config, before.folder)
    assert len(going_on.check()[0]) == 3 and len(going_on.reader(("mesh",))) == 3


# --- in the RUN of a stranger -----------------------------------------------------------------------------------------


def test_a_run_of_before_global_fits_goes_on(corpus: Corpus) -> None:
    file = corpus.folder / STATISTICS_FILE
    older = {name: value for name, value in json.loads(file.read_text()).items() if name not in ("joined", "fits")}
    file.write_text(json.dumps(older))
    assert sorted(corpus.reader(("mesh",)).keys) == [clip_key(0), clip_key(1), clip_key(2)]
    assert corpus.reads() == (ReadVersions(versions=("v1",)),)


def test_tables_of_older_runs_are_read(corpus: Corpus) -> None:
    """They were written without a schema, and in any order; what they hold is the same."""
    rows = pq.read_table(corpus.folder / CLIPS_FILE).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows[::-1]), corpus.folder / CLIPS_FILE)
    clips = corpus.clips
    assert clips.speech_levels.shape == (len(rows), 2) and clips.rest_poses.shape == (len(rows), 4, 4)
    for row in rows:
        number = clips.row(row["key"])
        assert clips.identities[number] == corpus.speakers.identity(row["speaker"])
        assert np.array_equal(clips.rest_poses[number].ravel(), row["rest"])
        assert np.array_equal(
            clips.speech_levels[number], np.array([row["speech_mean"], row["speech_variance"]], np.float32)
        )


@pytest.mark.parametrize(
    "change",
    [
        {"pose_mean": "a"},
        {"pose_mean": [1.0]},
        {"pose_std": [1.0] * 7},
        {"num_clips": "many"},
        {"version": ["v1"]},
        {"more": 1},
        {"pose_step_p99": [float("inf")] * 6},
        {"joined": [{"version": "toy-0"}]},
        {"joined": {"version": "toy-0", "index": "a"}},
        {"fits": {"speakers": 1}},
    ],
)
def test_statistics_of_another_kind_are_one_line(corpus: Corpus, change: dict[str, Any]) -> None:
    file = corpus.folder / STATISTICS_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=r"statistics\.json is damaged: [^\n]+; take another RUN"):
        corpus.reader(("mesh",))


def test_clips_of_another_kind_are_one_line(corpus: Corpus) -> None:
    file = corpus.folder / CLIPS_FILE
    table = pq.read_table(file)
    rows = table.to_pylist()
    short, empty = [{**rows[0], "rest": [1.0] * 3}], [{**rows[0], "speech_mean": None}]
    for damaged in (
        table.drop_columns(["rest"]),
        table.append_column("more", table.column("key")),
        table.set_column(1, "speaker", pa.array([1] * len(table))),
        pa.Table.from_pylist(rows + short),
        pa.Table.from_pylist(rows + empty, table.schema),
        pa.Table.from_pylist([*rows, {**rows[0], "key": "a" * 1000}], table.schema),
    ):
        pq.write_table(damaged, file)
        with pytest.raises(ValueError, match=r"clips\.parquet"):
            _ = Corpus(corpus.config, corpus.folder).clips
    file.write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"clips\.parquet is no readable table"):
        _ = Corpus(corpus.config, corpus.folder).clips


def test_few_bytes_make_no_large_table(corpus: Corpus) -> None:
    """Values that repeat take next to nothing in a file, and all their memory once they are read."""
    file = corpus.folder / CLIPS_FILE
    row = pq.read_table(file).slice(0, 1)
    many = pa.concat_tables([row] * 10).combine_chunks().take(pa.array([0] * 4_000_000))
    pq.write_table(many, file, compression="zstd")
    assert file.stat().st_size < 3 << 20
    with pytest.raises(ValueError, match=r"clips\.parquet is no readable table: its .* bytes of memory"):
        _ = corpus.clips


@pytest.mark.parametrize("file", [STATISTICS_FILE, CLIPS_FILE])
def test_nobody_waits_for_a_named_pipe(corpus: Corpus, file: str) -> None:
    (corpus.folder / file).unlink()
    os.mkfifo(corpus.folder / file)
    with pytest.raises(ValueError, match="is a named pipe"):
        _ = corpus.statistics
        _ = corpus.clips


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_an_export_names_no_place_of_the_machine(data: Storage, tmp_path: Path, name: str) -> None:
    """Neither of the data nor of the weights that the training began with."""
    settings = {key: value for key, value in Pretrained("tiny").wav2vec_config().items() if key != "model_type"}
    Wav2Vec2Model(Wav2Vec2Config(**settings)).save_pretrained(tmp_path / "wav2vec")
    small: dict[str, Any] = {"window_frames": 24} | ({"context": 12} if name == "audio2pose" else {})
    config = dataclasses.replace(recipes_of(name)["tiny"]().config, wav2vec=str(tmp_path / "wav2vec"), **small)
    (tmp_path / "task").mkdir()
    task = make_task(name, config, data.uri, tmp_path / "task")
    task.prepare()
    (tmp_path / "out").mkdir()
    task.export(task.build(), tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    places = [os.fsencode(place) for place in (tmp_path, data.local_root, Path.cwd())]
    assert files and not [path for path in files for place in places if place in path.read_bytes()]
