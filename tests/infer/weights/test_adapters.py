"""Adapters next to weights: found for their networks, merged when those are loaded, refused elsewhere."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from infer.weights.adapters import PIPELINE, AdapterPlace, find_adapters, refuse_left_over
from infer.weights.pipeline_weights import find_pipeline, load_pipeline
from infer.weights.speech_weights import find_weights, load_audio2mesh
from talkinghead.models.adapters.adapter_folder import Adapter, AdapterSettings
from talkinghead.models.adapters.lora import B, Lora
from talkinghead.models.weights import state_hash
from tests.support.tiny_pipeline import tiny_pipeline


def write_adapter(folder: Path, task: str, networks: nn.Module, match: str, *, without: str = "?") -> dict[str, Any]:
    """An adapter of networks, written to a folder; returns the merged weights."""
    base = {name: value for name, value in networks.state_dict().items() if without not in name}
    adapted = copy.deepcopy(networks).requires_grad_(True)
    lora = Lora(adapted, match, rank=2, alpha=2.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name in lora.layers:
            adapted.get_submodule(name).get_parameter(B).normal_(std=0.1)
    settings = AdapterSettings(task=task, match=match, rank=2, alpha=2.0, base_sha256=state_hash(base))
    tensors = {name: value.detach() for name, value in adapted.named_parameters() if value.requires_grad}
    Adapter(settings=settings, tensors=tensors).write(folder)
    merged = copy.deepcopy(networks)
    place = AdapterPlace(path=folder, task=task)
    place.merge(merged, "networks")
    return {f"{name}.weight": merged.state_dict()[f"{name}.weight"] for name in lora.layers}


def test_speech_weights_are_loaded_with_their_adapter(tiny_weights: Path, tmp_path: Path) -> None:
    place = find_weights("audio2mesh", tiny_weights)
    plain = load_audio2mesh(place)
    merged = write_adapter(tmp_path / "adapter", "audio2mesh", plain.model, "in_fn|attention")
    adapters = find_adapters([tmp_path])
    assert set(adapters) == {"audio2mesh"}
    found = load_audio2mesh(dataclasses.replace(place, adapter=adapters["audio2mesh"]))
    assert merged and all(torch.equal(found.model.state_dict()[name], value) for name, value in merged.items())
    same = {
        name for name, value in plain.model.state_dict().items() if torch.equal(value, found.model.state_dict()[name])
    }
    assert same == set(plain.model.state_dict()) - set(merged)
    assert found.provenance()["adapter"]["task"] == "audio2mesh" and "adapter" not in plain.provenance()
    # Not twice, and not with other weights.
    found.model.save_pretrained(tmp_path / "other")
    other = dataclasses.replace(find_weights("audio2mesh", tmp_path / "other"), adapter=adapters["audio2mesh"])
    with pytest.raises(ValueError, match=r"belongs to weights with sha256 .*, and those of .*other have"):
        load_audio2mesh(other)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_pipeline_is_loaded_with_its_adapter(stage: int, dtype: torch.dtype | None, tmp_path: Path) -> None:
    """Stage 1's goes with weights of stage 2, too, whose motion modules it does not know."""
    pipeline = tiny_pipeline(width=64, height=96)
    pipeline.save_pretrained(tmp_path / "weights")
    parts = {name: getattr(pipeline, name) for name in ("denoiser", "reference_net", "pose_guider")}
    networks = nn.ModuleDict(parts)
    match, without = (r"attn1\.to_q", ".motion_modules.") if stage == 1 else (r"motion_modules.*to_q", "?")
    merged = write_adapter(
        tmp_path / "adapter", f"lmk2video-stage{stage}", networks.requires_grad_(True), match, without=without
    )
    place = dataclasses.replace(find_pipeline(tmp_path / "weights"), adapter=find_adapters([tmp_path])[PIPELINE])
    found, about = load_pipeline(place, dtype=dtype)
    state = nn.ModuleDict({name: getattr(found, name) for name in parts}).state_dict()
    for name, value in merged.items():
        assert torch.equal(state[name], value if dtype is None else value.to(dtype))
    assert about["pipeline"]["adapter"]["task"] == f"lmk2video-stage{stage}"


def test_what_is_no_adapter_or_has_no_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no adapter in"):
        find_adapters([tmp_path])
    network = nn.ModuleDict({"layer": nn.Linear(2, 2)})
    for name, task in (("one", "audio2mesh"), ("two", "audio2mesh"), ("odd", "toy")):
        write_adapter(tmp_path / name, task, network, "layer")
    with pytest.raises(ValueError, match=r"are for the same networks: give one"):
        find_adapters([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(ValueError, match=r"of the task 'toy', of which nothing is animated"):
        find_adapters([tmp_path / "odd"])
    adapters = find_adapters([tmp_path / "one"])
    refuse_left_over(adapters, ["audio2mesh", PIPELINE])
    with pytest.raises(ValueError, match=r"is for audio2mesh, which takes no part"):
        refuse_left_over(adapters, [PIPELINE])
    (tmp_path / "one" / "adapter.safetensors").unlink()
    with pytest.raises(ValueError, match=r"damaged or incomplete"):
        find_adapters([tmp_path / "one"])
