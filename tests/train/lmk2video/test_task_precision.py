"""bf16 in both stages, on a CPU: two real steps, with latents that are read and with images that are encoded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from talkinghead.files.storage import Storage
from talkinghead.models.image.networks import ImageNetworks
from tests.support.face_clips import add_latents, build_face_data
from tests.support.lmk2video_tasks import prepared, shake
from tests.support.lmk2video_trainings import small_recipe, trained
from tests.support.training import assert_same

ROUNDING = 0.02
"""Of a loss: bf16 rounds each result by up to 1 / 256, and these networks have some fifty layers, one after the other.
Errors that are as likely up as down add up to about 1 / 256 · √50 / 2, 1.4 % of a prediction at one position; a loss
is a mean over thousands of positions, where much of that cancels."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data with latents, and a pipeline with weights that all matter, for stage 2 to begin from."""
    folder = tmp_path_factory.mktemp("precision")
    data: Storage = build_face_data(folder / "data")
    add_latents(data, ImageNetworks.load("tiny", "tiny"), 32, 32)
    task = prepared("stage1", data, folder / "task")
    module = task.build()
    shake(module)
    (folder / "stage1").mkdir()
    task.export(module.eval(), folder / "stage1")
    return {"data": data.uri, "stage1": str(folder / "stage1")}


@pytest.fixture(scope="module")
def in_bf16(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Any]]:
    """Training in bf16 by stage and `use_latents`, done once."""
    folder = tmp_path_factory.mktemp("bf16")

    @functools.cache
    def found(name: str, use_latents: str) -> dict[str, Any]:
        return train(folder / f"{name}-{use_latents}", name, places, use_latents, precision="bf16")

    return found


def train(path: Path, name: str, places: dict[str, str], use_latents: str, **parallel: Any) -> dict[str, Any]:
    # Both stages begin with the same weights: those of stage 1's recipe have a pose that is zero.
    begin = {"stage1": {"init": places["stage1"]}, "stage2": {"stage1": places["stage1"]}}[name]
    settings = begin | {"use_latents": use_latents, "drop_both": 0.25}
    return trained(path, name, small_recipe(name, settings, **parallel), places["data"])


@pytest.mark.parametrize("use_latents", ["require", "no"])
@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_two_steps_in_bf16(name: str, use_latents: str, places: dict[str, str], in_bf16: Any, tmp_path: Path) -> None:
    exact, rough = train(tmp_path / "exact", name, places, use_latents), in_bf16(name, use_latents)
    for line, other in zip(rough["lines"], exact["lines"], strict=True):
        assert line["skipped"] == 0
        for figure in ("loss", "velocity_mse"):
            assert line[figure] == pytest.approx(other[figure], rel=ROUNDING)
        assert line["loss"] != other["loss"], "it is computed in bf16"
        # The gradient has more roundings, one on top of another: twice as many layers.
        assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=5 * ROUNDING)
    for part in ("module", "optimizer", "ema"):
        assert rough[part].keys() == exact[part].keys()
        for key, value in rough[part].items():
            assert value.dtype == exact[part][key].dtype and value.dtype != torch.bfloat16, key
            assert value.isfinite().all(), key
        assert {value.dtype for value in rough[part].values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_activations_that_are_computed_again_are_the_same(
    name: str, places: dict[str, str], in_bf16: Any, tmp_path: Path
) -> None:
    """As in the paper's recipe of stage 2: the second forward pass has the precision of the first."""
    again = train(tmp_path / "again", name, places, "require", precision="bf16", activation_checkpointing=True)
    assert_same(again, in_bf16(name, "require"))
