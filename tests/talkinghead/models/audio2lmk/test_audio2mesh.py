"""Audio2Mesh: shapes, saving, and the ways in which it is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.speech.weights import Pretrained
from talkinghead.models.weights import parameter_hash


@pytest.fixture
def model(tiny: dict[str, Any]) -> Audio2Mesh:
    torch.manual_seed(0)
    model = Audio2Mesh(tiny, hidden=24, num_vertices=7, smoothing=3)
    nn.init.normal_(model.out_fn.weight, std=0.1)
    return model


def gradients(model: nn.Module, samples: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(samples, 20).square().mean().backward()
    return [value.grad.clone() for value in model.parameters() if value.grad is not None]


def test_the_first_prediction_is_the_neutral_mesh(tiny: dict[str, Any]) -> None:
    out = Audio2Mesh(tiny)(torch.randn(2, 6400), 10)
    assert out.shape == (2, 10, 468, 3)
    assert not out.any()


def test_it_is_one_linear_map_of_the_features(model: Audio2Mesh) -> None:
    features = torch.randn(3, 128)
    ends = model.out_fn(model.in_fn(features[:2]))
    middle = model.out_fn(model.in_fn(features[:2].mean(0)))
    torch.testing.assert_close(middle, ends.mean(0))


def test_saving_and_loading_keeps_every_bit_and_setting(model: Audio2Mesh, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = Audio2Mesh.from_pretrained(tmp_path)
    assert parameter_hash(again) == parameter_hash(model)
    assert (again.fps, again.smoothing, again.num_vertices, again.training) == (25.0, 3, 7, False)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "Audio2Mesh"
    samples = torch.randn(1, 6400)
    assert torch.equal(again(samples, 10), model.eval()(samples, 10))


def test_damaged_folders_are_told(model: Audio2Mesh, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no whole Audio2Mesh"):
        Audio2Mesh.from_pretrained(tmp_path / "nowhere")
    model.save_pretrained(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(weights)
    del tensors["in_fn.bias"]
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"in_fn\.bias"):
        Audio2Mesh.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="no whole Audio2Mesh"):
        Audio2Mesh.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="no whole Audio2Mesh"):
        Audio2Mesh.from_pretrained(tmp_path)


def test_the_hash_is_of_names_shapes_types_and_values(model: Audio2Mesh) -> None:
    first = parameter_hash(model)
    assert parameter_hash(model) == first
    bias = model.in_fn.bias
    with torch.no_grad():
        bias[0] = 0.0
        zero = parameter_hash(model)
        bias[0] = -0.0
    assert len({first, zero, parameter_hash(model)}) == 3
    same = nn.Linear(2, 2).to(torch.bfloat16), nn.Linear(2, 2).to(torch.float16)
    for linear in same:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    assert parameter_hash(same[0]) != parameter_hash(same[1])


def test_activation_checkpointing_changes_no_gradient(model: Audio2Mesh) -> None:
    model.train()
    samples = torch.randn(2, 12800)
    want = gradients(model, samples)
    model.enable_gradient_checkpointing()
    for got, expected in zip(gradients(model, samples), want, strict=True):
        torch.testing.assert_close(got, expected)


def test_training_in_bf16_stays_near_float32(model: Audio2Mesh) -> None:
    model.train()
    samples = torch.randn(2, 12800)
    want = gradients(model, samples)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(samples, 20)
        got = gradients(model, samples)
    assert out.isfinite().all()
    assert all(value.dtype == torch.float32 for value in model.parameters())
    flat, expected = (torch.cat([value.flatten() for value in values]) for values in (got, want))
    assert torch.nn.functional.cosine_similarity(flat, expected, dim=0) > 0.99


def test_blocks_compile_without_graph_breaks(model: Audio2Mesh) -> None:
    samples = torch.randn(1, 6400)
    want = model.eval()(samples, 10)
    assert len(model.blocks) == 2
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(model(samples, 10), want)


def test_the_tiny_encoder_trains(tiny: dict[str, Any]) -> None:
    """A few seconds of speech-like sound are learnt by heart: mouth opening as the loudness moves it."""
    torch.manual_seed(0)
    model = Audio2Mesh(tiny, hidden=16, num_vertices=2)
    Pretrained("tiny").load_wav2vec(model.audio_encoder)
    time = torch.arange(50 * 640) / 16000
    loudness = 0.5 - 0.5 * torch.cos(2 * torch.pi * 1.5 * time)
    samples = (loudness * torch.sin(2 * torch.pi * 180 * time) * 2)[None]
    target = loudness[::640][None, :, None, None].expand(1, 50, 2, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(samples, 50) - target).abs().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.08, "the mean alone gives 0.32"


@pytest.mark.parametrize(("setting", "value"), [("fps", 0), ("smoothing", 2), ("hidden", 25)])
def test_a_config_that_cannot_be_names_the_folder(model: Audio2Mesh, tmp_path: Path, setting: str, value: int) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {setting: value}))
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*(fps 0|smoothing 2|in_fn.weight)") as caught:
        Audio2Mesh.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
