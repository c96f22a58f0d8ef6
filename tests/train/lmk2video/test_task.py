"""The two tasks of Lmk2Video: what they train, gradients however a step is cut, what they keep and refuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shards.index import Index
from shards.loader import collate
from shards.reader import ShardReader
from talkinghead.derived import Derived
from talkinghead.files.storage import Storage
from talkinghead.latents import ROWS
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.weights import first_weights, parameter_hash
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from talkinghead.schema import SampleIndex
from tests.support.derived_data import TOY, ToySettings, add_version, toy
from tests.support.face_clips import LATENTS_VERSION, add_latents, build_face_data, clip_key
from tests.support.lmk2video_tasks import batch_of, gradients, prepared, shake
from tests.support.training import batches_of, losses_of
from train.clip_choice import PinnedVersion, ReadVersions
from train.config import ParallelConfig
from train.lmk2video.clip_source import FILE, ClipSource
from train.lmk2video.module import Lmk2Video
from train.lmk2video.stage1 import make_module
from train.lmk2video.task import Lmk2VideoTask
from train.recipe import make_task, recipe_from_json, recipe_to_json, recipes_of
from train.task import Batch
from train.trainer.backward import only
from train.trainer.parallel import parallelise

TASKS = ("stage1", "stage2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_face_data(tmp_path_factory.mktemp("faces") / "data")


@pytest.fixture(scope="module")
def stage1(data: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 1 exports, with weights that all matter."""
    folder = tmp_path_factory.mktemp("stage1")
    task = prepared("stage1", data, folder / "task")
    module = task.build()
    shake(module)
    (folder / "pretrained_model").mkdir()
    task.export(module.eval(), folder / "pretrained_model")
    return folder


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest, data: Storage, stage1: Path, tmp_path_factory: Any) -> Lmk2VideoTask[Any]:
    """Either, on pixels, with all weighting; of the first four samples one has all conditions, the others lack some."""
    more = {"drop_both": 0.125, "drop_reference": 0.1, "drop_token": 0.19, "face_weight": 2.0, "mouth_weight": 3.0}
    if request.param == "stage2":
        more |= {"stage1": str(stage1)}
    return prepared(request.param, data, tmp_path_factory.mktemp(request.param) / "task", **more)


@pytest.fixture(scope="module")
def module(task: Lmk2VideoTask[Any]) -> Lmk2Video:
    built = task.build().train()
    shake(built, only_trained=True)
    return built


@pytest.fixture(scope="module")
def batch(task: Lmk2VideoTask[Any]) -> Batch:
    return batch_of(task, 4)


@pytest.fixture(scope="module")
def whole(task: Lmk2VideoTask[Any], module: Lmk2Video, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the batch in one go."""
    return gradients(task, module, [batch])


# --- gradients --------------------------------------------------------------------------------------------------------


def test_a_samples_loss_is_its_own(task: Lmk2VideoTask[Any], module: Lmk2Video, batch: Batch) -> None:
    with torch.no_grad():
        losses = losses_of(task, module, batch, seed=0)["loss"]
        assert losses.shape == (4,) and losses.isfinite().all() and (losses > 0).all()
        for row in range(4):
            alone = losses_of(task, module, only(batch, row), seed=0)["loss"]
            torch.testing.assert_close(alone[0], losses[row], rtol=1e-4, atol=1e-6)
        others = next(batches_of(task, 4, seed=1))
        drawn = batch | {name: others[name] for name in ("timestep", "noise", "target_draw", "reference_draw")}
        assert not torch.equal(losses_of(task, module, drawn, seed=0)["loss"], losses)


def test_gradients_are_the_same_however_a_batch_is_cut(
    task: Lmk2VideoTask[Any], module: Lmk2Video, batch: Batch, whole: dict[str, Tensor]
) -> None:
    parts = [only(batch, row) for row in range(4)]
    assert_close(gradients(task, module, parts), whole)


def test_every_trained_parameter_has_a_gradient(module: Lmk2Video, whole: dict[str, Tensor]) -> None:
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    assert whole.keys() == trained
    idle = [name for name, value in whole.items() if not value.any()]
    # A softmax knows no shift that all of its inputs share.
    assert all(name.endswith(".to_k.bias") for name in idle), idle


@pytest.mark.parametrize("option", ["activation_checkpointing", "folded"])
def test_saving_memory_or_work_leaves_gradients(
    task: Lmk2VideoTask[Any], module: Lmk2Video, batch: Batch, whole: dict[str, Tensor], option: str
) -> None:
    other = task.build().train()
    other.load_state_dict(module.state_dict())
    if option == "folded":
        other.fold = not other.fold
    else:
        parallelise(other, ParallelConfig(activation_checkpointing=True), torch.device("cpu"), 1)
    assert_close(gradients(task, other, [batch]), whole)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8 * largest, msg=name)


def test_cached_latents_give_the_same_gradients(
    data: Storage, task: Lmk2VideoTask[Any], module: Lmk2Video, batch: Batch, whole: dict[str, Tensor], tmp_path: Path
) -> None:
    assert data.local_root is not None
    shutil.copytree(data.local_root, tmp_path / "data")
    storage = Storage(tmp_path / "data")
    add_latents(storage, ImageNetworks.load("tiny", "tiny"), 32, 32)
    cached = prepared(task.weights_key, storage, tmp_path / "task", config=task.config)
    assert cached.clips[0].pinned.latents == LATENTS_VERSION
    read = batch_of(cached, 4)
    assert "target" not in read and read["keys"] == batch["keys"]
    found = gradients(cached, module, [read])
    for name, value in whole.items():  # moments are rounded to half precision in both, but not always alike
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=2e-3 * float(value.abs().max()), msg=name)
    refused = prepared(task.weights_key, storage, tmp_path / "other", config=task.config, use_latents="no")
    assert refused.clips[0].pinned.latents is None


# --- what is trained --------------------------------------------------------------------------------------------------


def trained(module: nn.Module) -> set[str]:
    return {name for name, value in module.named_parameters() if value.requires_grad}


def test_stage_1_trains_all_but_the_references_tail(data: Storage, tmp_path: Path) -> None:
    whole = prepared("stage1", data, tmp_path / "a", fold_token=False).build()
    frozen = {name for name, _ in whole.named_parameters()} - trained(whole)
    assert frozen and all(name.startswith("reference_net.up_blocks.3.") for name in frozen)
    folded = prepared("stage1", data, tmp_path / "b").build()
    more = trained(whole) - trained(folded)
    assert more and all(".attn2.to_q." in name or ".attn2.to_k." in name or ".norm2." in name for name in more)
    assert parameter_hash(whole) == parameter_hash(folded), "first weights come from a fixed seed"


def test_dead_weights_have_no_gradient_unfolded(data: Storage, tmp_path: Path) -> None:
    """What folding leaves untrained would not be trained anyway."""
    task = prepared("stage1", data, tmp_path / "task", fold_token=False)
    module = task.build().train()
    shake(module)
    found = gradients(task, module, [batch_of(task, 2)])
    largest = max(float(value.abs().max()) for value in found.values())
    for name, value in found.items():
        if "attn2.to_q" in name or "attn2.to_k" in name or "transformer_blocks.0.norm2" in name:
            assert float(value.abs().max()) < 1e-6 * largest, name


def test_stage_2_trains_motion_and_keeps_the_rest(data: Storage, stage1: Path, tmp_path: Path) -> None:
    task = prepared("stage2", data, tmp_path / "task", stage1=str(stage1))
    module = task.build().train()
    assert trained(module) == {f"denoiser.{name}" for name, _ in module.denoiser.motion_parameters()}
    assert not module.reference_net.training and not module.pose_guider.training and module.denoiser.training
    begun = TalkingHeadPipeline.from_pretrained(stage1 / "pretrained_model")
    for name, value in begun.denoiser.state_dict().items():
        assert torch.equal(module.denoiser.state_dict()[name], value)
    assert parameter_hash(begun.pose_guider) == parameter_hash(module.pose_guider)
    assert parameter_hash(begun.reference_net) == parameter_hash(module.reference_net)
    assert parameter_hash(task.build()) == parameter_hash(module)


def test_new_motion_modules_change_nothing(data: Storage, stage1: Path, tmp_path: Path) -> None:
    """They begin at zero: stage 2 starts from what stage 1 shows."""
    task = prepared("stage2", data, tmp_path / "task", stage1=str(stage1))
    still = TalkingHeadPipeline.from_pretrained(stage1 / "pretrained_model").denoiser
    module = task.build()
    batch = batch_of(task, 2)
    with torch.no_grad():
        losses = losses_of(task, module, batch, seed=0)["loss"]
        module.denoiser = still
        torch.testing.assert_close(losses_of(task, module, batch, seed=0)["loss"], losses, rtol=1e-4, atol=1e-6)


def test_a_dropped_reference_is_not_seen(data: Storage, tmp_path: Path) -> None:
    """Its image changes nothing then; its landmarks still do, as at inference."""
    torch.manual_seed(0)
    for dropped in (True, False):
        share = {"drop_both": float(dropped), "drop_token": 0.0, "drop_reference": 0.0}
        task = prepared("stage1", data, tmp_path / str(dropped), **share)
        module = task.build()
        shake(module)
        batch = batch_of(task, 2)
        with torch.no_grad():
            loss = losses_of(task, module, batch, seed=0)["loss"]
            other = batch | {"reference": 255 - batch["reference"]}
            assert torch.equal(losses_of(task, module, other, seed=0)["loss"], loss) is dropped
            moved = batch | {"reference_guidance": batch["reference_guidance"].flip(-1)}
            assert not torch.equal(losses_of(task, module, moved, seed=0)["loss"], loss)


def test_images_are_encoded_by_networks_of_the_trainings_precision(
    data: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prepared("stage1", data, tmp_path, vae="tiny-kl")
    gpu, cpu = torch.device("meta"), torch.device("cpu")  # meta stands for any device that is no CPU
    with torch.autocast("cpu", torch.bfloat16):
        assert task.encoder_on(cpu).vae is task.encoder.vae  # a CPU computes them in float32
    monkeypatch.setattr("train.lmk2video.task.computed_in", lambda device: torch.bfloat16)
    encoder = task.encoder_on(gpu)
    for network, given in ((encoder.vae, task.encoder.vae), (encoder.image_encoder, task.encoder.image_encoder)):
        assert (network.dtype, network.device) == (torch.bfloat16, gpu)
        assert (given.dtype, given.device) == (torch.float32, cpu)  # what is exported
    assert task.encoder_on(gpu) is encoder  # moved once
    # Those are the ones that a loss encodes with.
    asked: list[torch.device] = []
    monkeypatch.setattr(task, "encoder_on", lambda device: asked.append(device) or task.encoder)
    losses_of(task, task.build(), batch_of(task, 2), seed=0)
    assert asked == [cpu]


def test_frames_without_a_face_do_not_count(task: Lmk2VideoTask[Any], module: Lmk2Video, batch: Batch) -> None:
    nothing = batch | {"mask": torch.zeros_like(batch["mask"])}
    with torch.no_grad():
        assert not losses_of(task, module, nothing, seed=0)["loss"].any()


@pytest.mark.parametrize("name", TASKS)
def test_recipes_come_back_from_json(name: str) -> None:
    for make in recipes_of(name).values():
        recipe = make()
        assert recipe_from_json(name, recipe_to_json(recipe)) == recipe


# --- the paper's sizes ------------------------------------------------------------------------------------------------


def count(values: Iterable[nn.Parameter]) -> int:
    return sum(value.numel() for value in values)


def test_the_papers_networks_have_the_papers_sizes() -> None:
    assert recipes_of("stage1")["paper"]().config.size == "sd15"
    with torch.device("meta"):
        module = make_module("sd15", 4)
    module.train_images(fold=recipes_of("stage1")["paper"]().config.fold_token)
    # Parameters that the published networks lack: attention to the reference's landmarks, and last layers that begin at
    # zero.
    ours = sum(
        count(part.parameters()) for part in (module.pose_guider.reference_attentions, module.pose_guider.output_layers)
    )
    assert count(module.denoiser.parameters()) == 859_520_964
    assert count(module.reference_net.parameters()) == 859_508_800
    assert count(module.pose_guider.parameters()) - ours == 167_518_523
    parameters = [value for value in module.parameters() if value.requires_grad]
    assert count(parameters) - ours == pytest.approx(1_867.7e6, rel=1e-4)
    assert count(value for value in module.reference_net.parameters() if value.requires_grad) == pytest.approx(
        840.70e6, rel=1e-5
    )


def test_the_papers_motion_modules_have_the_papers_size() -> None:
    from talkinghead.models.lmk2video.denoiser import Denoiser

    with torch.device("meta"):
        module = make_module("sd15", 4)
        module.denoiser = Denoiser(motion=True)
    module.train_motion()
    parameters = [value for value in module.parameters() if value.requires_grad]
    assert count(parameters) == 453_209_280 and len(parameters) == 546


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_the_papers_networks_learn_from_a_small_image(stage: int) -> None:
    """One real step's gradient at the paper's sizes, 64 x 64 pixels: finite, and of every trained parameter."""
    from talkinghead.models.lmk2video.denoiser import Denoiser
    from train.lmk2video.module import Conditions

    torch.manual_seed(0)
    with torch.device("meta"):
        module = make_module("sd15", 4)
        if stage == 2:
            module.denoiser = Denoiser(motion=True)
    module.to(torch.bfloat16).to_empty(device="cpu")  # 4 GB, and as much again for gradients
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:  # a stand-in for weights, drawn in seconds
            value.uniform_(-0.02, 0.02)
    (module.train_motion if stage == 2 else lambda: module.train_images(fold=False))()
    module.train()
    frames = 2

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16)

    given = Conditions(
        token=some(1, 1, 768),
        reference=some(1, 4, 8, 8),
        dropped=torch.tensor([False]),
        guidance=some(1, frames, 3, 64, 64),
        reference_guidance=some(1, 3, 64, 64),
    )
    predicted = module(some(1, frames, 4, 8, 8), torch.tensor([500]), given)
    assert predicted.shape == (1, frames, 4, 8, 8)
    predicted.square().mean().backward()
    for name, value in module.named_parameters():
        assert (value.grad is not None) is value.requires_grad, name
        assert value.grad is None or value.grad.isfinite().all(), name


@pytest.mark.parametrize("name", ["stage1", "lmk2video-stage1"])
def test_first_weights_hang_on_a_key_that_outlives_the_tasks_name(name: str, data: Storage, tmp_path: Path) -> None:
    task = prepared(name, data, tmp_path / "task")
    with first_weights("stage1"):
        expected = make_module("tiny", task.encoder.channels)
    assert parameter_hash(task.build()) == parameter_hash(expected)


# --- what is kept and refused -----------------------------------------------------------------------------------------


def test_the_export_is_a_pipeline_that_runs(stage1: Path, data: Storage) -> None:
    pipeline = TalkingHeadPipeline.from_pretrained(stage1 / "pretrained_model")
    assert pipeline.config["width"] == pipeline.config["height"] == 32
    sample = ShardReader(data).find(clip_key(0))
    landmarks = sample.annotation("landmarks", 0, 3)
    pipeline.set_progress_bar_config(disable=True)
    frames = list(
        pipeline.stream(sample.video(0, 1)[0], landmarks, reference_landmarks=landmarks[0], num_inference_steps=2)
    )
    assert len(frames) == 3 and frames[0].shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("stage1", {"width": 42}, "nearest width is 40 or 44"),
        ("stage1", {"image_encoder": "small"}, "take 64: choose another image_encoder"),
        ("stage1", {"vae": "nowhere"}, "no folder 'nowhere'"),
        ("stage1", {"size": "sd15", "sd15": "nowhere", "width": 64}, "take 768"),
        ("stage1", {"use_latents": "require"}, "run make latents"),
        ("stage1", {"person": ("nobody",)}, "person or split group 'nobody'"),
        ("stage2", {"num_frames": 40, "max_frames": 48}, r"has 40 frames \(the longest has 34\)"),
        ("stage1", {"annotation": "v9"}, "there is no version 'v9'"),
        ("stage2", {"stage1": "nowhere"}, "no weights of stage 1 in nowhere"),
        ("stage2", {"motion_module": "nowhere.ckpt"}, "no file nowhere.ckpt"),
    ],
)
def test_what_cannot_be_trained_is_said_first(
    name: str, changes: dict[str, Any], message: str, data: Storage, stage1: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(name, data, tmp_path / "task", **({"stage1": str(stage1)} | changes if name == "stage2" else changes))


@pytest.mark.parametrize("name", TASKS)
def test_training_begins_with_an_export(name: str, data: Storage, stage1: Path, tmp_path: Path) -> None:
    """The same weights, VAE and image encoder; stage 1 takes stage 2's, too, without its motion modules."""
    first = prepared("stage2", data, tmp_path / "first", stage1=str(stage1))
    module = first.build()
    shake(module, only_trained=True)
    run = tmp_path / "run"
    (run / "pretrained_model").mkdir(parents=True)
    first.export(module.eval(), run / "pretrained_model")
    changes = {"vae": "nowhere", "image_encoder": "nowhere"} if name == "stage1" else {"stage1": "nowhere"}
    task = prepared(name, data, tmp_path / name, init=str(run), **changes)
    built = task.build()
    spatial = {key: value for key, value in module.state_dict().items() if name == "stage2" or ".motion_" not in key}
    assert built.state_dict().keys() == spatial.keys()
    assert all(torch.equal(value, spatial[key]) for key, value in built.state_dict().items())
    trained = {key for key, value in built.named_parameters() if value.requires_grad}
    plain = first if name == "stage2" else prepared("stage1", data, tmp_path / "plain")
    assert trained == {key for key, value in plain.build().named_parameters() if value.requires_grad}
    about = task.check()
    assert set(about) == set(task.sources()) == {"init"} and about["init"]["name"] == "run"
    assert task.encoder.provenance() == first.encoder.provenance()
    losses_of(task, built.train(), batch_of(task, 2))["loss"].sum().backward()


@pytest.mark.parametrize(
    ("spoil", "changes", "message"),
    [
        (None, {"init": "nowhere"}, "no weights of Lmk2Video in nowhere"),
        ("nan", {}, r"NaN or infinite numbers \(pose_guider"),
        ("half", {}, "is no whole PoseGuider"),
        (None, {"size": "small"}, "of another size than these settings: .* set the sizes"),
    ],
)
def test_weights_that_cannot_be_begun_with_are_named(
    spoil: str | None, changes: dict[str, Any], message: str, data: Storage, stage1: Path, tmp_path: Path
) -> None:
    init = Path(shutil.copytree(stage1, tmp_path / "init"))
    weights = next(iter((init / "pretrained_model" / "pose_guider").glob("*.safetensors")))
    if spoil == "nan":
        tensors = load_file(weights)
        save_file(tensors | {name: torch.full_like(value, torch.nan) for name, value in tensors.items()}, weights)
    elif spoil == "half":
        weights.unlink()
    with pytest.raises(ValueError, match=message):
        prepared("stage1", data, tmp_path / "task", **({"init": str(init)} | changes))
    if spoil is None and "init" not in changes:
        with pytest.raises(ValueError, match=r"have no motion modules: give them as --config\.stage1"):
            prepared("stage2", data, tmp_path / "task", init=str(init))


def test_a_person_without_clips_is_not_said_to_have_no_face(data: Storage, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train split of .* has no clip of person-1 that the filters and this train"):
        prepared("stage1", data, tmp_path / "task", person=("person-1",), at_most=("audio_silent=0",))


def test_rules_choose_clips_and_what_they_join_is_pinned(data: Storage, tmp_path: Path) -> None:
    assert data.local_root is not None
    storage = Storage(shutil.copytree(data.local_root, tmp_path / "data"))
    scores = {clip_key(0): 1.0, clip_key(1): 5.0, clip_key(2): 7.0, clip_key(3): 4.0}

    def scored(row: SampleIndex, valid: np.ndarray) -> Derived:
        return dataclasses.replace(toy(row, valid), scores={"toy_score": scores[row.key]})

    version = add_version(storage, TOY, scored)
    add_latents(storage, ImageNetworks.load("tiny", "tiny"), 32, 32)
    rules = {"at_least": ("toy_score=3",), "person": ("person-0",)}
    task = prepared("stage1", storage, tmp_path / "task", **rules)
    assert task.clips[0].reader().keys == [clip_key(1)]
    pinned = PinnedVersion(version=version.version, index=version.index)
    assert task.clips[0].pinned.joined == (pinned,)
    assert task.reads() == (ReadVersions(versions=("v1", LATENTS_VERSION, version.version)),)

    # Newer scores would leave nothing; the run does not read them, but notices others in the place of its own.
    scores.clear()
    scores.update({clip_key(number): 0.0 for number in range(4)})
    add_version(storage, TOY, scored, settings=ToySettings(number=1))
    again = make_task("stage1", task.config, storage.uri, tmp_path / "task")
    again.check()
    assert again.clips[0].reader().keys == [clip_key(1)]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"train split of .* has no clip of person-0"):
        make_task("stage1", task.config, storage.uri, tmp_path / "new").check()
    add_version(storage, TOY, scored)
    with pytest.raises(ValueError, match="has changed since this run began"):
        make_task("stage1", task.config, storage.uri, tmp_path / "task").clips[0].reader()  # type: ignore[attr-defined]


def test_rules_hold_for_validation_clips_but_not_persons(data: Storage, tmp_path: Path) -> None:
    assert data.local_root is not None
    storage = Storage(shutil.copytree(data.local_root, tmp_path / "data"))
    add_version(
        storage,
        TOY,
        lambda row, valid: dataclasses.replace(toy(row, valid), scores={"toy_score": float(row.key == clip_key(3))}),
    )
    config = dataclasses.replace(recipes_of("stage1")["tiny"]().config, validation_clips=9, person=("person-0",))

    begun = ClipSource(config, storage.uri, tmp_path)
    begun.pin(begun.find({}))

    def keys(split: str, **changes: Any) -> set[str]:
        clips = ClipSource(dataclasses.replace(config, **changes), storage.uri, tmp_path)
        return set(clips.validation_reader(split, ("landmarks", "valid")).keys)

    assert keys("train") == {clip_key(0), clip_key(1)} and keys("val") == {clip_key(3)}
    assert keys("val", at_least=("toy_score=1",)) == {clip_key(3)}
    assert not keys("val", at_most=("toy_score=0.5",)) and len(keys("train", at_most=("toy_score=0.5",))) == 2


def test_a_run_that_pinned_no_joined_columns_goes_on(data: Storage, tmp_path: Path) -> None:
    task = prepared("stage1", data, tmp_path / "task")
    file = tmp_path / "task" / FILE
    file.write_text(
        json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "joined"})
    )
    assert make_task("stage1", task.config, data.uri, tmp_path / "task").reads() == (ReadVersions(versions=("v1",)),)


def test_clips_without_latents_are_said_once(
    data: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of three clips could not be encoded: the training is poorer than its user thinks."""
    assert data.local_root is not None
    storage = Storage(shutil.copytree(data.local_root, tmp_path / "data"))
    add_latents(storage, ImageNetworks.load("tiny", "tiny"), 32, 32)
    has_member = Index.has_member

    def encoded(index: Index, suffix: str) -> np.ndarray:
        there = has_member(index, suffix)
        return there & (np.arange(len(there)) == 0) if suffix == f"{ROWS}.npy" else there

    monkeypatch.setattr(Index, "has_member", encoded)
    task = prepared("stage1", storage, tmp_path / "task")
    assert task.clips[0].pinned.latents == LATENTS_VERSION
    assert "only 1 of 3 training clips have latents" in caplog.text and "use_latents to no" in caplog.text


def test_settings_that_do_not_go_together_are_refused() -> None:
    one, two = recipes_of("stage1")["tiny"]().config, recipes_of("stage2")["tiny"]().config
    for config, changes in ((one, {"sd15": "folder"}), (one, {"size": "huge"}), (two, {"num_frames": 40})):
        with pytest.raises(ValueError):
            dataclasses.replace(config, **changes)


def test_no_data_set_is_said(tmp_path: Path) -> None:
    config = dataclasses.replace(recipes_of("stage1")["tiny"]().config, width=32, height=32)
    with pytest.raises(ValueError, match="run make shards"):
        make_task("stage1", config, str(tmp_path), tmp_path / "task").check()


@pytest.mark.slow
def test_weights_that_were_replaced_are_noticed(data: Storage, stage1: Path, tmp_path: Path) -> None:
    before = prepared("stage2", data, tmp_path / "a", stage1=str(stage1)).check()["stage1"]
    assert before["name"] == stage1.name and len(before["sha256"]) == 64
    same = prepared("stage2", data, tmp_path / "b", stage1=str(stage1 / "pretrained_model")).check()["stage1"]
    assert same["sha256"] == before["sha256"]
    other = prepared("stage1", data, tmp_path / "c")
    (tmp_path / "d").mkdir()
    other.export(other.build(), tmp_path / "d")
    changed = prepared("stage2", data, tmp_path / "e", stage1=str(tmp_path / "d")).check()["stage1"]
    assert changed["sha256"] != before["sha256"]


# --- held-out clips ---------------------------------------------------------------------------------------------------


def test_held_out_windows_are_of_other_clips_with_even_timesteps(
    task: Lmk2VideoTask[Any], module: Lmk2Video, data: Storage
) -> None:
    found = task.held_out(5, 8)
    assert found is not None
    items = [found[slot] for slot in range(8)]
    assert {item["key"] for item in items} <= set(ShardReader(data, split="val").keys)
    assert [item["timestep"] for item in items] == [62, 187, 312, 437, 562, 687, 812, 937]
    batch = collate(items)
    with torch.no_grad():
        step = task.loss(module.eval(), batch, seed=5, step=0, total={"samples": 8.0})
    module.train()
    assert step.losses["loss"].isfinite().all()
    assert all(int(of.sum()) == 2 for name, (_, of) in step.figures.items() if name.startswith("loss/t"))
    again = task.held_out(5, 8)
    assert again is not None and torch.equal(again[3]["guidance"], items[3]["guidance"])


def test_a_data_set_without_held_out_clips_has_none(
    data: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prepared("stage1", data, tmp_path / "task")
    reader = task.clips[0].held_out_reader()
    assert len(reader)
    monkeypatch.setattr(task.clips[0], "held_out_reader", lambda: ShardReader(data, split="test"))
    assert task.held_out(0, 4) is None
