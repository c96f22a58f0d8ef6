"""What users of `diffusers` try on a pipeline: precision, slices and tiles of the VAE, offloading, callbacks."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers.callbacks import PipelineCallback

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.speech.weights import Pretrained
from talkinghead.pipelines import memory
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request

FAST: dict[str, Any] = {"num_inference_steps": 2, "context_frames": 3, "context_overlap": 1}
REQUEST = tiny_request(4, 64, 64)


def quiet(**settings: Any) -> TalkingHeadPipeline:
    made = tiny_pipeline(**settings)
    made.set_progress_bar_config(disable=True)
    return made


def shown(pipeline: TalkingHeadPipeline) -> np.ndarray:
    return np.stack(list(pipeline.stream(**REQUEST, **FAST))).astype(int)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pipeline that also has a network for speech, the first of its parts by name."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    tiny_pipeline(audio2mesh=Audio2Mesh(wav2vec=Pretrained("tiny").wav2vec_config(), hidden=32).eval()).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_by_both_names(saved: Path, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = TalkingHeadPipeline.from_pretrained(saved, dtype=dtype)
    with pytest.warns(FutureWarning, match="torch_dtype is now called dtype"):
        old = TalkingHeadPipeline.from_pretrained(saved, torch_dtype=dtype)
    for made in (new, old):
        assert made.dtype == dtype, "not that of the network for speech"
        assert made.audio2mesh is not None and made.audio2mesh.dtype == torch.float32
        networks = (made.vae, made.image_encoder, made.reference_net, made.denoiser, made.pose_guider)
        assert {network.dtype for network in networks} == {dtype}
    assert TalkingHeadPipeline.from_pretrained(saved).dtype == torch.float32
    with pytest.raises(ValueError, match="give dtype or torch_dtype, not both"):
        TalkingHeadPipeline.from_pretrained(saved, dtype=dtype, torch_dtype=dtype)
    wrong: Any
    for wrong in ("float16", torch.int8, {"denoiser": dtype}):
        with pytest.raises(ValueError, match=r"dtype must be a floating-point torch\.dtype"):
            TalkingHeadPipeline.from_pretrained(saved, dtype=wrong)


def test_device_precision_and_parts(saved: Path) -> None:
    read = TalkingHeadPipeline.from_pretrained(saved)
    assert read.to("cpu") is read and read.to(torch.bfloat16) is read
    assert read.device == torch.device("cpu") and read.dtype == torch.bfloat16
    assert read.to("cpu", torch.float16).dtype == torch.float16
    assert read.to(dtype=torch.float32, device="cpu").dtype == torch.float32
    again = TalkingHeadPipeline(**read.components)
    assert all(again.components[name] is part for name, part in read.components.items())


def test_half_precision_that_was_saved_is_read_as_it_was_rounded(saved: Path, tmp_path: Path) -> None:
    half = TalkingHeadPipeline.from_pretrained(saved, dtype=torch.float16)
    half.save_pretrained(tmp_path)
    for dtype in (None, torch.float16):
        read = TalkingHeadPipeline.from_pretrained(tmp_path, dtype=dtype)
        assert read.dtype == (dtype or torch.float32)
        for name, value in half.denoiser.state_dict().items():
            assert torch.equal(read.denoiser.state_dict()[name], value.to(read.dtype)), name


def test_slices_of_the_vae_give_the_same_frames() -> None:
    pipeline = quiet(vae="tiny-kl")
    frames, sizes = shown(pipeline), []
    pipeline.vae.decoder.register_forward_pre_hook(lambda _module, given: sizes.append(len(given[0])))  # pyright: ignore
    pipeline.enable_vae_slicing()
    assert np.abs(shown(pipeline) - frames).max() <= 1 and set(sizes) == {1}
    sizes.clear()
    pipeline.disable_vae_slicing()
    assert np.array_equal(shown(pipeline), frames) and max(sizes) > 1


def test_tiles_of_the_vae_change_large_frames_only() -> None:
    pipeline = quiet(vae="tiny-kl")
    frames = shown(pipeline)
    vae: Any = pipeline.vae
    pipeline.enable_vae_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 64, 8
    assert np.array_equal(shown(pipeline), frames), "frames of a tile's size"
    vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 4
    tiled = shown(pipeline)
    assert tiled.shape == frames.shape and not np.array_equal(tiled, frames)
    pipeline.disable_vae_tiling()
    assert np.array_equal(shown(pipeline), frames)


def test_a_vae_that_cannot_says_so() -> None:
    pipeline = tiny_pipeline()
    with pytest.raises(NotImplementedError, match=r"Slicing .* CosineVae"):
        pipeline.enable_vae_slicing()
    with pytest.raises(NotImplementedError, match=r"Tiling .* CosineVae"):
        pipeline.enable_vae_tiling()


class Residents:
    """Networks that accelerate's hooks hold on the device, by their names, at each call of one of them.

    Here the device is the CPU, on which nothing moves; so hooks are watched, not memory.
    """

    def __init__(self, pipeline: TalkingHeadPipeline, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, frozenset[str]]] = []
        self._names = {
            id(part): name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)
        }
        self._there: set[str] = set()
        forward = CpuOffload.pre_forward

        def pre_forward(hook: Any, module: Any, *args: Any, **options: Any) -> Any:
            if hook.prev_module_hook is not None:
                self._there.discard(self._names[id(hook.prev_module_hook.model)])
            self._there.add(self._names[id(module)])
            self.seen.append((self._names[id(module)], frozenset(self._there)))
            return forward(hook, module, *args, **options)

        def init_hook(_hook: Any, module: Any) -> Any:
            self._there.discard(self._names[id(module)])
            return module

        patch.setattr(CpuOffload, "pre_forward", pre_forward)
        patch.setattr(CpuOffload, "init_hook", init_hook)


@pytest.mark.parametrize("vae", ["tiny-kl", "tiny"])
def test_offloading_shows_the_same_frames(vae: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that only look at the portrait leave the device before frames are sampled, and nothing moves then."""
    pipeline = quiet(vae=vae)
    frames = shown(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")
    residents = Residents(pipeline, monkeypatch)
    for _ in range(2):  # a call leaves the hooks as they were
        residents.seen.clear()
        assert np.array_equal(shown(pipeline), frames)
        first = next(at for at, (name, _) in enumerate(residents.seen) if name == "denoiser")
        looking, sampling = residents.seen[:first], residents.seen[first:]
        assert {"image_encoder", "reference_net"} <= {name for name, _ in looking}
        assert all("denoiser" not in there for _, there in looking)
        # From the first denoiser on: only what samples and decodes, and none of these is sent away for another.
        assert all(not there & {"image_encoder", "reference_net"} for _, there in sampling)
        assert all(before <= after for (_, before), (_, after) in itertools.pairwise(sampling))
        with_weights = {"vae"} if vae == "tiny-kl" else set()
        assert sampling[-1][1] == {"denoiser", "pose_guider"} | with_weights
    pipeline.remove_all_hooks()
    assert not any(hasattr(part, "_hf_hook") for part in pipeline.components.values())
    assert np.array_equal(shown(pipeline), frames)


def test_offloading_that_cannot_be_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_pipeline()
    with pytest.raises(ValueError, match=r"enable_sequential_cpu_offload does not fit.*enable_model_cpu_offload\(\)"):
        pipeline.enable_sequential_cpu_offload()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a GPU, and there is none"):
            pipeline.enable_model_cpu_offload()
    with pytest.raises(ValueError, match="gpu_id"):
        pipeline.enable_model_cpu_offload(gpu_id=1, device="cuda:0")
    monkeypatch.setattr(memory, "is_accelerate_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install -c constraints\.txt '\.\[offload\]'") as caught:
        pipeline.enable_model_cpu_offload(device="cpu")
    assert "\n" not in str(caught.value)
    assert not any(hasattr(part, "_hf_hook") for part in pipeline.components.values())


class Halving(PipelineCallback):
    """A callback of `diffusers`' own kind, which names its tensors itself."""

    tensor_inputs = ["latents"]  # noqa: RUF012  as in the base class

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
        return {"latents": callback_kwargs["latents"] * (0.0 if step_index == 1 else 1.0)}


def test_callbacks_of_diffusers() -> None:
    pipeline = quiet()
    found = pipeline(**REQUEST, **FAST, callback_on_step_end=Halving(), output_type="latent")
    assert not found.frames.any()  # pyright: ignore[reportAttributeAccessIssue]
    other = Halving()
    other.tensor_inputs = ["prompt_embeds"]
    with pytest.raises(ValueError, match="callbacks can be given latents, not 'prompt_embeds'"):
        pipeline.stream(**REQUEST, callback_on_step_end=other)
    (frames,) = pipeline(**REQUEST, **FAST, callback_on_step_end_tensor_inputs=["latents"], return_dict=False)  # pyright: ignore
    assert len(frames) == 4
