"""Folder of a pipeline: it is read completely or not at all, and no code in it is executed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.lmk2video.meta_networks import HollowNetworks
from talkinghead.models.speech.weights import Pretrained
from talkinghead.models.weights import parameter_hash
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.old_layout import age_export
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request

REQUEST = tiny_request(2, 32, 32)
FAST: dict[str, Any] = {"num_inference_steps": 1}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline() -> TalkingHeadPipeline:
    torch.manual_seed(0)
    speech = Audio2Mesh(wav2vec=Pretrained("tiny").wav2vec_config(), hidden=32).eval()
    made = tiny_pipeline(audio2mesh=speech, fps=30.0, width=32, height=32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def saved(pipeline: TalkingHeadPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copied"))


def frames(pipeline: TalkingHeadPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return np.stack(list(pipeline.stream(**REQUEST, **FAST)))


def test_round_trip(pipeline: TalkingHeadPipeline, saved: Path) -> None:
    """Frames, settings and networks for speech are the same after saving; absent parts stay absent."""
    read = TalkingHeadPipeline.from_pretrained(saved)
    # Sums may be rounded differently where tensors begin at other addresses: a grey level, here and there.
    difference = np.abs(frames(read).astype(int) - frames(pipeline))
    assert difference.max() <= 1 and difference.mean() < 0.01
    assert {name: read.config[name] for name in ("compat", "fps", "width", "height")} == {
        "compat": False,
        "fps": 30.0,
        "width": 32,
        "height": 32,
    }
    assert read.audio2pose is None and isinstance(read.audio2mesh, Audio2Mesh)
    assert not any(part.training for part in read.components.values() if isinstance(part, torch.nn.Module))
    options: dict[str, Any] = {"reference_pose_matrix": np.eye(4) - 30 * np.eye(4, k=3) * 0, "width": 8, "height": 8}
    options["reference_pose_matrix"][2, 3] = -30
    samples = np.random.default_rng(0).standard_normal(3200).astype(np.float32)
    mesh = np.zeros((468, 3), np.float32)
    first, second = (made.motion(samples, reference_mesh=mesh, pose="still", **options) for made in (pipeline, read))
    assert len(first) == 5 and np.array_equal(first.landmarks(), second.landmarks())


def test_the_stock_vae_too(tmp_path: Path) -> None:
    stock = tiny_pipeline(vae="tiny-kl")
    stock.save_pretrained(tmp_path)
    read = TalkingHeadPipeline.from_pretrained(tmp_path)
    assert isinstance(read.vae, AutoencoderKL)
    for name, value in stock.vae.state_dict().items():
        assert torch.equal(read.vae.state_dict()[name], value)


def test_parts_and_settings_can_be_given(saved: Path, pipeline: TalkingHeadPipeline) -> None:
    read = TalkingHeadPipeline.from_pretrained(saved, denoiser=pipeline.denoiser, compat=True, audio2mesh=None)
    assert read.denoiser is pipeline.denoiser and read.config["compat"] is True and read.audio2mesh is None
    with pytest.raises(ValueError, match="a pipeline has no unet"):
        TalkingHeadPipeline.from_pretrained(saved, unet=None)


def test_precision(saved: Path) -> None:
    """Networks for speech stay in single precision, also when the pipeline is cast later."""
    read = TalkingHeadPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    for made in (read, read.to(torch.float16, silence_dtype_warnings=True)):
        assert made.audio2mesh is not None and made.audio2mesh.dtype == torch.float32
    assert {read.denoiser.dtype, read.reference_net.dtype, read.pose_guider.dtype} == {torch.float16}


@pytest.mark.parametrize("part", ["denoiser", "reference_net", "pose_guider", "image_encoder", "audio2mesh"])
def test_weights_never_go_missing(copied: Path, part: str) -> None:
    file = next((copied / part).glob("*.safetensors"))
    state = load_file(file)
    first = max(state, key=lambda name: state[name].numel())
    save_file({name: value for name, value in state.items() if name != first}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"(?s){part}.*{first}"):
        TalkingHeadPipeline.from_pretrained(copied)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=part):
        TalkingHeadPipeline.from_pretrained(copied)
    shutil.rmtree(copied / part)
    with pytest.raises(ValueError, match=f"no folder {part}"):
        TalkingHeadPipeline.from_pretrained(copied)


def test_damaged_indexes_are_refused(copied: Path) -> None:
    file = copied / "model_index.json"
    index = json.loads(file.read_text())

    def refused(change: dict[str, Any] | str, words: str) -> None:
        file.write_text(change if isinstance(change, str) else json.dumps(index | change))
        with pytest.raises(ValueError, match=words):
            TalkingHeadPipeline.from_pretrained(copied)

    refused("{", "is not JSON")
    refused({"_class_name": "StableDiffusionPipeline"}, "describes StableDiffusionPipeline; wanted is TalkingHead")
    refused({"denoiser": [None, None]}, "names no denoiser")
    refused({"denoiser": ["talkinghead.models.lmk2video.reference_net", "ReferenceNet"]}, "holds Denoiser, but")
    refused({"scheduler": ["diffusers", "UNet2DConditionModel"]}, "the scheduler UNet2DConditionModel")
    file.unlink()
    with pytest.raises(ValueError, match="no pipeline in"):
        TalkingHeadPipeline.from_pretrained(copied)
    with pytest.raises(ValueError, match="no pipeline in"):
        TalkingHeadPipeline.from_pretrained(copied / "nowhere")


def test_no_module_is_imported_because_a_folder_names_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock loader would import what `model_index.json` says."""
    (copied / "sneaky.py").write_text("raise SystemExit('run')\n")
    monkeypatch.syspath_prepend(str(copied))
    file = copied / "model_index.json"
    index = json.loads(file.read_text()) | {
        "reference_net": ["sneaky", "ReferenceNet"],
        "vae": ["sneaky", "AutoencoderKL"],
    }
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"sneaky\.AutoencoderKL"):
        TalkingHeadPipeline.from_pretrained(copied)
    assert "sneaky" not in sys.modules


def test_a_folder_of_the_old_layout_opens(saved: Path, copied: Path) -> None:
    """Modules have moved and the tiny VAE's class has another name; folders that say the old ones hold the same."""
    age_export(copied)
    new, old = TalkingHeadPipeline.from_pretrained(saved), TalkingHeadPipeline.from_pretrained(copied)
    for part in ("vae", "image_encoder", "reference_net", "denoiser", "pose_guider", "audio2mesh"):
        assert type(old.components[part]) is type(new.components[part])
        assert parameter_hash(old.components[part]) == parameter_hash(new.components[part]), part
    assert [type(part) for part in vars(HollowNetworks.of_folder(copied)).values()] == [
        type(part) for part in vars(HollowNetworks.of_folder(saved)).values()
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 10**9),
        ("height", "512"),
        ("fps", 0),
        ("fps", 1e300),
        ("context_frames", 10**9),
        ("context_frames", True),
        ("compat", "yes"),
        ("distilled", "turbo"),
        ("distilled", ["lcm"]),
    ],
)
def test_settings_that_no_pipeline_has_are_refused(copied: Path, name: str, value: object) -> None:
    file = copied / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=rf"model_index\.json has {name} "):
        TalkingHeadPipeline.from_pretrained(copied)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_timesteps": 10**9},
        {"trained_betas": [0.1] * 200_000},
        {"solver_order": 10**9, "_class_name": "DPMSolverMultistepScheduler"},
        {"beta_start": float("inf")},
        {"beta_schedule": "os.system"},
        {"quantization_config": {"quant_method": "x"}},
        {"num_train_timesteps": "1000"},
    ],
)
def test_schedules_that_fill_the_memory_are_refused(copied: Path, settings: dict[str, Any]) -> None:
    if kind := settings.get("_class_name"):
        index = json.loads((copied / "model_index.json").read_text()) | {"scheduler": ["diffusers", kind]}
        (copied / "model_index.json").write_text(json.dumps(index))
    file = copied / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(ValueError, match="scheduler") as caught:
        TalkingHeadPipeline.from_pretrained(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["DDIMPipeline", "os", "schedulers", "__name__", "SchedulerMixin2Scheduler"])
def test_a_scheduler_is_looked_up_among_schedulers_only(copied: Path, kind: str) -> None:
    file = copied / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scheduler": ["os", kind]}))
    with pytest.raises(ValueError, match=f"names the scheduler {kind}, which diffusers"):
        TalkingHeadPipeline.from_pretrained(copied)
