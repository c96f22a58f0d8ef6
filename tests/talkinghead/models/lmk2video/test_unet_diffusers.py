"""Private names of `diffusers` that the networks set: the library must still read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from tests.support.lmk2video_networks import draw, inputs, small_denoiser, small_guider, small_reference_net

CHANGED = f"diffusers {diffusers.__version__} does this otherwise: see lmk2video/unet.py and lmk2video/pose_guider.py"
NETWORKS: dict[str, Callable[[], Any]] = {
    "denoiser": lambda: small_denoiser(motion=True),
    "reference_net": small_reference_net,
    "pose_guider": small_guider,
}


@pytest.mark.parametrize(
    "name", ["_supports_gradient_checkpointing", "_no_split_modules", "_skip_layerwise_casting_patterns"]
)
def test_names_that_the_base_class_has(name: str) -> None:
    assert hasattr(ModelMixin, name), f"no ModelMixin.{name}: {CHANGED}"


@pytest.mark.parametrize("network", NETWORKS)
def test_checkpointing_is_handed_down(network: str) -> None:
    model = NETWORKS[network]()
    calls: list[Any] = []

    def counted(block: Any, *args: Any) -> Any:
        calls.append(block)
        return block(*args)

    assert hasattr(model, "_gradient_checkpointing_func"), CHANGED
    model.enable_gradient_checkpointing(counted)
    _call(network, model)
    assert len(calls) == len(model.blocks), CHANGED
    model.disable_gradient_checkpointing()
    _call(network, model)
    assert len(calls) == len(model.blocks), CHANGED


def _call(network: str, model: Any) -> None:
    if network == "denoiser":
        model(**inputs())
    elif network == "reference_net":
        model(draw(1, 4, 8, 8), draw(1, 1, 12))
    else:
        model(draw(1, 2, 3, 64, 64), draw(1, 3, 64, 64))


@pytest.mark.parametrize("network", NETWORKS)
def test_norms_are_not_stored_in_less_than_they_compute_in(network: str) -> None:
    model = NETWORKS[network]()
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    norms = {name: value.dtype for name, value in model.named_parameters() if ".norm" in name}
    assert norms and set(norms.values()) == {torch.float32}, CHANGED
    assert torch.bfloat16 in {value.dtype for value in model.parameters()}, CHANGED


@pytest.mark.parametrize("network", ["denoiser", "reference_net"])
def test_blocks_that_must_not_be_split_exist(network: str) -> None:
    model: nn.Module = NETWORKS[network]()
    kinds = {type(block).__name__ for block in model.blocks}  # pyright: ignore[reportGeneralTypeIssues]
    unsplit: Any = model._no_split_modules
    assert kinds <= set(unsplit), CHANGED
