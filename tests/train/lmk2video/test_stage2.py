"""Stage 2 from the RUN of a stranger's stage 1, and what exports of both stages tell about the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from talkinghead.files.storage import Storage
from tests.support.face_clips import build_face_data
from tests.support.lmk2video_tasks import prepared
from train.lmk2video.clip_source import FILE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_face_data(tmp_path_factory.mktemp("faces") / "data")


@pytest.fixture(scope="module")
def stage1(data: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage1")
    task = prepared("stage1", data, folder / "task")
    (folder / "pretrained_model").mkdir()
    task.export(task.build().eval(), folder / "pretrained_model")
    return folder


@pytest.fixture
def index(stage1: Path) -> Any:
    """Index of stage 1's weights, which comes back as it was."""
    file = stage1 / "pretrained_model" / "model_index.json"
    whole = file.read_bytes()
    yield file
    file.unlink()
    file.write_bytes(whole)


@pytest.mark.parametrize("width", ["64", [64], True, {"a": 1}])
def test_sizes_of_another_kind_are_one_line(
    data: Storage, stage1: Path, index: Path, tmp_path: Path, width: Any
) -> None:
    index.write_text(json.dumps(json.loads(index.read_text()) | {"width": width}))
    with pytest.raises(ValueError, match=r"model_index\.json is damaged: width and height must be numbers of pixels"):
        prepared("stage2", data, tmp_path / "task", stage1=str(stage1))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'"text"'])
def test_an_index_of_another_kind_is_one_line(
    data: Storage, stage1: Path, index: Path, tmp_path: Path, content: bytes
) -> None:
    index.write_bytes(content)
    with pytest.raises(ValueError, match=r"model_index\.json is (no JSON|damaged)[^\n]*$"):
        prepared("stage2", data, tmp_path / "task", stage1=str(stage1))


@pytest.mark.parametrize(
    "content", [b"[]", b'{"version": 3}', b'{"version": "v", "index": "i", "latents": [1], "latents_index": null}']
)
def test_pinned_clips_of_another_kind_are_one_line(data: Storage, tmp_path: Path, content: bytes) -> None:
    task = prepared("stage1", data, tmp_path / "task")
    (tmp_path / "task" / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"clips\.json is damaged: [^\n]+; take another RUN"):
        task.clips[0].reader()
    (tmp_path / "task" / FILE).unlink()
    os.mkfifo(tmp_path / "task" / FILE)
    with pytest.raises(ValueError, match="is a named pipe"):
        task.clips[0].reader()


def test_an_export_names_no_place_of_the_machine(data: Storage, stage1: Path, tmp_path: Path) -> None:
    """Neither of the data nor of the weights that the training began with."""
    known = stage1 / "pretrained_model"
    tasks = {
        "stage1": prepared(
            "stage1", data, tmp_path / "one", vae=str(known / "vae"), image_encoder=str(known / "image_encoder")
        ),
        "stage2": prepared("stage2", data, tmp_path / "two", stage1=str(stage1)),
    }
    places = [os.fsencode(place) for place in (tmp_path, stage1, data.local_root, Path.cwd())]
    for name, task in tasks.items():
        folder = tmp_path / "out" / name
        folder.mkdir(parents=True)
        task.export(task.build().eval(), folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files and not [path for path in files for place in places if place in path.read_bytes()]
