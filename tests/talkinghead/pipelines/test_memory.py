"""Presets change the use of memory and not the video; and when memory runs out, the error says what to try."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from talkinghead.pipelines.memory import (
    PRESETS,
    at_work,
    awake,
    device_memory,
    fitting_preset,
    kept_aside,
    memory_preset,
    out_of_memory_explained,
)
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from tests.support.paths import ROOT
from tests.support.tiny_pipeline import tiny_pipeline, tiny_request

CPU = torch.device("cpu")
FAST: dict[str, Any] = {"num_inference_steps": 1, "context_frames": 3, "context_overlap": 1}


@pytest.fixture(scope="module")
def pipeline() -> TalkingHeadPipeline:
    made = tiny_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def test_presets_show_the_same_frames(pipeline: TalkingHeadPipeline) -> None:
    request = tiny_request(4, 32, 32)
    plain = np.stack(list(pipeline.stream(**request, **FAST))).astype(int)
    for gigabytes, preset in PRESETS.items():
        assert pipeline.apply_preset(gigabytes).memory is preset
        frames = np.stack(list(pipeline.stream(**request, **FAST))).astype(int)
        assert np.abs(frames - plain).max() <= 1, gigabytes
    assert pipeline.denoiser.dtype == torch.float32, "on the CPU"
    with pytest.raises(ValueError, match=r"memory presets are 8, 12, 16, 24 \(gigabytes\), not 10"):
        pipeline.apply_preset(10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_shows_nearly_the_same(dtype: torch.dtype) -> None:
    request: dict[str, Any] = tiny_request(3, 32, 32) | {"num_inference_steps": 3}
    exact = tiny_pipeline()
    half = tiny_pipeline().apply_preset(24, dtype=dtype)
    for made in (exact, half):
        made.set_progress_bar_config(disable=True)
    assert {half.denoiser.dtype, half.vae.dtype, half.image_encoder.dtype} == {dtype}
    first, second = (np.stack(list(made.stream(**request))).astype(float) for made in (exact, half))
    error = np.abs(first - second).mean()
    assert 0 < error < (4 if dtype == torch.bfloat16 else 1)


def test_the_fitting_preset() -> None:
    sizes = [4, 7.6, 7.9, 11.8, 15, 23.7, 80]
    assert [fitting_preset(round(size * 2**30)).gigabytes for size in sizes] == [8, 8, 8, 12, 12, 24, 24]
    assert memory_preset(16).gigabytes == 16 and device_memory(CPU) is None


def test_networks_rest_between_their_work() -> None:
    network = torch.nn.Linear(2, 2)
    meta = torch.device("meta")
    with at_work(network, meta, rest=False):
        assert network.weight.device.type == "cpu"
    moved: list[str] = []
    network.to = lambda device: moved.append(str(device))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RuntimeError, match="fails"), at_work(network, CPU, rest=True):
        raise RuntimeError("fails")
    assert moved == ["cpu", "cpu"]


class Calls(TorchFunctionMode):
    """Notes the settings of each call that makes or fills a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.append((getattr(func, "__name__", ""), dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def test_what_a_gpu_keeps_aside_is_pinned_and_waited_for_by_nobody() -> None:
    """On tensors of a GPU without content, since there may be none here; on the CPU it is the tensor as it is."""
    with FakeTensorMode():
        on_gpu = torch.empty(1, 2, 3, device="cuda", dtype=torch.float16)
        with Calls() as calls:
            kept = kept_aside(on_gpu)
        assert kept.device == CPU and kept.dtype == torch.float16 and kept.shape == on_gpu.shape
    settings = dict(calls.found)
    assert settings["empty_like"]["pin_memory"] is True and settings["copy_"]["non_blocking"] is True
    tensor = torch.ones(3)
    assert kept_aside(tensor) is tensor


def test_offloaded_networks_are_woken() -> None:
    """Hooks of accelerate do this before `forward`."""
    woken: list[Any] = []

    class Hook:
        def pre_forward(self, module: Any) -> None:
            woken.append(module)

    network: Any = torch.nn.Linear(2, 2)
    assert awake(network) is network and not woken
    network._hf_hook = Hook()
    assert awake(network) is network and woken == [network]


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_explained(None, CPU, "frames"):
        torch.mm(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("preset", "advice"), [(None, "preset 24"), (24, "preset 16"), (12, "preset 8"), (8, "the smallest")]
)
def test_the_next_smaller_preset_is_named(preset: int | None, advice: str) -> None:
    """Errors are those of PyTorch and NumPy for more memory than any machine has."""
    message, preset_then = f"not enough memory on cpu for frames: .*{advice}", PRESETS.get(preset or 0)
    with pytest.raises(ValueError, match=message), out_of_memory_explained(preset_then, CPU, "frames"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message), out_of_memory_explained(preset_then, CPU, "frames"):
        np.empty(2**60, np.uint8)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process in /proc")
def test_a_minute_takes_no_more_memory_than_ten_seconds() -> None:
    grown = {}
    for frames in (250, 1500):
        count, before, peak = (int(number) for number in _run("peak_memory", str(frames)).split())
        assert count == frames
        grown[frames] = peak - before
    print(f"MB that streaming took: {grown}")
    assert grown[1500] <= grown[250] + 16


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of address space")
def test_a_pipeline_that_is_refused_memory_says_what_to_try() -> None:
    output = _run("memory_limit", "16")
    assert "not enough memory on cpu for frames of 384x384 pixels: try the memory preset 12" in output


def _run(program: str, *arguments: str) -> str:
    """Output of one of the programs in `tests/support`."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.support.{program}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
