"""What a run has derived from speech, in the RUN of a stranger; and what its export tells about the machine."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import Wav2Vec2Config, Wav2Vec2Model

from talkinghead.files.storage import Storage
from talkinghead.models.speech.weights import Pretrained
from tests.support.speech_data import build_speech_data
from train.audio2lmk.corpus import CLIPS_FILE, STATISTICS_FILE, Corpus, CorpusConfig
from train.recipe import make_task, recipes_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data")


@pytest.fixture
def corpus(data: Storage, tmp_path: Path) -> Corpus:
    (tmp_path / "task").mkdir()
    Corpus(CorpusConfig(data=data.uri), tmp_path / "task").derive()
    return Corpus(CorpusConfig(data=data.uri), tmp_path / "task")


def test_tables_of_older_runs_are_read(corpus: Corpus) -> None:
    """They were written without a schema; what they hold is the same."""
    keys = [row["key"] for row in pq.read_table(corpus.folder / CLIPS_FILE).to_pylist()]
    pq.write_table(
        pa.Table.from_pylist(pq.read_table(corpus.folder / CLIPS_FILE).to_pylist()), corpus.folder / CLIPS_FILE
    )
    assert corpus.speech_levels(keys).shape == (len(keys), 2) and corpus.rest_poses(keys)[0].shape == (4, 4)


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
    ):
        pq.write_table(damaged, file)
        with pytest.raises(ValueError, match=r"clips\.parquet"):
            Corpus(corpus.config, corpus.folder).speech_levels([rows[0]["key"]])
    file.write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"clips\.parquet is no readable table"):
        Corpus(corpus.config, corpus.folder).identities([rows[0]["key"]])


def test_few_bytes_make_no_large_table(corpus: Corpus) -> None:
    """Values that repeat take next to nothing in a file, and all their memory once they are read."""
    file = corpus.folder / CLIPS_FILE
    row = pq.read_table(file).slice(0, 1)
    many = pa.concat_tables([row] * 10).combine_chunks().take(pa.array([0] * 4_000_000))
    pq.write_table(many, file, compression="zstd")
    assert file.stat().st_size < 3 << 20
    with pytest.raises(ValueError, match=r"clips\.parquet is no readable table: its .* bytes of memory"):
        corpus.speech_levels(["a"])


@pytest.mark.parametrize("file", [STATISTICS_FILE, CLIPS_FILE])
def test_nobody_waits_for_a_named_pipe(corpus: Corpus, file: str) -> None:
    (corpus.folder / file).unlink()
    os.mkfifo(corpus.folder / file)
    with pytest.raises(ValueError, match="is a named pipe"):
        _ = corpus.statistics
        corpus.identities(["a"])


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
