"""The tasks that learn from speech: what they derive from the data, their losses, and that they learn."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from infer.evaluation.motion_evaluation import Trace, TrueClip
from shards.order import spread
from talkinghead.files.storage import Storage
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.models.speech.encoder import normalise
from talkinghead.models.weights import parameter_hash
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.rest_pose import relative_pose
from tests.support.motions import a_motion
from tests.support.speech_data import LENGTHS, UNSEEN, arrays, build_speech_data, clip_key
from tests.support.training import batches_of, losses_of
from train.audio2lmk import validation
from train.audio2lmk.corpus import Corpus, CorpusConfig
from train.audio2lmk.task import speech_window
from train.data_sets import DataSets
from train.recipe import make_task, recipe_from_json, recipe_to_json, recipes_of
from train.task import Batch, Task


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_speech_data(tmp_path_factory.mktemp("speech") / "data")


@pytest.fixture(scope="module")
def corpus(data: Storage, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    found = Corpus(CorpusConfig(data=DataSets.of(data.uri)), tmp_path_factory.mktemp("corpus"))
    found.derive()
    return found


def prepared(name: str, data: Storage, folder: Path, **changes: object) -> Task:
    small = {"window_frames": 24} | ({"context": 12} if name == "audio2pose" else {})
    config = dataclasses.replace(recipes_of(name)["tiny"]().config, **(small | changes))
    folder.mkdir(exist_ok=True)
    task = make_task(name, config, data.uri, folder)
    task.prepare()
    return task


def batch_of(task: Task, size: int = 4) -> Batch:
    return next(batches_of(task, size))


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
    rest = corpus.clips.rest_poses[corpus.clips.row(clip_key(2))]
    assert np.allclose(rest, matrix_from_pose(np.median(arrays(2)["pose"], axis=0)), atol=1e-5)
    std = np.array(corpus.statistics.pose_std)
    assert std[0] > 1 and (std[1:] < 0.01).all()  # only the first angle moves
    assert corpus.statistics.pose_step_p99[0] == pytest.approx(
        max(np.percentile(np.abs(np.diff(arrays(n)["pose"][:, 0])), 99) for n in (0, 1, 2)), rel=0.2
    )


def test_statistics_are_about_the_origin_that_the_recipe_takes(data, corpus, tmp_path):
    """About the rest pose the mean is small; about the first frame, where the clips are silent, it is half a nod."""
    about_first = Corpus(CorpusConfig(data=DataSets.of(data.uri), pose_origin="first"), tmp_path)
    about_first.derive()
    assert about_first.statistics.pose_mean[0] == pytest.approx(2, abs=0.3)
    assert abs(corpus.statistics.pose_mean[0]) < 0.5


def test_a_window_is_as_loud_as_inference_makes_it(data, corpus):
    sample = corpus.reader(("mesh",))[1]
    whole = normalise(torch.from_numpy(sample.audio()))
    part = torch.from_numpy(sample.audio(5, 10))[None]
    levels = torch.from_numpy(corpus.clips.speech_levels[[corpus.clips.row(sample.key)]])
    samples, _ = speech_window({"audio": part, "mask": torch.ones(1, 10, dtype=torch.bool), "speech_levels": levels})
    torch.testing.assert_close(samples[0], whole[5 * 640 : 15 * 640], rtol=1e-4, atol=1e-5)


def test_more_speakers_than_identities_is_said(data, tmp_path, caplog):
    one = prepared("audio2pose", data, tmp_path / "one", num_identities=1)
    assert "2 training speakers share 1 identities" in caplog.text
    caplog.clear()
    own = prepared("audio2pose", data, tmp_path / "own")
    assert "identities" not in caplog.text
    assert [task.build().get_parameter("id_embed.weight").shape[0] for task in (one, own)] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 76}, "sees up to 76 frames of the past"),
        ({"context": None, "position_period": 600, "restart_frames": 40}, "sees up to 80 frames .*2 x restart_frames"),
        ({"context": None, "position_period": 40, "restart_frames": 40}, "between 0 and position_period 40"),
        ({"width": 100, "heads": 3}, "multiple of heads"),
        ({"num_identities": 0}, "num_identities"),
        ({"min_window_frames": 80}, "min_window_frames 80 is above"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    config = recipes_of("audio2pose")["tiny"]().config
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_a_changed_data_set_is_refused(data, corpus, tmp_path):
    changed = Corpus(CorpusConfig(data=DataSets.of(data.uri)), corpus.folder)
    changed.statistics = dataclasses.replace(corpus.statistics, index="index/v1.000000000000.parquet")
    with pytest.raises(ValueError, match="has changed since this run began"):
        changed.reader(("mesh",))


def test_speech_window_hides_what_does_not_count():
    samples = torch.randn(2, 10 * 640)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    levels = torch.tensor([[0.0, 1.0], [0.5, 4.0]])
    normal, kept = speech_window({"audio": samples, "mask": mask, "speech_levels": levels})
    assert torch.equal(kept, mask) and not normal[1, 6 * 640 :].any()
    torch.testing.assert_close(normal[0], samples[0])
    torch.testing.assert_close(normal[1, : 6 * 640], (samples[1, : 6 * 640] - 0.5) / 2)


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_a_samples_loss_is_its_own(name, data, tmp_path):
    """Neither its neighbours in the batch nor their number change it, so batches can be cut anywhere."""
    task = prepared(name, data, tmp_path / "task")
    module = task.build()
    with torch.no_grad():
        for parameter in module.parameters():  # the output layers begin at zero
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    batch = batch_of(task)
    whole = losses_of(task, module, batch, seed=3)["loss"]
    for row in range(4):
        alone = {k: (v[row : row + 1]) for k, v in batch.items()}
        assert torch.allclose(losses_of(task, module, alone, seed=3)["loss"], whole[row : row + 1], rtol=1e-4)


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_frames_without_a_face_do_not_count(name, data, tmp_path):
    task = prepared(name, data, tmp_path / "task")
    module = task.build()
    batch = batch_of(task, 8)
    column = "mesh" if name == "audio2mesh" else "pose"
    assert not batch["valid"].all(), "the data has such frames"
    loss = losses_of(task, module, batch, seed=0)["loss"]
    assert torch.isfinite(loss).all()
    nothing = batch | {"valid": torch.zeros_like(batch["valid"])}
    assert not losses_of(task, module, nothing, seed=0)["loss"].any()
    garbage = batch[column].clone()
    garbage[~batch["valid"]] = 1e6
    assert torch.equal(losses_of(task, module, batch | {column: garbage}, seed=0)["loss"], loss)


def test_mesh_loss_weights(data, tmp_path):
    """At first the model predicts zero offsets, so that the loss is the offsets' mean size, by vertex as weighted."""
    plain, lips, velocity = (
        prepared("audio2mesh", data, tmp_path / name, **changes)
        for name, changes in (("a", {}), ("b", {"lip_weight": 4.0}), ("c", {"velocity_weight": 2.0}))
    )
    batch = batch_of(plain)
    module = plain.build()
    found = {name: losses_of(task, module, batch) for name, task in (("a", plain), ("b", lips), ("c", velocity))}
    offset = (batch["mesh"] - batch["neutral"][:, None]).abs()
    offset = torch.where(batch["valid"][..., None, None], offset, 0.0)
    by_hand = offset.mean(dim=(-1, -2)).sum(dim=1) / batch["valid"].sum(dim=1)
    assert torch.allclose(found["a"]["loss"], by_hand, rtol=1e-5)
    assert (found["b"]["loss"] > 2 * by_hand).all()  # only lips move in this data
    assert torch.allclose(found["c"]["loss"], by_hand + 2 * found["c"]["velocity_l1_cm"], rtol=1e-5)
    assert (found["c"]["velocity_l1_cm"] > 0).all()


def test_pose_history_is_the_truth_one_frame_late_with_keyed_noise(data, tmp_path):
    task = prepared("audio2pose", data, tmp_path / "task", history_noise=0.5)
    quiet = prepared("audio2pose", data, tmp_path / "task", history_noise=0.0)
    seen = [next(batches_of(one, 4, seed=seed)) for one, seed in ((task, 5), (task, 5), (quiet, 5))]
    assert torch.equal(seen[0]["previous"], seen[1]["previous"])
    keys, valid = seen[2]["keys"], seen[2]["valid"]
    reader = quiet.corpus.reader(("pose_matrix",))  # type: ignore[attr-defined]
    for row, key in enumerate(keys):
        sample = reader[reader.keys.index(key)]
        rest = quiet.corpus.clips.rest_poses[quiet.corpus.clips.row(key)]  # type: ignore[attr-defined]
        pose = relative_pose(sample.annotation("pose_matrix", int(seen[2]["first"][row]), 24), rest)
        known, held = np.zeros(6), []
        for frame in range(len(pose)):  # the last pose before each frame; none before the first face
            held.append(known)
            known = pose[frame] if valid[row, frame] else known
        assert np.allclose(seen[2]["previous"][row], held, atol=1e-5)
    noise = (seen[0]["previous"] - seen[2]["previous"])[:, 1:, 0]
    assert noise.std() > 0.05 and not seen[0]["previous"][:, 0].any()

    class Spy(torch.nn.Module):
        def forward(self, samples, previous, identity, mask):
            assert torch.equal(previous, seen[0]["previous"])
            return torch.zeros_like(previous)

    losses_of(task, Spy(), seen[0], seed=5)


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
    for _, batch in zip(range(40), batches_of(task, 4), strict=False):
        loss = losses_of(task, module, batch, seed=0)["loss"].mean()
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
    weights.mkdir()
    out.mkdir()
    task.export(task.build(), weights)
    numbers = task.validate(weights, out, torch.device("cpu"))
    assert {key.split("/")[0] for key in numbers} == {"held-out", "training"}
    assert (out / "validation.json").is_file() and list(out.glob("held-out/*.mp4")) and list(out.glob("training/*.png"))
    assert (weights / "speakers.safetensors").is_file() and (weights / "expression.safetensors").is_file()


def test_a_head_that_leaves_the_camera_is_black(tmp_path, monkeypatch):
    """A model that has diverged still gets its video, and after it its figures."""
    shown: list[Any] = []
    monkeypatch.setattr(validation, "write_talking_video", lambda path, frames, **_: shown.extend(frames))
    pose = np.zeros((4, 6))
    pose[1, 5], pose[2], pose[3, :3] = 100, 1e30, 1e6
    clip = TrueClip(key="a", speaker="b", audio=np.zeros(4 * 640, np.float32), motion=a_motion(4))
    true = np.zeros((4, 6))
    true[0] = np.nan
    trace = Trace(clip=clip, kind="pose", still=np.eye(4), true=true, predictions={"prediction": pose})
    validation.write_trace_video(trace, tmp_path / "trace.mp4")
    halves = np.stack(shown).reshape(4, validation.SIDE, 2, -1)
    left, right = np.any(halves, axis=(1, 3)).T.tolist()
    assert left == [False, True, True, True]
    assert right[:3] == [True, False, False]


@pytest.mark.parametrize("name", ["audio2mesh", "audio2pose"])
def test_what_can_be_wrong_is_found_before_the_run(name, data, tmp_path):
    def task(where: str = data.uri, **changes: object) -> Task:
        config = dataclasses.replace(recipes_of(name)["tiny"]().config, **changes)
        return make_task(name, config, where, tmp_path / "task")

    found = task().check()
    assert found["wav2vec"]["kind"] == "tiny" and len(found["wav2vec"]["sha256"]) == 64
    with pytest.raises(ValueError, match="no speech encoder in nowhere"):
        task(wav2vec="nowhere").check()
    with pytest.raises(ValueError, match="nobody"):
        task(person=("nobody",)).check()
    with pytest.raises(ValueError, match="missing"):
        task(f"{tmp_path}/missing").check()
    assert not (tmp_path / "task").exists()


# --- weights to begin with --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["audio2mesh", "audio2pose"])
def exported(request, data, tmp_path_factory):
    """Task, and the export of weights that are not its first ones."""
    folder = tmp_path_factory.mktemp(request.param)
    task = prepared(request.param, data, folder / "task")
    module = task.build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01)
    (folder / "run" / "pretrained_model").mkdir(parents=True)
    task.export(module, folder / "run" / "pretrained_model")
    return request.param, folder / "run", parameter_hash(module)


def test_training_begins_with_an_export(exported, data, corpus, tmp_path):
    """By its RUN or its folder, without the encoder's folder; on clips of one person, too."""
    name, run, sha256 = exported
    for number, (given, changes) in enumerate(
        ((run, {}), (run / "pretrained_model", {}), (run, {"person": (next(iter(corpus.speakers)),)}))
    ):
        task = prepared(name, data, tmp_path / str(number), init=str(given), wav2vec="nowhere", **changes)
        assert parameter_hash(task.build()) == sha256
        about = task.check()
        assert set(about) == set(task.sources()) == {"init"} and about["init"]["name"] == "run"
    out = tmp_path / "out"
    out.mkdir()
    task.export(task.build(), out)
    batch = next(batches_of(task, 2))
    module = task.build()
    losses_of(task, module, batch)["loss"].sum().backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_weights_that_cannot_be_begun_with_are_named(exported, data, tmp_path):
    name, run, _ = exported
    other = "audio2pose" if name == "audio2mesh" else "audio2mesh"

    def check(kind: str, init: Path, **changes: object) -> None:
        config = dataclasses.replace(recipes_of(kind)["tiny"]().config, init=str(init), **changes)
        make_task(kind, config, data.uri, tmp_path / "task").check()

    check(name, run)
    with pytest.raises(ValueError, match=r"holds Audio2(Mesh|Pose), but Audio2(Mesh|Pose) is wanted"):
        check(other, run)
    with pytest.raises(ValueError, match="are not there"):
        check(name, tmp_path / "nowhere")
    size = {"hidden": 64} if name == "audio2mesh" else {"feed_forward": 64}
    with pytest.raises(ValueError, match=r"of another size than these settings: .* set the sizes"):
        check(name, run, **size)
    half = shutil.copytree(run, tmp_path / "half")
    (weights,) = half.glob("pretrained_model/*model.safetensors")
    tensors = load_file(weights)
    dropped = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != dropped}, weights)
    with pytest.raises(ValueError, match=f"{re.escape(dropped)} missing"):
        check(name, half)
    save_file(tensors | {dropped: torch.full_like(tensors[dropped], torch.nan)}, weights)
    with pytest.raises(ValueError, match=r"NaN or infinite numbers"):
        check(name, half)
    weights.unlink()
    with pytest.raises(ValueError, match="copy the folder again"):
        check(name, half)


def test_validated_clips_are_spread_over_the_split():
    assert spread(100, 4) == [0, 33, 66, 99]
    assert spread(3, 4) == [0, 1, 2]
    assert spread(5, 1) == [0]
    assert spread(0, 4) == []
