"""The tasks that learn from speech: what they derive from the data, their losses, and that they learn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from talkinghead.geometry.neutral import neutral_mesh
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.models.parameter_hash import parameter_hash
from talkinghead.storage import Storage
from tests.speech_data import LENGTHS, UNSEEN, arrays, build_speech_data, clip_key
from train.corpus import Corpus, CorpusConfig
from train.recipe import make_task, recipe_from_json, recipe_to_json, recipes_of
from train.speech_window import speech_window
from train.task import Batch, Task


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data")


@pytest.fixture(scope="module")
def corpus(data: Storage, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    found = Corpus(CorpusConfig(data=data.uri), tmp_path_factory.mktemp("corpus"))
    found.derive()
    return found


def prepared(name: str, data: Storage, folder: Path, **changes: object) -> Task:
    config = dataclasses.replace(recipes_of(name)["tiny"]().config, window_frames=24, **changes)
    folder.mkdir(exist_ok=True)
    task = make_task(name, config, data.uri, folder)
    task.prepare()
    return task


def batch_of(task: Task, size: int = 4) -> Batch:
    return next(iter(task.loader(global_batch=size, seed=0, rank=0, world=1, num_workers=0)))


@pytest.mark.parametrize("task", ["audio2mesh", "audio2pose"])
def test_recipes_come_back_from_json(task):
    for make in recipes_of(task).values():
        recipe = make()
        assert recipe_from_json(task, recipe_to_json(recipe)) == recipe


def test_corpus_holds_the_speakers_that_can_be_heard(corpus):
    assert sorted(corpus.speakers) == ["speaker-0", "speaker-1"]
    assert corpus.statistics.num_clips == 3  # neither the silent clip nor the held-out one
    unseen = len(range(0, LENGTHS[1], UNSEEN))
    assert corpus.statistics.num_frames == sum(LENGTHS[:3]) - unseen
    # Speaker 1 has one clip: its neutral mesh is that clip's, to the shards' storage error.
    found = arrays(2)
    expected = neutral_mesh(found["mesh"], found["blendshapes"], found["valid"]).mesh
    assert np.abs(corpus.speakers["speaker-1"].neutral.mesh - expected).max() < 0.001


def test_corpus_poses_are_about_the_rest_pose(corpus):
    rest = corpus.rest_poses([clip_key(2)])[0]
    assert np.allclose(rest, matrix_from_pose(np.median(arrays(2)["pose"], axis=0)), atol=1e-5)
    std = np.array(corpus.statistics.pose_std)
    assert std[0] > 1 and (std[1:] < 0.01).all()  # only the first angle moves
    assert corpus.statistics.pose_step_p99[0] == pytest.approx(
        max(np.percentile(np.abs(np.diff(arrays(n)["pose"][:, 0])), 99) for n in (0, 1, 2)), rel=0.2
    )


def test_a_changed_data_set_is_refused(data, corpus, tmp_path):
    changed = Corpus(CorpusConfig(data=data.uri), corpus.folder)
    changed.statistics = dataclasses.replace(corpus.statistics, index="index/v1.000000000000.parquet")
    with pytest.raises(ValueError, match="has changed since this run began"):
        changed.reader(("mesh",))


def test_speech_window_hides_what_does_not_count():
    samples = torch.randn(2, 10 * 640)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    batch = {"audio": samples, "mask": mask, "slot": torch.tensor([0, 1])}
    normal, kept = speech_window(batch, min_frames=None, seed=0)
    assert torch.equal(kept, mask) and not normal[1, 6 * 640 :].any()
    for row, count in ((0, 10), (1, 6)):
        heard = normal[row, : count * 640]
        assert abs(heard.mean()) < 1e-5 and abs(heard.var(unbiased=False) - 1) < 1e-3
    # Random lengths depend on the slot alone, reach both ends, and never lengthen a short clip.
    lengths = set()
    for slot in range(40):
        _, kept = speech_window(batch | {"slot": torch.tensor([slot, slot])}, min_frames=4, seed=0)
        assert not kept[1, 6:].any()
        lengths.add(int(kept[0].sum()))
    assert lengths == set(range(4, 11))


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_a_samples_loss_is_its_own(name, data, tmp_path):
    """Neither its neighbours in the batch nor their number change it, so batches can be cut anywhere."""
    task = prepared(name, data, tmp_path / "task")
    module = task.build()
    with torch.no_grad():
        for parameter in module.parameters():  # the output layers begin at zero
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    batch = batch_of(task)
    whole = task.loss(module, batch, seed=3)["loss"]
    for row in range(4):
        alone = {k: (v[row : row + 1]) for k, v in batch.items()}
        assert torch.allclose(task.loss(module, alone, seed=3)["loss"], whole[row : row + 1], rtol=1e-4)


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_frames_without_a_face_do_not_count(name, data, tmp_path):
    task = prepared(name, data, tmp_path / "task")
    module = task.build()
    batch = batch_of(task, 8)
    column = "mesh" if name == "audio2mesh" else "pose_matrix"
    assert not batch["valid"].all(), "the data has such frames"
    loss = task.loss(module, batch, seed=0)["loss"]
    assert torch.isfinite(loss).all()
    nothing = batch | {"valid": torch.zeros_like(batch["valid"])}
    assert not task.loss(module, nothing, seed=0)["loss"].any()
    garbage = batch[column].clone()
    garbage[~batch["valid"]] = 1e6
    assert torch.equal(task.loss(module, batch | {column: garbage}, seed=0)["loss"], loss)


def test_mesh_loss_weights(data, tmp_path):
    """At first the model predicts zero offsets, so that the loss is the offsets' mean size, by vertex as weighted."""
    plain, lips, velocity = (
        prepared("audio2mesh", data, tmp_path / name, **changes)
        for name, changes in (("a", {}), ("b", {"lip_weight": 4.0}), ("c", {"velocity_weight": 2.0}))
    )
    batch = batch_of(plain)
    module = plain.build()
    found = {name: task.loss(module, batch, seed=0) for name, task in (("a", plain), ("b", lips), ("c", velocity))}
    corpus = Corpus(CorpusConfig(data=data.uri), tmp_path / "a")
    offset = (batch["mesh"] - corpus.neutral_meshes(batch["keys"])[:, None]).abs()
    offset = torch.where(batch["valid"][..., None, None], offset, 0.0)
    by_hand = offset.mean(dim=(-1, -2)).sum(dim=1) / batch["valid"].sum(dim=1)
    assert torch.allclose(found["a"]["loss"], by_hand, rtol=1e-5)
    assert (found["b"]["loss"] > 2 * by_hand).all()  # only lips move in this data
    assert torch.allclose(found["c"]["loss"], by_hand + 2 * found["c"]["velocity_l1_cm"], rtol=1e-5)
    assert (found["c"]["velocity_l1_cm"] > 0).all()


def test_pose_history_is_the_truth_one_frame_late_with_keyed_noise(data, tmp_path):
    task = prepared("audio2pose", data, tmp_path / "task", history_noise=0.5)
    quiet = prepared("audio2pose", data, tmp_path / "task", history_noise=0.0)
    batch = batch_of(task)
    seen: list[torch.Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, samples, previous, identity, mask):
            seen.append(previous.clone())
            return torch.zeros_like(previous)

    for _ in range(2):
        task.loss(Spy(), batch, seed=5)
    quiet.loss(Spy(), batch, seed=5)
    task.loss(Spy(), batch, seed=6)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[3])
    assert not seen[2][:, 0].any()
    poses, _ = quiet._targets(batch)  # type: ignore[attr-defined]
    assert torch.equal(seen[2][:, 1:], poses[:, :-1])
    noise = (seen[0] - seen[2])[:, 1:, 0]
    assert noise.std() > 0.05 and not seen[0][:, 0].any()


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_first_weights_do_not_hang_on_what_ran_before(name, data, tmp_path):
    task = prepared(name, data, tmp_path / "task")
    first = parameter_hash(task.build())
    torch.manual_seed(99)
    torch.randn(1000)
    assert parameter_hash(task.build()) == first
    state = torch.random.get_rng_state()
    task.build()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_learns(name, data, tmp_path):
    torch.set_num_threads(1)
    task = prepared(name, data, tmp_path / "task")
    module = task.build()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _, batch in zip(range(40), task.loader(global_batch=4, seed=0, rank=0, world=1, num_workers=0), strict=False):
        loss = task.loss(module, batch, seed=0)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5]), losses


def test_the_cnn_stays_frozen_where_the_recipe_says(data, tmp_path):
    task = prepared("audio2mesh", data, tmp_path / "task", freeze_cnn=True)
    module = task.build()
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    assert frozen and all("feature_extractor" in name or "masked_spec" in name for name in frozen)


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_validation_measures_held_out_and_training_clips(name, data, tmp_path):
    task = prepared(name, data, tmp_path / "task")
    weights, out = tmp_path / "weights", tmp_path / "out"
    weights.mkdir(), out.mkdir()
    task.export(task.build(), weights)
    numbers = task.validate(weights, out)
    assert {key.split("/")[0] for key in numbers} == {"held-out", "training"}
    assert (out / "validation.json").is_file() and list(out.glob("held-out/*.mp4")) and list(out.glob("training/*.png"))
    assert (weights / "speakers.safetensors").is_file() and (weights / "expression.safetensors").is_file()
