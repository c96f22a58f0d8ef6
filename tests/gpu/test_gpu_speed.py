"""Time, memory and use of the device: both stages at the sizes of the paper, latents, and inference.

Nothing here fails because a device is slow. What fails is a step that does not fit the memory that recipes and presets
state, or ranks that do not train alike.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from infer.estimate import Request, device_bytes, layout_of, shape_of
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.lmk2video.cost import video_cost
from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.meta_networks import HollowNetworks
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.unet_blocks import MotionModule, SpatialTransformer
from talkinghead.models.noise_schedule import PAPER
from talkinghead.pipelines.memory import PRESETS
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.face_clips import build_face_data
from tests.support.gpu_bench import Bench, NetworkStep, busy_share, free
from tests.support.gpu_trainings import quiet, small_recipe, trainer_of
from tests.support.paths import ROOT
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request
from train.recipe import Recipe, recipes_of
from train.trainer.parallel import autocast, wrap

# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_of_the_networks(bench: Bench, stage: int) -> None:
    """Forward, backward and update in bf16 with channels last: time, memory, TFLOPS, share of the time it computes."""
    bench.needs_memory(55 if stage == 1 else 60)
    samples = bench.images if stage == 1 else 1
    step = NetworkStep(bench, stage, bench.parallel(), samples=samples, channels_last=True)
    figures = step.figures()
    if bench.gpu:
        figures["busy"] = busy_share(bench, step)
    bench.report.note(f"step of stage {stage}, {samples} samples of {bench.side} x {bench.side}", **figures)
    free(bench, step.module)
    # Moments and gradients are there, and the activations of a sample come on top of them.
    assert not bench.gpu or 10 < figures["peak_gb"] < 60


def test_ddp_of_one_rank(bench: Bench, tmp_path: Path) -> None:
    """What DDP's buckets cost where there is nobody to exchange with."""
    bench.needs_memory(50)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl" if bench.gpu else "gloo", store=store, rank=0, world_size=1)
    try:
        step = NetworkStep(bench, 1, bench.parallel(), samples=1, channels_last=True, update=False)
        alone = bench.milliseconds(step)
        bare, step.module = step.module, wrap(step.module, bench.device, 2, step.parallel)
        together = bench.milliseconds(step)
        bench.report.note("stage 1, one image, DDP of one rank", plain_ms=alone, ddp_ms=together)
        free(bench, bare)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["residual", "spatial", "motion"])
def test_a_compiled_block(bench: Bench, kind: str) -> None:
    """Forward and backward pass of a block of the finest level, plain and compiled, with channels last."""
    bench.needs_gpu()
    channels, side, count = 320, bench.side // 8, bench.frames
    states = torch.randn(count, channels, side, side, device=bench.device).to(memory_format=torch.channels_last)
    args: tuple[Any, ...]
    block: nn.Module
    with bench.device:
        if kind == "residual":
            block, args = ResnetBlock2D(in_channels=channels, temb_channels=1280), (torch.randn(count, 1280),)
        elif kind == "spatial":
            block, args = SpatialTransformer(channels, 8, 768, 32), (torch.randn(1, 1, 768),)
        else:
            block, args = MotionModule(channels, 8, 32, 32), (count,)
    block = block.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def timed(forward: Any) -> float:
        def step() -> None:
            with autocast(bench.parallel(), bench.device):
                found = forward(states, *args)
            (found[0] if isinstance(found, tuple) else found).float().square().mean().backward()

        return bench.milliseconds(step)

    plain, compiled = timed(block), timed(torch.compile(block, dynamic=False))
    bench.report.note(f"{kind} block, {count} images", plain_ms=plain, compiled_ms=compiled)


def test_a_training_at_the_size_of_the_paper(bench: Bench, tmp_path: Path) -> None:
    """The trainer itself with images that are read and encoded: where a step waits, and for how long."""
    bench.needs_gpu()
    bench.needs_memory(60)
    clip = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, projection_dim=768
    )
    CLIPVisionModelWithProjection(clip).save_pretrained(tmp_path / "clip")
    base = recipes_of("stage1")["tiny"]()
    settings = {"vae": "tiny-kl", "image_encoder": str(tmp_path / "clip"), "size": bench.size}
    config = dataclasses.replace(base.config, **settings, width=bench.side, height=bench.side)
    train = dataclasses.replace(quiet(base.train, bench, steps=100), num_workers=4)
    data = build_face_data(tmp_path / "data").uri
    trainer = trainer_of(tmp_path / "run", "stage1", Recipe(config=config, train=train), data)
    try:
        speed = trainer.watched(bench, 8)
    finally:
        trainer.close()
    bench.report.note("training of stage 1", **speed, waits=len(trainer.places), where="; ".join(trainer.places) or "-")
    free(bench, trainer.module)
    assert not trainer.places, "\n".join(trainer.places)


def test_two_ranks_train_like_one(bench: Bench, tmp_path: Path) -> None:
    """NCCL on two GPUs, by the command that users type: the losses of its steps are those of one rank to rounding."""
    bench.needs_gpu()
    if torch.cuda.device_count() < 2:
        pytest.skip("needs 2 GPUs")
    data, losses = build_face_data(tmp_path / "data").uri, {}
    chosen = small_recipe(bench, "stage1", {}).config
    for ranks in (1, 2):
        run = tmp_path / f"run {ranks}"
        command = [
            *(sys.executable, "-m", "train", "stage1", "tiny", "--data", data, "--run", str(run)),
            *("--workers", str(ranks), "--train.parallel.device", "cuda", "--train.validation.every", "0"),
            *("--train.steps", "3", "--train.global-batch", "4", "--train.microbatch", "2", "--train.log.every", "1"),
            *("--config.width", str(chosen.width), "--config.height", str(chosen.height)),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[ranks] = [line["loss"] for line in lines if "loss" in line]
    bench.report.note("two ranks over NCCL", **{f"loss_{n}_ranks": values[-1] for n, values in losses.items()})
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)


# --- latents ----------------------------------------------------------------------------------------------------------


def test_frames_encoded_in_a_second(bench: Bench) -> None:
    """By images in a call, and by precision, with VAE and CLIP of the published sizes."""
    bench.needs_memory(20)
    networks = image_networks(bench)
    for precision, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        networks.to(dtype=dtype)
        found = {}
        for count in (4, 16, 32, 64) if bench.gpu else (1, 2):
            images = torch.randint(0, 256, (count, 3, bench.side, bench.side), dtype=torch.uint8).to(bench.device)
            spent = bench.milliseconds(lambda images=images: (networks.moments(images), networks.embedding(images)))
            found[f"of_{count}_per_s"] = 1000 * count / spent
        bench.report.note(f"latents in {precision}, images in a call", **found, peak_gb=bench.peak_gb())
    free(bench, networks.vae, networks.image_encoder)


def image_networks(bench: Bench) -> ImageNetworks:
    """VAE and CLIP on the device: of the published sizes with random weights, or the tiny ones."""
    if not bench.gpu:
        return ImageNetworks.load("tiny-kl", "tiny")
    hollow: Any = HollowNetworks.published()
    settings = {name: value for name, value in hollow.vae.config.items() if not name.startswith("_")}
    with bench.device:
        return ImageNetworks(AutoencoderKL(**settings), CLIPVisionModelWithProjection(hollow.image_encoder.config))


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gigabytes", PRESETS)
def test_a_preset_fits_the_memory_that_it_names(bench: Bench, gigabytes: int) -> None:
    """Peak of a second of video at two sampling steps, against the preset's name and the estimate of `infer doctor`."""
    bench.needs_memory(gigabytes)
    preset, frames = PRESETS[gigabytes], bench.frames
    pipeline = whole_pipeline(bench)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.apply_preset(gigabytes, device=str(bench.device)) if bench.gpu else pipeline.apply_preset(gigabytes)
    bench.collect()
    request = tiny_request(frames, bench.side, bench.side) | {"num_inference_steps": 2}
    shown = np.stack(list(pipeline.stream(**request)))
    assert shown.shape == (frames, bench.side, bench.side, 3)
    if bench.gpu:
        networks = HollowNetworks.published().to(preset.dtype)
        asked = Request(width=512, height=512, seconds=frames / 25, fps=25.0, steps=2, guidance=3.5, context_frames=16)
        layout = layout_of(asked, networks, compat=False)
        cost = video_cost(networks, shape_of(asked, layout))
        said = device_bytes(networks, asked, layout, preset, cost) / 1e9
        bench.report.note(f"preset of {gigabytes} GB", peak_gb=bench.peak_gb(), estimated_gb=said)
        assert bench.peak_gb() < gigabytes * 1.0737
    free(bench, *(part for part in pipeline.components.values() if isinstance(part, nn.Module)))


def whole_pipeline(bench: Bench) -> TalkingHeadPipeline:
    """Pipeline on the device: of the published sizes with random weights, or the tiny one."""
    if not bench.gpu:
        return tiny_pipeline()
    images = image_networks(bench)
    with bench.device:
        parts = {"reference_net": ReferenceNet(), "denoiser": Denoiser(motion=True), "pose_guider": PoseGuider()}
    for part in parts.values():
        part.eval()
    return TalkingHeadPipeline(
        vae=images.vae, image_encoder=images.image_encoder, scheduler=PAPER.sampler("ddim"), **parts
    )
