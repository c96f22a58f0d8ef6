"""Pipeline as users call it: videos of any length, frame after frame, equal for equal arguments."""

from __future__ import annotations

import logging
from typing import Any, get_args

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

from talkinghead.models.noise_schedule import PAPER, Sampler
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request

FRAMES = 5
FAST: dict[str, Any] = {"num_inference_steps": 2, "context_frames": 3, "context_overlap": 1}
REQUEST = tiny_request(FRAMES, 32, 32)


@pytest.fixture(scope="module")
def pipeline() -> TalkingHeadPipeline:
    made = tiny_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def frames(pipeline: TalkingHeadPipeline) -> np.ndarray:
    return np.stack(list(pipeline.stream(**REQUEST, **FAST)))


def test_frames(frames: np.ndarray) -> None:
    assert frames.shape == (FRAMES, 32, 32, 3) and frames.dtype == np.uint8
    assert len(np.unique(frames)) > 50 and len({frame.tobytes() for frame in frames}) == FRAMES


def test_same_arguments_same_frames(pipeline: TalkingHeadPipeline, frames: np.ndarray) -> None:
    """Frames depend on the arguments and on nothing else, such as the state of a generator."""
    torch.rand(7)
    assert np.array_equal(np.stack(list(pipeline.stream(**REQUEST, **FAST))), frames)


def test_every_argument_matters(pipeline: TalkingHeadPipeline) -> None:
    request = REQUEST | {"landmarks": REQUEST["landmarks"][:1], "num_inference_steps": 1}
    moved = tiny_request(12, 32, 32)["landmarks"][6:7]
    others: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"guidance_scale": 1.5},
        {"num_inference_steps": 2},
        {"landmarks": moved},
        {"reference": REQUEST["reference"][::-1]},
        {"reference_landmarks": moved[0]},
        {"generator": torch.Generator().manual_seed(3)},
        {"generator": torch.Generator().manual_seed(3)},
    ]
    found = [next(pipeline.stream(**(request | other))).tobytes() for other in others]
    assert len(set(found)) == len(others) - 1 and found[-1] == found[-2]


def test_call_gives_what_stream_gives(pipeline: TalkingHeadPipeline, frames: np.ndarray) -> None:
    images = pipeline(**REQUEST, **FAST).frames  # pyright: ignore[reportAttributeAccessIssue]
    assert all(isinstance(image, PIL.Image.Image) for image in images)
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), frames)
    for kind, axes in (("np", (0, 1, 2, 3)), ("pt", (0, 2, 3, 1))):
        (values,) = pipeline(**REQUEST, **FAST, output_type=kind, return_dict=False)  # pyright: ignore[reportArgumentType]
        values = np.asarray(values)
        assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 1
        assert np.abs(values.transpose(axes) * 255 - frames).max() <= 0.5 + 1e-4


def test_latents_go_out_and_come_in(pipeline: TalkingHeadPipeline) -> None:
    """Output `latent` gives the latents that are decoded otherwise; with given noise no seed matters."""
    latents = pipeline(**REQUEST, **FAST, output_type="latent").frames  # pyright: ignore[reportAttributeAccessIssue]
    assert latents.shape == (FRAMES, 16, 8, 8) and latents.dtype == torch.float32
    noise = torch.randn(FRAMES, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    results = [
        pipeline(**REQUEST, **FAST, output_type="latent", latents=noise, seed=seed).frames  # pyright: ignore[reportAttributeAccessIssue]
        for seed in (0, 1)
    ]
    assert torch.equal(*results) and not torch.equal(results[0], latents)


def test_a_longer_video_begins_alike(pipeline: TalkingHeadPipeline) -> None:
    """Noise and windows of the first frames do not depend on frames after the wavefront: one step, one window."""
    long = tiny_request(7, 32, 32)
    short: dict[str, Any] = long | {"landmarks": long["landmarks"][:5]}
    options: dict[str, Any] = FAST | {"num_inference_steps": 1}
    first, second = (np.stack(list(pipeline.stream(**request, **options))) for request in (short, long))
    assert np.array_equal(first[:2], second[:2])


def test_frames_come_before_the_video_is_done(pipeline: TalkingHeadPipeline) -> None:
    reported: list[tuple[str, int, int]] = []
    request: dict[str, Any] = tiny_request(9, 32, 32)
    stream = pipeline.stream(**request, **FAST, progress=lambda *step: reported.append(step))
    assert not reported, "nothing is computed before the first frame is requested"
    next(stream)
    assert reported[-1][1] < reported[-1][2]
    assert len(list(stream)) == 8
    windows = 4
    assert reported == [("video", done, 2 * windows) for done in range(1, 2 * windows + 1)]


@pytest.mark.parametrize("sampler", [name for name in get_args(Sampler) if name != "ddim"])
def test_another_sampler(pipeline: TalkingHeadPipeline, frames: np.ndarray, sampler: Sampler) -> None:
    other = TalkingHeadPipeline(**(pipeline.components | {"scheduler": PAPER.sampler(sampler)}))
    other.set_progress_bar_config(disable=True)
    found = np.stack(list(other.stream(**REQUEST, **FAST)))
    assert found.shape == frames.shape and not np.array_equal(found, frames)


def test_without_motion_modules_no_frame_is_computed_twice() -> None:
    """Without motion modules (stage 1) windows need not overlap, and grouping of frames changes only rounding."""
    still = tiny_pipeline(False)
    still.set_progress_bar_config(disable=True)
    reported: list[int] = []
    results = [
        still(
            **REQUEST,
            num_inference_steps=2,
            context_frames=size,
            context_overlap=2,
            output_type="np",
            progress=lambda *at: reported.append(at[2]),
        )
        for size in (4, 5)
    ]
    assert set(reported) == {2 * 2, 2}
    first, second = (result.frames for result in results)  # pyright: ignore[reportAttributeAccessIssue]
    assert np.abs(first - second).max() < 1e-3


def test_any_size_that_networks_take(pipeline: TalkingHeadPipeline) -> None:
    wide: dict[str, Any] = tiny_request(1, 64, 32) | {"num_inference_steps": 1}
    fast: dict[str, Any] = {"context_frames": 1, "context_overlap": 0}
    assert next(pipeline.stream(**wide, **fast)).shape == (32, 64, 3)
    assert next(pipeline.stream(**wide, **fast, width=32, height=64)).shape == (64, 32, 3)
    trained = tiny_pipeline(width=32, height=32)
    trained.set_progress_bar_config(disable=True)
    assert next(trained.stream(**wide, **fast)).shape == (32, 32, 3)
    stock = tiny_pipeline(vae="tiny-kl")
    stock.set_progress_bar_config(disable=True)
    assert next(stock.stream(**tiny_request(1), **fast, num_inference_steps=1)).shape == (64, 64, 3)
    # Latents of 15 x 9 and of 9 x 5, which cannot be halved evenly.
    uneven: dict[str, Any] = {"num_inference_steps": 1, "context_frames": 2, "context_overlap": 1}
    assert next(pipeline.stream(**tiny_request(3, 60, 36), **uneven)).shape == (36, 60, 3)
    assert next(stock.stream(**tiny_request(3, 72, 40), **uneven)).shape == (40, 72, 3)


def test_callbacks(pipeline: TalkingHeadPipeline) -> None:
    reported: list[tuple[int, int, range, Any]] = []

    def callback(owner: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        reported.append((step, int(timestep), owner.current_frames, tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipeline(**REQUEST, **FAST, callback_on_step_end=callback, output_type="latent").frames  # pyright: ignore[reportAttributeAccessIssue]
    assert not latents.any()
    assert {(step, time) for step, time, _, _ in reported} == {(0, 999), (1, 499)}
    for step in (0, 1):
        assert sorted(frame for at, _, frames, _ in reported if at == step for frame in frames) == list(range(FRAMES))
    assert all(shape == (len(frames), 16, 8, 8) for _, _, frames, shape in reported)


def test_a_callback_must_return_what_fits(pipeline: TalkingHeadPipeline) -> None:
    def shorter(_owner: Any, _step: int, _time: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"][:0]}

    def halved(_owner: Any, _step: int, _time: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"].half()}

    with pytest.raises(ValueError, match=r"callback_on_step_end must return latents \[\d, 16, 8, 8\], not \[0, 16"):
        next(pipeline.stream(**REQUEST, **FAST, callback_on_step_end=shorter))
    latents = pipeline(**REQUEST, **FAST, callback_on_step_end=halved, output_type="latent").frames  # pyright: ignore[reportAttributeAccessIssue]
    assert latents.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "shape"), [("pil", (0,)), ("np", (0, 32, 32, 3)), ("pt", (0, 3, 32, 32)), ("latent", (0, 16, 8, 8))]
)
def test_interruption_before_the_first_frame(pipeline: TalkingHeadPipeline, kind: Any, shape: tuple[int, ...]) -> None:
    def stop(owner: Any, *_: Any) -> None:
        owner._interrupt = True

    found = pipeline(**REQUEST, **FAST, callback_on_step_end=stop, output_type=kind).frames  # pyright: ignore[reportAttributeAccessIssue]
    assert np.shape(found) == shape


def test_interruption_ends_the_frames(pipeline: TalkingHeadPipeline) -> None:
    def callback(owner: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> None:
        owner._interrupt = owner.current_frames.start >= 5

    request: dict[str, Any] = tiny_request(9, 32, 32)
    frames = list(pipeline.stream(**request, **FAST, callback_on_step_end=callback))
    assert len(frames) < 9 and pipeline.interrupt
    next(pipeline.stream(**request, **FAST))
    assert not pipeline.interrupt, "the next call is not concerned"


def test_runs_do_not_disturb_each_other(pipeline: TalkingHeadPipeline, frames: np.ndarray) -> None:
    longer: dict[str, Any] = FAST | {"num_inference_steps": 3}
    other = pipeline.stream(**REQUEST, **longer)
    next(other)
    assert np.array_equal(np.stack(list(pipeline.stream(**REQUEST, **FAST))), frames)
    assert len(list(other)) == FRAMES - 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 101}, r"must be multiples of \d+; the nearest width is \d+ or 1\d\d"),
        ({"reference": np.zeros((32, 32, 4), np.uint8)}, r"RGB uint8 \[H, W, 3\], not uint8 \[32, 32, 4\]"),
        ({"reference": np.zeros((32, 32, 3))}, "not float64"),
        ({"landmarks": np.zeros((3, 68, 2))}, r"468 or more, 2 or 3\], not \[3, 68, 2\]"),
        ({"landmarks": np.zeros((0, 468, 2))}, r"not \[0, 468, 2\]"),
        ({"landmarks": np.zeros((3, 468, 2), int)}, "float array"),
        ({"landmarks": np.where(np.arange(9)[:, None, None] == 4, np.nan, np.zeros((9, 468, 2)))}, "first in frame 4"),
        ({"reference_landmarks": None}, "give reference_landmarks"),
        ({"reference_landmarks": np.full((468, 2), np.nan)}, "no face was found in the reference"),
        ({"landmarks": np.full((3, 468, 2), 300.0)}, "landmarks are far outside of the image: give them divided by"),
        ({"reference": np.zeros((0, 32, 3), np.uint8)}, "no pixels"),
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"height": 32.0}, "height must be a whole number, not 32.0"),
        ({"seed": None}, "seed must be a whole number, not None"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number, not 2.5"),
        ({"context_frames": 0}, "context_frames must be at least 1"),
        ({"guidance_scale": "3"}, "guidance_scale must be a number, not '3'"),
        ({"generator": [torch.Generator()]}, "one torch.Generator"),
        ({"latents": np.zeros((5, 16, 8, 8))}, "latents must be a tensor, not ndarray"),
        ({"latents": torch.full((5, 16, 8, 8), torch.nan)}, "latents hold values that are not finite"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"num_inference_steps": 1001}, "at most 1000"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"context_frames": 33, "landmarks": np.zeros((40, 468, 2))}, "context_frames must be at most 32"),
        ({"context_overlap": 3}, "context_overlap"),
        ({"decode_chunk_size": 0}, "decode_chunk_size"),
        ({"latents": torch.zeros(4, 16, 8, 8)}, r"latents must be \[5, 16, 8, 8\], not \[4, 16, 8, 8\]"),
        ({"callback_on_step_end_tensor_inputs": ("noise",)}, "can be given latents"),
    ],
)
def test_refused(pipeline: TalkingHeadPipeline, change: dict[str, Any], words: str) -> None:
    """Requests are refused before anything is computed, and the error says what would fit."""
    with pytest.raises(ValueError, match=words):
        pipeline.stream(**(REQUEST | FAST | change))


def test_numpys_integers_are_the_same_seeds(pipeline: TalkingHeadPipeline, frames: np.ndarray) -> None:
    assert np.array_equal(np.stack(list(pipeline.stream(**REQUEST, **FAST, seed=np.int64(0)))), frames)


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        (EulerAncestralDiscreteScheduler, {}),
        (DDPMScheduler, {}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_samplers_that_add_noise_draw_it_by_the_seed(
    pipeline: TalkingHeadPipeline, sampler: Any, settings: dict[str, Any]
) -> None:
    """Noise of the steps comes from the seed and not from the global state."""
    other = TalkingHeadPipeline(
        **(pipeline.components | {"scheduler": sampler.from_config(PAPER.sampler().config, **settings)})
    )
    other.set_progress_bar_config(disable=True)
    results = []
    for state, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(state)
        noise = torch.zeros(FRAMES, 16, 8, 8)
        results.append(np.stack(list(other.stream(**REQUEST, **FAST, latents=noise, seed=seed))))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2]), "the seed is also that of the noise in between"


def test_half_precision_comes_without_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Warnings of diffusers that a CPU cannot compute in it (which is wrong), and against `to`, do not appear."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        tiny_pipeline().to(torch.float16).to("cpu")
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_a_scheduler_that_does_not_fit_is_refused(pipeline: TalkingHeadPipeline) -> None:
    for scheduler, words in [
        (FlowMatchEulerDiscreteScheduler.from_config(PAPER.sampler().config), "no setting beta_start"),
        (HeunDiscreteScheduler.from_config(PAPER.sampler().config), "no setting rescale_betas_zero_snr"),
        (CogVideoXDDIMScheduler.from_config(PAPER.sampler().config), "fit the networks. Its noise"),
        (DDIMScheduler(), "prediction_type"),
        (EulerDiscreteScheduler.from_config(PAPER.sampler().config, beta_schedule="linear"), "beta_schedule 'linear'"),
    ]:
        other = TalkingHeadPipeline(**(pipeline.components | {"scheduler": scheduler}))
        with pytest.raises(ValueError, match=words):
            other.stream(**REQUEST)
    with pytest.raises(ValueError, match="output_type must be one of pil, np, pt, latent"):
        pipeline(**REQUEST, output_type="gif")  # pyright: ignore[reportArgumentType]


def test_motion_needs_its_networks(pipeline: TalkingHeadPipeline) -> None:
    with pytest.raises(ValueError, match="Audio2Mesh"):
        pipeline.motion(np.zeros(640, np.float32), reference_mesh=None, reference_pose_matrix=None, width=1, height=1)
