"""What weights tell of the clips that they have learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from infer.evaluation.training_record import data_of_run, training_notes
from talkinghead.motion.neutral import NeutralMesh
from talkinghead.motion.speakers import Speaker, Speakers


def note(folder: Path, *, data: str = "data", split: str = "val", **speakers: str) -> str:
    (found,) = training_notes({"weights": folder}, data=data, split=split, speakers=speakers)
    return found


def test_speakers_of_the_training_are_named(tmp_path: Path) -> None:
    mesh = np.zeros((468, 3), np.float32)
    neutral = NeutralMesh(mesh=mesh, num_frames=5, rule="lip opening")
    Speakers([Speaker(name="ann", neutral=neutral, mean_offset=mesh, num_frames=9)]).save(tmp_path)
    assert "from 1 (clip) of these clips' speakers" in note(tmp_path, clip="ann", other="bob")
    assert "none of these clips' speakers" in note(tmp_path, other="bob")


def test_the_run_above_an_export_names_its_data(tmp_path: Path) -> None:
    export = tmp_path / "run" / "pretrained_model"
    export.mkdir(parents=True)
    assert "does not record" in note(export) and data_of_run(export) is None
    config = {"task": "lmk2video-stage2", "data": str(tmp_path / "data"), "more_data": ["s3://bucket/more"]}
    (export.parent / "config.json").write_text(json.dumps(config))
    assert data_of_run(export) == [str(tmp_path / "data"), "s3://bucket/more"]
    assert "not held out" in note(export, data=str(tmp_path / "data"), split="train")
    assert "split train of this data set" in note(export, data=f"{tmp_path}/data/")
    assert "not held out" in note(export, data="s3://bucket/more/", split="train")
    assert "in another place" in note(export, data="elsewhere", split="train")
    # However the same folder is named.
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for same in ("run/../data", "link"):
        assert "split train of this data set" in note(export, data=f"{tmp_path}/{same}")


def test_a_config_of_something_else_is_no_record(tmp_path: Path) -> None:
    export = tmp_path / "model"
    export.mkdir()
    for text in ('{"data": "x"}', "[]", "{"):
        (tmp_path / "config.json").write_text(text)
        assert data_of_run(export) is None
