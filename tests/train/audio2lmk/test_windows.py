"""Windows of speech: what they bring of their clips, held out or not, and what is drawn for them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.loader import collate
from shards.reader import ShardReader
from talkinghead import rng
from talkinghead.files.storage import Storage
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.rest_pose import clip_rest_pose, relative_pose
from tests.support.speech_data import build_speech_data
from tests.support.training import losses_of
from tests.train.audio2lmk.test_task import prepared
from train.audio2lmk.windows import PoseDraws, SpeechDraws


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data")


def held_out(name: str, data: Storage, folder: Path, count: int = 3, **changes: object) -> tuple[Any, dict[str, Any]]:
    task: Any = prepared(name, data, folder, **changes)
    found = task.held_out(7, count)
    assert found is not None
    return task, collate([found[slot] for slot in range(count)])


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_its_loss_is_that_of_the_model_on_the_clip(name: str, data: Storage, tmp_path: Path) -> None:
    task, batch = held_out(name, data, tmp_path / "task")
    reader = ShardReader(data, split="val", columns=("mesh", "blendshapes", "valid", "pose_matrix"))
    assert set(batch["keys"]) == set(reader.keys) and not set(batch["keys"]) & set(task.corpus.reader(()).keys)
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
        rest = clip_rest_pose(sample.annotation("pose_matrix"), valid)
        first = int(batch["first"][0])
        pose = relative_pose(sample.annotation("pose_matrix", first, batch["pose"].shape[1]), rest)
        seen = batch["valid"][0].numpy()
        np.testing.assert_array_equal(batch["pose"][0].numpy()[seen], pose[seen].astype(np.float32))
        assert not batch["pose"][0][~batch["valid"][0]].any()
        assert batch["identity"].tolist() == [0, 0, 0]
    module = task.build().eval()
    with torch.no_grad():
        loss = losses_of(task, module, batch, seed=7)["loss"]
    assert loss.shape == (3,) and loss.isfinite().all() and (loss > 0).all()


def test_what_is_known_of_training_clips_comes_from_the_run(data: Storage, tmp_path: Path) -> None:
    tasks: list[Any] = [prepared(name, data, tmp_path / name) for name in ("audio2mesh", "audio2pose")]
    mesh, pose = tasks
    for task in (mesh, pose):
        batch = collate([task.dataset(0)[slot] for slot in range(3)])
        for row, key in enumerate(batch["keys"]):
            sample = next(s for s in map(task.corpus.reader(()).__getitem__, range(3)) if s.key == key)
            speaker, audio = task.corpus.speakers[sample.speaker], sample.audio()
            levels = np.array([audio.mean(dtype=np.float64), audio.var(dtype=np.float64)], np.float32)
            assert np.array_equal(batch["speech_levels"][row], levels)
            if task is mesh:
                assert np.array_equal(batch["neutral"][row], speaker.neutral.mesh)
            else:
                assert batch["identity"][row] == task.corpus.speakers.identity(sample.speaker)
    module = mesh.build().eval()
    with torch.no_grad():
        batch = collate([mesh.dataset(0)[slot] for slot in range(3)])
        plain, other = (
            losses_of(mesh, module, one)["loss"] for one in (batch, batch | {"neutral": batch["neutral"] + 1})
        )
    assert not torch.equal(plain, other)


def test_the_loss_of_poses_is_told_apart_by_the_noise(data: Storage, tmp_path: Path) -> None:
    task, batch = held_out("audio2pose", data, tmp_path / "task", count=12)
    module = task.build().eval()
    with torch.no_grad():
        step = task.loss(module, batch, seed=7, step=0, total={"samples": 12.0})
    weak, strong = (step.figures[f"loss/{kind}_noise"][1] for kind in ("weak", "strong"))
    assert (weak ^ strong).all() and weak.any() and strong.any()
    silent, quiet = held_out("audio2pose", data, tmp_path / "silent", count=12, history_noise=0.0)
    with torch.no_grad():
        assert not silent.loss(module, quiet, seed=7, step=0, total={"samples": 12.0}).figures


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_random_lengths_depend_on_the_slot_reach_both_ends_and_lengthen_nothing() -> None:
    draw = SpeechDraws(seed=0, min_frames=4)
    whole, short = torch.ones(10, dtype=torch.bool), torch.arange(10) < 6
    lengths = set()
    for slot in range(40):
        found = draw({"slot": slot, "mask": whole})["mask"]
        assert torch.equal(draw({"slot": slot, "mask": short})["mask"], found & short)
        assert found.sum() == 4 + int(rng.uniform(0, "window length", slot) * 7)
        lengths.add(int(found.sum()))
    assert lengths == set(range(4, 11)) and whole.all()
    assert SpeechDraws(seed=0, min_frames=None)({"slot": 0, "mask": short}) == {}
    assert SpeechDraws(seed=0, min_frames=40)({"slot": 0, "mask": short})["mask"].sum() == 6


def test_noise_on_poses_is_that_of_every_run_so_far() -> None:
    std = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    draw = PoseDraws(seed=5, min_frames=None, history_noise=0.5, pose_std=std)
    for slot in range(8):
        before = torch.full((7, 6), 2.0)
        found = pickle.loads(pickle.dumps(draw))({"slot": slot, "previous": before})  # noqa: S301
        generator = rng.generator(5, "history noise", slot)
        strength = generator.random()
        noise = np.float32(strength) * generator.standard_normal((6, 6), np.float32) * 0.5 * np.array(std)
        np.testing.assert_allclose(found["previous"][1:] - 2, noise, rtol=1e-3, atol=1e-5)
        assert found["previous"][0].eq(2).all() and before.eq(2).all()
        assert found["strong_noise"] is (strength >= 0.5)
