"""Private names of `diffusers` that the pipeline uses, each in one place: these tests notice when one changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.speech.weights import Pretrained
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import tiny_pipeline

CHANGED = (
    f"diffusers {diffusers.__version__} does this otherwise: see pipelines/talking_head.py and pipelines/memory.py"
)


@pytest.fixture
def pipeline() -> TalkingHeadPipeline:
    speech = Audio2Mesh(wav2vec=Pretrained("tiny").wav2vec_config(), hidden=32).eval()
    return tiny_pipeline(audio2mesh=speech)


def _hook(pipeline: TalkingHeadPipeline, name: str, device: str | None) -> None:
    """Hook as accelerate puts it on a network, from which `diffusers` reads the device."""
    network: Any = getattr(pipeline, name)
    network._hf_hook = SimpleNamespace(execution_device=device)


@pytest.mark.parametrize(
    "name", ["_execution_device", "_optional_components", "_exclude_from_cpu_offload", "model_cpu_offload_seq"]
)
def test_names_that_the_base_class_has(name: str) -> None:
    assert hasattr(DiffusionPipeline, name), f"no DiffusionPipeline.{name}: {CHANGED}"


def test_the_device_is_that_of_hooks_where_there_are_some(pipeline: TalkingHeadPipeline) -> None:
    assert pipeline.compute_device == torch.device("cpu"), CHANGED
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            _hook(pipeline, name, "meta")
    assert pipeline.compute_device == torch.device("meta"), CHANGED


def test_networks_for_speech_are_not_asked_for_the_device(pipeline: TalkingHeadPipeline) -> None:
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            _hook(pipeline, name, "meta" if name == "audio2mesh" else None)
    assert pipeline.compute_device == torch.device("cpu"), CHANGED


def test_networks_for_speech_are_parts_that_may_be_missing(pipeline: TalkingHeadPipeline) -> None:
    parts = {
        "vae",
        "image_encoder",
        "reference_net",
        "denoiser",
        "pose_guider",
        "scheduler",
        "audio2mesh",
        "audio2pose",
    }
    assert pipeline.components.keys() == parts, CHANGED
    assert pipeline.components["audio2pose"] is None


def test_a_folder_names_no_place_of_this_machine(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "first")
    pipeline = TalkingHeadPipeline.from_pretrained(tmp_path / "first")
    pipeline.save_pretrained(tmp_path / "second")
    assert pipeline.name_or_path == str(tmp_path / "first")
    texts = [path.read_text() for path in (tmp_path / "second").rglob("*.json")]
    assert texts and not any(str(tmp_path) in text for text in texts)
    assert TalkingHeadPipeline.from_pretrained(tmp_path / "second").name_or_path == str(tmp_path / "second")


def test_the_folder_is_kept_as_name(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    assert TalkingHeadPipeline.from_pretrained(tmp_path).name_or_path == str(tmp_path), CHANGED
