"""Weights to begin with that are no pipeline, or one whose parts do not go together: one line, before a run exists."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from talkinghead.files.storage import Storage
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.sizes import pose_guider_config, reference_net_config
from tests.support.face_clips import build_face_data
from tests.support.lmk2video_tasks import prepared
from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return build_face_data(tmp_path_factory.mktemp("faces") / "data")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with motion modules. Not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "pretrained_model"
    tiny_pipeline(width=32, height=32).save_pretrained(folder)
    return folder


def swap(folder: Path) -> None:
    shutil.rmtree(folder / "denoiser")
    shutil.copytree(folder / "reference_net", folder / "denoiser")


def put(folder: Path, name: str, network: PoseGuider | ReferenceNet) -> None:
    shutil.rmtree(folder / name)
    network.save_pretrained(folder / name)


def other_guider(folder: Path) -> None:
    settings: dict[str, Any] = pose_guider_config("tiny") | {"block_out_channels": (32, 64, 64, 128)}
    put(folder, "pose_guider", PoseGuider(**settings))


def other_reference(folder: Path) -> None:
    settings: dict[str, Any] = reference_net_config("tiny") | {"in_channels": 16, "layers_per_block": 2}
    put(folder, "reference_net", ReferenceNet(**settings))


def other_image_encoder(folder: Path) -> None:
    known = CLIPVisionConfig.from_pretrained(folder / "image_encoder")
    known.projection_dim = 48
    shutil.rmtree(folder / "image_encoder")
    CLIPVisionModelWithProjection(known).save_pretrained(folder / "image_encoder")


def other_family(folder: Path) -> None:
    """What a training of speech exports: `config.json` and weights, and no index."""
    shutil.copytree(folder / "denoiser", folder.parent / "other")
    shutil.rmtree(folder)
    (folder.parent / "other").rename(folder)
    (folder / "config.json").write_text(json.dumps({"_class_name": "Audio2Mesh"}))


def other_pipeline(folder: Path) -> None:
    """A pipeline of diffusers, with networks of other names."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for name in ("denoiser", "reference_net", "pose_guider"):
        shutil.rmtree(folder / name)


@pytest.mark.parametrize("name", ["stage1", "stage2"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_family, r"there are no weights of Lmk2Video in"),
        (other_pipeline, r"Denoiser"),
        (swap, r"Denoiser|denoiser"),
        (other_guider, r"PoseGuider does not go with the denoiser: its block_out_channels is \[32, 64, 64, 128\]"),
        (other_image_encoder, r"do not go together: the image encoder makes 48 numbers of an image, and the denoiser"),
        (other_reference, r"reference network does not go with the denoiser: its layers_per_block is 2"),
    ],
)
def test_what_is_no_whole_pipeline_is_one_line(
    name: str, spoil: Callable[[Path], None], words: str, data: Storage, exported: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "given" / "pretrained_model"))
    spoil(folder)
    with pytest.raises(ValueError, match=words) as error:
        prepared(name, data, tmp_path / "task", init=str(folder))
    assert "\n" not in str(error.value), error.value
