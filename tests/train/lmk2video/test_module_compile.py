"""Compiled blocks, with inductor: equal to the eager ones to rounding, and every form of them really compiled.

Compiling takes a processor minutes even for small networks. Two blocks are compiled in each run of the tests; networks
of one level, with eight channels, in the slow ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.utils import counters

from talkinghead.files.storage import Storage
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.models.lmk2video import sizes
from talkinghead.models.lmk2video.unet_blocks import MotionModule, SpatialTransformer
from tests.support.face_clips import add_latents, build_face_data
from tests.support.lmk2video_networks import SMALL, draw, shake
from tests.support.lmk2video_tasks import prepared
from tests.support.lmk2video_trainings import small_recipe, trained
from train.config import ParallelConfig
from train.trainer.parallel import parallelise

LEVEL: dict[str, Any] = {"block_out_channels": (8,), "attention_levels": (True,)}
"""A single level, whose blocks mostly have the same shapes."""
ROUNDING = 1e-5
"""Of float32 results whose sums are in another order."""


@pytest.fixture(autouse=True)
def _compiler() -> Iterator[None]:
    """No block may silently go on uncompiled, and what is counted is this test's."""
    torch.compiler.reset()
    counters.clear()
    # Processes that compile would take longer to start than the little that there is to compile.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), torch._inductor.config.patch(compile_threads=1):
        yield
    torch.compiler.reset()


def compiled_forms() -> int:
    """Number of compiled graphs, after a check that no block fell into several, or stayed uncompiled."""
    assert not counters["graph_break"], counters["graph_break"]
    # There may be fewer graphs than frames: what a process has loaded may add frames that compute nothing.
    assert counters["frames"]["ok"] == counters["frames"]["total"], counters["frames"]
    return counters["stats"]["unique_graphs"]


# --- blocks -----------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Two layers of a denoiser, each a transformer and a motion module; all have the same shapes."""

    def __init__(self, channels: int, token: int, frames: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(SpatialTransformer(channels, 2, token, 4) for _ in range(2))
        self.motions = nn.ModuleList(MotionModule(channels, 2, frames, 4) for _ in range(2))

    @property
    def blocks(self) -> list[nn.Module]:
        """The units of compiling."""
        return [*self.attentions, *self.motions]

    def forward(self, hidden: Tensor, token: Tensor, reference: Tensor, dropped: Tensor) -> Tensor:
        """`[B, F, C, h, w]` → the same."""
        batch, frames = hidden.shape[:2]
        folded = hidden.flatten(0, 1)
        for attention, motion in zip(self.attentions, self.motions, strict=True):
            folded, _ = attention(folded, token, reference, dropped, True)
            folded = motion(folded, frames)
        return folded.unflatten(0, (batch, frames))


def test_layers_compute_the_same() -> None:
    torch.set_num_threads(1)
    batch, frames, channels = 2, 3, 8
    module = Layers(channels, 12, frames)
    shake(module)
    hidden = draw(batch, frames, channels, 4, 4).requires_grad_(True)  # as after a layer that learns
    given = (draw(batch, 1, 12), draw(batch, 16, channels), torch.tensor([False, True]))

    def result() -> tuple[Tensor, dict[str, Tensor]]:
        module.zero_grad()
        found = module(hidden, *given)
        found.square().mean().backward()
        return found.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    eager, slopes = result()
    parallelise(module, ParallelConfig(compile=True), torch.device("cpu"), 1)
    compiled, found = result()
    torch.testing.assert_close(compiled, eager, rtol=ROUNDING, atol=ROUNDING)
    assert found.keys() == slopes.keys()
    largest = max(float(value.abs().max()) for value in slopes.values())
    for name, value in slopes.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=ROUNDING * largest, msg=name)
    assert compiled_forms() == 2, "blocks of one form share their code"
    # Other numbers of the same shape need no form of their own.
    with torch.no_grad():
        hidden.add_(0.5)
    assert not torch.equal(result()[0], compiled)
    assert compiled_forms() == 2


# --- whole trainings --------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another size `tiny`, in which networks compile in a minute or two."""
    monkeypatch.setitem(sizes._UNETS, "tiny", SMALL | LEVEL | {"cross_attention_dim": 64})
    guider = {"stem_channels": (3, 8, 8, 8, 8), "attention_heads": 2, "attention_head_dim": 4, "norm_num_groups": 4}
    monkeypatch.setitem(sizes._POSE_GUIDERS, "tiny", guider | {"reference_heads": 2})


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("more", [{}, {"precision": "bf16", "activation_checkpointing": True}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_a_training_is_that_of_the_eager_blocks(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    data: Storage = build_face_data(tmp_path / "data")
    add_latents(data, ImageNetworks.load("tiny", "tiny"), 32, 32)
    task = prepared("stage1", data, tmp_path / "task")
    module = task.build()
    shake(module)
    (tmp_path / "begin").mkdir()
    task.export(module.eval(), tmp_path / "begin")
    settings = {{"stage1": "init", "stage2": "stage1"}[name]: str(tmp_path / "begin"), "drop_both": 0.25}
    eager, compiled = (
        trained(tmp_path / str(on), name, small_recipe(name, settings, compile=on, **more), data.uri)
        for on in (False, True)
    )
    # bf16 rounds the results of fused operations once, and of single ones each.
    tolerance = 1e-4 if not more else 0.02
    for line, other in zip(compiled["lines"], eager["lines"], strict=True):
        assert line["skipped"] == 0
        assert line["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=5 * tolerance)
    for part in ("module", "optimizer", "ema"):
        assert compiled[part].keys() == eager[part].keys(), "no other names"
    # The second step, and the rehearsal before the first, need no form of their own.
    assert compiled_forms() <= 16
