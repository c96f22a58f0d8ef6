"""What the tests of a device share: the device with the sizes to measure, networks and inputs made on it, and clocks.

At the sizes of the paper everything is made on the device itself, with random weights: nothing is read or downloaded.
The same code runs at tiny sizes on a CPU, in every run of the tests, so that it works when a GPU is there.
"""

from __future__ import annotations

import contextlib
import gc
import linecache
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.sizes import Size
from tests.support.gpu_report import Report
from tests.support.host_reads import HostReads
from tests.support.paths import ROOT
from train.config import ParallelConfig
from train.lmk2video.module import Conditions, Lmk2Video
from train.lmk2video.stage1 import make_module
from train.trainer.flops import FlopCount, Work, peak_of
from train.trainer.loop import Trainer
from train.trainer.parallel import autocast
from train.trainer.precision import use_channels_last


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Device, and the sizes at which it is measured."""

    device: torch.device
    size: Size
    """Size of the networks."""
    side: int
    """Width and height of images in pixels, with latents of an eighth."""
    frames: int
    """Frames of a window of stage 2."""
    images: int
    """Images of a microbatch of stage 1."""
    repeats: int
    """Number of times that a measured call is repeated."""
    report: Report

    @property
    def gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def needs_gpu(self) -> None:
        """Skip the test where there is nothing to see without a GPU."""
        if not self.gpu:
            pytest.skip("needs a GPU: there is nothing to see on a CPU")

    def needs_memory(self, gigabytes: float) -> None:
        """Skip the test where the GPU has less free memory (10⁹ bytes)."""
        if self.gpu:
            self.collect()
            free = torch.cuda.mem_get_info(self.device)[0] / 1e9
            if free < gigabytes:
                pytest.skip(f"needs {gigabytes:g} GB of free memory of the GPU, and {free:.0f} GB are free")

    def judge(self, suspect: int, real: bool, why: str) -> None:
        """Say of a suspect whether it was real on this device, with the reason; nothing is said of a CPU."""
        self.report.judge(suspect, ("real" if real else "not met") if self.gpu else "not judged", why)

    def collect(self) -> None:
        """Give memory back, and begin to measure its peak anew."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def peak_gb(self) -> float:
        """Most memory that tensors took since `collect`, in 10⁹ bytes; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.gpu else 0.0

    def milliseconds(self, run: Callable[[], object]) -> float:
        """Mean time of a call, after two that are not counted (kernels are chosen and compiled in them)."""
        for _ in range(2 if self.gpu else 1):
            run()
        self.wait()
        start = time.perf_counter()
        for _ in range(self.repeats):
            run()
        self.wait()
        return 1000 * (time.perf_counter() - start) / self.repeats

    @contextlib.contextmanager
    def waits(self) -> Iterator[list[str]]:
        """Context that lists the places at which Python waits for the device: on a CPU those that would on a GPU."""
        found: list[str] = []
        if not self.gpu:
            with HostReads() as reads:
                yield found
            found += map(str, reads.found)
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for one in caught:
            if "synchronizing" in str(one.message):
                line = linecache.getline(one.filename, one.lineno).strip()
                found.append(f"{one.filename.removeprefix(f'{ROOT}/')}:{one.lineno} {line}")

    def networks(self, stage: int) -> Lmk2Video:
        """Networks of a stage with random weights, in training."""
        with self.device:
            module = make_module(self.size, 4)
            if stage == 2:
                known = {name: value for name, value in module.denoiser.config.items() if not name.startswith("_")}
                motion = cast(dict[str, Any], known) | {"motion": True, "motion_frames": 32}
                module = Lmk2Video(Denoiser(**motion), module.reference_net, module.pose_guider)
        if stage == 1:
            module.train_images(fold=True)
        else:
            module.train_motion()
        return module.train()

    def inputs(self, module: Lmk2Video, samples: int, frames: int) -> tuple[Tensor, Tensor, Conditions]:
        """Inputs of the networks: noisy latents, timesteps and conditions."""
        at, latent = self.device, self.side // 8
        width = module.denoiser.config["cross_attention_dim"]
        given = Conditions(
            token=torch.randn(samples, 1, width, device=at),
            reference=torch.randn(samples, 4, latent, latent, device=at),
            dropped=torch.zeros(samples, dtype=torch.bool, device=at),
            guidance=torch.rand(samples, frames, 3, self.side, self.side, device=at),
            reference_guidance=torch.rand(samples, 3, self.side, self.side, device=at),
        )
        steps = torch.arange(samples, device=at) * 7 + 3
        return torch.randn(samples, frames, 4, latent, latent, device=at), steps, given

    def parallel(self, **settings: Any) -> ParallelConfig:
        """Settings of a training on this device."""
        return ParallelConfig(**({"device": self.device.type, "precision": "bf16"} | settings))


class NetworkStep:
    """Forward and backward pass of the networks of a stage, and their update: a step without a trainer.

    Args:
        bench: Device and sizes.
        stage: 1 or 2.
        parallel: Precision, and whether blocks are compiled.
        samples: Samples of the microbatch.
        channels_last: Whether convolutions get the layout that tensor cores take.
        update: Whether there is an optimizer, whose moments take twice the memory of the weights.
    """

    def __init__(
        self,
        bench: Bench,
        stage: int,
        parallel: ParallelConfig,
        *,
        samples: int,
        channels_last: bool = False,
        update: bool = True,
    ) -> None:
        self.bench, self.parallel, self.samples = bench, parallel, samples
        self.module = bench.networks(stage)
        if channels_last:
            use_channels_last(self.module, bench.device)
        if parallel.compile:
            for block in self.module.blocks:
                block.forward = torch.compile(block.forward, dynamic=False)
        self.inputs = bench.inputs(self.module, samples, 1 if stage == 1 else bench.frames)
        trained = [value for value in self.module.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if update else None

    def __call__(self) -> Tensor:
        """Do it once; returns the loss."""
        with autocast(self.parallel, self.bench.device):
            loss = self.module(*self.inputs).float().square().mean()
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        for value in self.module.parameters():
            value.grad = None
        return loss.detach()

    def figures(self) -> dict[str, float]:
        """Time, memory and operations: `step_ms`, `peak_gb`, `tflops`, `mfu` (where the device's peak is known)."""
        bench = self.bench
        bench.collect()
        step_ms = bench.milliseconds(self)
        found = {"step_ms": step_ms, "peak_gb": bench.peak_gb()}
        with FlopCount() as count:
            self()
        name = torch.cuda.get_device_name(bench.device) if bench.gpu else "CPU"
        work = Work(flops=count.flops / self.samples, world=1, peak=peak_of(name, self.parallel))
        return found | work.figures(1000 * self.samples / step_ms)


class Stopped(Exception):
    """Enough steps were done."""


class WatchedTrainer(Trainer):
    """Trainer that does some steps, lists where they wait for the device, and writes nothing between them.

    Attributes:
        places: Where the steps waited, from the third step on: the first ones choose kernels and take memory. Steps
            after which figures are wanted at once are left out.
    """

    places: tuple[str, ...] = ()

    def watched(self, bench: Bench, steps: int) -> dict[str, float]:
        """Do some steps; returns the figures of their speed, see `Throughput.interval`."""
        whole, self._last = self._train_step, steps
        found: list[str] = []

        def step() -> None:
            watched = self.step >= 2 and not self._needs_figures(self.step + 1)
            with bench.waits() if watched else contextlib.nullcontext([]) as places:
                whole()
            found.extend(places)

        self._train_step = step  # pyright: ignore[reportAttributeAccessIssue]
        with contextlib.suppress(Stopped):
            self.fit()
        self.places = tuple(dict.fromkeys(found))
        return self.clock.interval(self.config.global_batch * steps)

    def _after_step(self) -> None:
        if self.step >= self._last:
            raise Stopped


def busy_share(bench: Bench, run: Callable[[], object]) -> float:
    """Share of the time of a call in which the GPU computes, by the profiler; the rest it waits."""
    from torch.profiler import ProfilerActivity, profile

    run()
    bench.wait()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        start = time.perf_counter()
        run()
        bench.wait()
        elapsed = time.perf_counter() - start
    kernels = sum(event.self_device_time_total for event in profiled.key_averages())
    return kernels / 1e6 / elapsed


def conversions(bench: Bench, run: Callable[[], object]) -> int:
    """Number of kernels of a call that turn images from one layout into the other, by their names in the profiler."""
    from torch.profiler import ProfilerActivity, profile

    run()
    bench.wait()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        bench.wait()
    names = ("nchwtonhwc", "nhwctonchw", "transpose", "permute")
    return sum(event.count for event in profiled.key_averages() if any(name in event.key.lower() for name in names))


def free(bench: Bench, *parts: nn.Module | None) -> None:
    """Let go of networks before the next ones are made."""
    for part in parts:
        if part is not None:
            part.to("meta")
    bench.collect()
