"""Cost model: it counts what the pipeline does, and agrees with what is known about the published program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from talkinghead.models.lmk2video.cost import VideoShape, published_cost, video_cost
from talkinghead.models.lmk2video.meta_networks import NETWORKS, HollowNetworks
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.meter import measure_cost
from talkinghead.pipelines.lmk2video.context_windows import open_windows, published_windows
from tests.support.lmk2video_networks import small_guider
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request


def _hollow(pipeline: object) -> HollowNetworks:
    configs = {name: dict(getattr(pipeline, name).config) for name in NETWORKS if name != "image_encoder"}
    clip = pipeline.image_encoder.config.to_dict()  # pyright: ignore[reportAttributeAccessIssue]
    vae = type(pipeline.vae).__name__  # pyright: ignore[reportAttributeAccessIssue]
    return HollowNetworks.described(configs | {"image_encoder": clip, "vae": configs["vae"] | {"_class_name": vae}})


@pytest.mark.parametrize(("vae", "guidance", "frames", "steps"), [("tiny", 3.5, 18, 1), ("tiny-kl", 1.0, 5, 2)])
def test_counts_exactly_what_the_pipeline_computes(vae: str, guidance: float, frames: int, steps: int) -> None:
    pipeline = tiny_pipeline(vae=vae)
    pipeline.set_progress_bar_config(disable=True)
    request = tiny_request(frames)
    # The counter does not know the CPU's own attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pipeline(**request, num_inference_steps=steps, guidance_scale=guidance, decode_chunk_size=3, output_type="np")
    shape = VideoShape(
        width=64,
        height=64,
        frames=frames,
        windows=tuple(len(window) for window in open_windows(frames, 16, 4)),
        steps=steps,
        guided=guidance > 1,
    )
    cost = video_cost(_hollow(pipeline), shape)
    # The timestep is embedded once in each call, also where the cost model counts frame by frame, and the pipeline's
    # cosine VAE multiplies matrices too. Both differences are less than a thousandth.
    assert cost.flops_per_frame * frames == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.slow
def test_full_size() -> None:
    """Operations of the published program as measured elsewhere, and of ours within its goal."""
    networks = HollowNetworks.published()
    assert networks.parameters() == {
        "vae": 83_653_863,
        "image_encoder": 303_966_208,
        "reference_net": 859_508_800,
        "denoiser": 1_312_730_244,
        "pose_guider": 167_518_523,
    }
    frames = 1200
    size: dict[str, Any] = {"width": 512, "height": 512, "frames": frames}
    theirs = published_cost(networks, VideoShape(windows=_lengths(published_windows(frames)), **size))
    assert theirs.flops_per_frame == pytest.approx(99.7e12, rel=2e-3)
    assert theirs.flops["denoiser"] / frames == pytest.approx(89.2e12, rel=2e-3)
    ours = video_cost(networks, VideoShape(windows=_lengths(open_windows(frames, 16, 4)), **size))
    assert ours.flops_per_frame < 75e12


def test_what_does_not_wait_is_computed_again() -> None:
    networks = _hollow(tiny_pipeline())
    kept, again, alone = (
        video_cost(networks, VideoShape(width=64, height=64, frames=18, windows=(16, 16), steps=3, **settings)).flops
        for settings in ({}, {"keep_pose": False}, {"share": False})
    )
    assert 2 * kept["pose"] < again["pose"] < 3 * kept["pose"]
    assert alone["denoiser"] > kept["denoiser"] and again["denoiser"] == kept["denoiser"]


def _lengths(windows: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(len(window) for window in windows)


def test_memory_counts_what_lives_at_once() -> None:
    images = torch.empty(4, 8, 16, 16, device="meta")
    size = images.nbytes
    layer = nn.Conv2d(8, 8, 3, padding=1, device="meta")

    def chain() -> None:
        hidden = layer(images)  # +1
        hidden = functional.silu(hidden)  # +1, then the one before goes
        hidden = hidden.flatten(2).transpose(1, 2)  # a view
        layer(hidden.transpose(1, 2).unflatten(2, (16, 16)))  # +1

    assert measure_cost(chain).peak_bytes == 2 * size
    assert measure_cost(lambda: layer(images)).flops == 2 * 4 * 256 * 8 * 8 * 9


def test_attention_makes_no_table_of_scores() -> None:
    query, key = torch.empty(2, 4, 100, 8, device="meta"), torch.empty(2, 4, 300, 8, device="meta")
    cost = measure_cost(lambda: functional.scaled_dot_product_attention(query, key, key))
    assert (cost.flops, cost.peak_bytes) == (2 * 2 * 2 * 4 * 100 * 300 * 8, query.nbytes)


def test_a_batch_in_half_precision_needs_half_the_memory() -> None:
    with torch.device("meta"):
        guider: Any = PoseGuider.from_config(small_guider().config)
    costs = []
    for dtype in (torch.float32, torch.float16):
        guider.to(dtype)
        images = torch.empty(1, 3, 3, 64, 64, dtype=dtype, device="meta")
        costs.append(measure_cost(lambda images=images: guider(images, images[:, 0])))
    assert costs[0].flops == costs[1].flops
    assert costs[1].peak_bytes == pytest.approx(costs[0].peak_bytes / 2, rel=0.15)
