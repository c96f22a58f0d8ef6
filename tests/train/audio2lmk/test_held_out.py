"""Held-out windows of speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.loader import collate
from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.rest_pose import clip_rest_pose
from tests.support.speech_data import build_speech_data
from tests.support.training import losses_of
from tests.train.audio2lmk.test_task import prepared
from train.audio2lmk.held_out import of_clips


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data")


def held_out(name: str, data: Storage, folder: Path, count: int = 3) -> tuple[Any, dict[str, Any]]:
    task = prepared(name, data, folder)
    found = task.held_out(7, count)
    assert found is not None
    return task, collate([found[slot] for slot in range(count)])


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_its_loss_is_that_of_the_model_on_the_clip(name: str, data: Storage, tmp_path: Path) -> None:
    task, batch = held_out(name, data, tmp_path / "task")
    reader = ShardReader(data, split="val", columns=("mesh", "blendshapes", "valid", "pose_matrix"))
    assert set(batch["keys"]) == set(reader.keys) and not set(batch["keys"]) & set(task.corpus._clips)
    sample = reader[0]
    audio = sample.audio()
    torch.testing.assert_close(
        batch["speech_levels"][0], torch.tensor([audio.mean(), audio.var()]), rtol=1e-4, atol=1e-6
    )
    valid = sample.annotation("valid").astype(bool)
    if name == "audio2mesh":
        expected = neutral_mesh(sample.annotation("mesh"), sample.annotation("blendshapes"), valid).mesh
        np.testing.assert_array_equal(batch["neutral"][0].numpy(), expected)
    else:
        np.testing.assert_array_equal(batch["rest"][0].numpy(), clip_rest_pose(sample.annotation("pose_matrix"), valid))
        assert batch["identity"].tolist() == [0, 0, 0]
    module = task.build().eval()
    with torch.no_grad():
        loss = losses_of(task, module, batch, seed=7)["loss"]
    assert loss.shape == (3,) and loss.isfinite().all() and (loss > 0).all()


def test_what_is_derived_of_training_clips_comes_from_the_run(data: Storage, tmp_path: Path) -> None:
    """The same loss for a training clip whose facts come with the batch as for one whose facts come from the run."""
    task = prepared("audio2mesh", data, tmp_path / "task")
    batch = collate([task.dataset(0)[slot] for slot in range(3)])
    facts = {
        "speech_levels": task.corpus.speech_levels(batch["keys"]),
        "neutral": task.corpus.neutral_meshes(batch["keys"]),
    }
    module = task.build().eval()
    with torch.no_grad():
        plain, given = (losses_of(task, module, one)["loss"] for one in (batch, batch | facts))
        other = losses_of(task, module, batch | facts | {"neutral": facts["neutral"] + 1})["loss"]
    assert torch.equal(plain, given) and not torch.equal(plain, other)
    assert of_clips({"keys": ["a"]}, "neutral", lambda keys: keys) == ["a"]


def test_the_loss_of_poses_is_told_apart_by_the_noise(data: Storage, tmp_path: Path) -> None:
    task, batch = held_out("audio2pose", data, tmp_path / "task", count=12)
    module = task.build().eval()
    with torch.no_grad():
        step = task.loss(module, batch, seed=7, step=0, total={"samples": 12.0})
    weak, strong = (step.figures[f"loss/{kind}_noise"][1] for kind in ("weak", "strong"))
    assert (weak ^ strong).all() and weak.any() and strong.any()
    silent = prepared("audio2pose", data, tmp_path / "silent", history_noise=0.0)
    with torch.no_grad():
        assert not silent.loss(module, batch, seed=7, step=0, total={"samples": 12.0}).figures
