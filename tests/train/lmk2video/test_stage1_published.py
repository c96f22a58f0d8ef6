"""Fine-tuning from a published PoseGuider: stage 1 that begins with it is at first what the weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infer.__main__ import main
from talkinghead.files.storage import Storage
from talkinghead.models.lmk2video import published as lmk2video_published
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import PoseGuiderMode
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.sizes import denoiser_config, pose_guider_config, reference_net_config
from talkinghead.models.noise_schedule import PAPER
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.face_clips import build_face_data
from tests.support.lmk2video_tasks import batch_of, prepared
from tests.support.lmk2video_trainings import begun, small_recipe
from tests.support.published_files import published_tensors
from tests.support.tiny_pipeline import published_guider, tiny_pipeline
from tests.support.training import losses_of
from train.lmk2video.module import Lmk2Video
from train.trainer.backward import only

CPU = torch.device("cpu")
QUICK = {"validation_frames": 3, "validation_steps": 1, "validation_guidance": 1.0}
"""Settings of a validation of a few frames."""
SIZE: dict[str, Any] = {"width": 128, "height": 64}
"""Smallest images that these weights can normalise: two positions at the coarsest scale."""
MODES = ("published", "trained", "running")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_face_data(tmp_path_factory.mktemp("faces") / "data")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as AniPortrait's, of small networks. Not to be changed."""
    source = tiny_pipeline(vae="tiny-kl", pose_guider=published_guider())
    folder = tmp_path_factory.mktemp("published") / "pretrained_model"
    folder.mkdir()
    for name, model in (
        ("denoising_unet", source.denoiser),
        ("motion_module", source.denoiser),
        ("reference_unet", source.reference_net),
        ("pose_guider", source.pose_guider),
    ):
        torch.save(published_tensors(model, motion=name == "motion_module"), folder / f"{name}.pth")
    source.vae.save_pretrained(folder / "sd-vae-ft-mse")
    source.image_encoder.save_pretrained(folder / "image_encoder")
    return folder.parent


@pytest.fixture
def converted(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that converts the files by the command, with a mode of the PoseGuider."""
    # The loaders of published files, for networks of this size.
    monkeypatch.setattr(
        lmk2video_published, "Denoiser", lambda motion: Denoiser(**denoiser_config("tiny", motion=motion))
    )
    monkeypatch.setattr(lmk2video_published, "ReferenceNet", lambda: ReferenceNet(**reference_net_config("tiny")))
    monkeypatch.setattr(
        lmk2video_published, "PoseGuider", lambda **config: PoseGuider(**(pose_guider_config("tiny") | config))
    )

    def convert(mode: PoseGuiderMode) -> Path:
        out = tmp_path / f"converted-{mode}"
        arguments = ["convert", "--lmk2video", str(published), "--output", str(out), "--pose-guider-mode", mode]
        assert main(arguments) == 0
        return out

    return convert


def own_export(data: Storage, folder: Path) -> Path:
    """What a stage 1 of ours exports, with weights that all matter."""
    tiny_pipeline(motion=False, **SIZE).save_pretrained(folder / "pretrained_model")
    return folder


def validated(trainer: Any, weights: Path, folder: Path) -> dict[str, float]:
    folder.mkdir()
    return trainer.task.validate(weights, folder, CPU)


def first_export(trainer: Any, folder: Path) -> Path:
    """Weights that a validation before the first step gets."""
    folder.mkdir()
    trainer.export(folder)
    return folder


@pytest.mark.parametrize("kind", ["published", "own"])
def test_its_first_validation_is_that_of_the_weights(kind: str, converted: Any, data: Storage, tmp_path: Path) -> None:
    """The same numbers: of the same tensors, computed in the same way."""
    init = converted("published") if kind == "published" else own_export(data, tmp_path / "own")
    weights = init if kind == "published" else init / "pretrained_model"
    chosen = small_recipe("stage1", SIZE | QUICK | {"init": str(init)})
    trainer = begun(tmp_path / "run", "stage1", chosen, data.uri)
    exported = first_export(trainer, tmp_path / "export")
    given, found = (TalkingHeadPipeline.from_pretrained(folder) for folder in (weights, exported))
    for name in ("denoiser", "reference_net", "pose_guider", "vae", "image_encoder"):
        theirs, ours = (getattr(pipeline, name).state_dict() for pipeline in (given, found))
        spatial = {key: value for key, value in theirs.items() if ".motion_modules." not in key}
        assert ours.keys() == spatial.keys()
        assert all(torch.equal(value, spatial[key]) for key, value in ours.items()), name
    assert found.pose_guider.config["normalisation"] == given.pose_guider.config["normalisation"]
    if kind == "own":
        numbers = validated(trainer, weights, tmp_path / "a")
    else:
        # Published weights have motion modules, which belong to stage 2, and the schedule of the published program:
        # the same networks without them, in the schedule of the training.
        still = tiny_pipeline(motion=False, vae="tiny-kl").denoiser
        still.load_spatial(given.denoiser.state_dict())
        others = {name: getattr(given, name) for name in ("vae", "image_encoder", "reference_net", "pose_guider")}
        TalkingHeadPipeline(**others, denoiser=still, scheduler=PAPER.sampler("ddim"), **SIZE).save_pretrained(
            tmp_path / "plain"
        )
        numbers = validated(trainer, tmp_path / "plain", tmp_path / "a")
    assert validated(trainer, exported, tmp_path / "b") == numbers
    assert numbers["held-out/psnr"] > 0
    trainer.close()


@pytest.mark.parametrize("mode", MODES)
def test_it_learns_and_its_statistics_follow(
    mode: PoseGuiderMode, converted: Any, data: Storage, tmp_path: Path
) -> None:
    """Two steps: all that stage 1 trains moves, and running statistics once a step, on which validation may rest."""
    chosen = small_recipe("stage1", SIZE | QUICK | {"init": str(converted(mode))})
    trainer = begun(tmp_path / "run", "stage1", chosen, data.uri)
    assert isinstance(trainer.module, Lmk2Video)
    guider = trainer.module.pose_guider
    before = {name: value.clone() for name, value in guider.state_dict().items()}
    trainer.fit()
    after = guider.state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    # The bias before a BatchNorm is taken away again.
    assert all("conv_layers" in name and name.endswith("bias") for name in same), same
    counters = {int(value) for name, value in after.items() if name.endswith("num_batches_tracked")}
    assert counters == {2}
    averages = {name for name in trainer.ema.average if name.endswith("running_var")}
    assert averages and all(bool((trainer.ema.average[name] > 0).all()) for name in averages)
    exported = first_export(trainer, tmp_path / "export")
    settings = json.loads((exported / "pose_guider" / "config.json").read_text())
    assert (settings["normalisation"], settings["reference_attention"]) == (mode, False)
    assert validated(trainer, exported, tmp_path / "validation")["held-out/psnr"] > 0
    trainer.close()


def test_a_samples_loss_is_its_own(converted: Any, data: Storage, tmp_path: Path) -> None:
    """Published weights normalise over the frames of a call: each sample is a call of its own."""
    task = prepared("stage1", data, tmp_path / "task", init=str(converted("published")), **SIZE)
    module, batch = task.build().train(), batch_of(task, 3)
    whole = losses_of(task, module, batch)["loss"]
    for row in range(3):
        alone = losses_of(task, module, only(batch, row))["loss"]
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-6)


def test_images_without_a_variance_are_one_line(converted: Any, data: Storage, tmp_path: Path) -> None:
    """A larger microbatch, which BatchNorm asks for elsewhere, would not help here."""
    chosen = small_recipe("stage1", {"width": 64, "height": 64, "init": str(converted("trained"))})
    trainer = begun(tmp_path / "run", "stage1", chosen, data.uri)
    with pytest.raises(ValueError, match=r"64x64 pixels has a single position .*: take images wider or higher than 64"):
        trainer.fit()
    trainer.close()


@pytest.mark.parametrize("option", [{"strategy": "fsdp2"}, {"compile": True}])
def test_what_no_test_covers_is_refused(option: dict[str, Any], converted: Any, data: Storage, tmp_path: Path) -> None:
    chosen = small_recipe("stage1", SIZE | {"init": str(converted("published"))}, **option)
    with pytest.raises(ValueError, match=r"with BatchNorm or spectral normalisation cannot be (sharded|compiled)"):
        begun(tmp_path / "run", "stage1", chosen, data.uri)
