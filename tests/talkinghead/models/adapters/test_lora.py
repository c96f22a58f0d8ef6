"""LoRA: identity at first, merged equals unmerged, on every kind of layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from talkinghead.models.adapters.adapter_folder import Adapter, AdapterSettings
from talkinghead.models.adapters.lora import A, B, Lora, merge
from talkinghead.models.running_statistics import SpectralLinear
from talkinghead.models.weights import parameter_hash


class Modulated(nn.Module):
    """Convolution whose weight is scaled when it runs, as in StyleGAN."""

    gain = 0.25

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self._delta: Callable[[], Tensor] | None = None

    def adapt(self, delta: Callable[[], Tensor]) -> None:
        self._delta = delta

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.gain
        if self._delta is not None:
            weight = weight + self._delta()
        return functional.conv2d(x, weight, padding=1)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (2, 5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (2, 6)),
    "1d": (lambda: nn.Conv1d(6, 4, 3, padding=1), (2, 6, 9)),
    "2d": (lambda: nn.Conv2d(6, 4, 3, stride=2), (2, 6, 9, 9)),
    "2d of 1 x 1": (lambda: nn.Conv2d(6, 4, 1), (2, 6, 3, 3)),
    "2d that is not square": (lambda: nn.Conv2d(6, 4, (1, 3)), (2, 6, 5, 5)),
    "2d reflecting": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (2, 6, 5, 5)),
    "3d": (lambda: nn.Conv3d(6, 4, 3, padding=1), (2, 6, 4, 4, 4)),
    "grouped 1d": (lambda: nn.Conv1d(6, 4, 3, groups=2), (2, 6, 9)),
    "grouped 2d": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
    "modulated": (Modulated, (2, 3, 5, 5)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    return nn.ModuleDict({"layer": make(), "other": nn.Linear(2, 2)}), torch.randn(shape)


def trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_layer_at_first_and_merged_the_same_afterwards(name: str) -> None:
    module, x = network(name)
    plain = copy.deepcopy(module)
    names = set(module.state_dict())
    lora = Lora(module, "^layer", rank=2, alpha=3.0)
    assert lora.layers == ("layer",) and lora.scale == 1.5
    assert set(module.state_dict()) == names | {f"layer.{A}", f"layer.{B}"}
    assert set(trained(module)) == {f"layer.{A}", f"layer.{B}"}
    layer = module.get_submodule("layer")
    assert torch.equal(layer(x), plain["layer"](x)), "to the bit"  # pyright: ignore[reportIndexIssue]
    # Both are trained; B first, since it is zero.
    layer(x).square().sum().backward()
    assert layer.get_parameter(B).grad is not None and layer.get_parameter(B).grad.abs().sum() > 0  # pyright: ignore
    with torch.no_grad():
        layer.get_parameter(B).normal_()
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert layer.get_parameter(A).grad.abs().sum() > 0  # pyright: ignore[reportOptionalMemberAccess]
    adapted = layer(x)
    copied = copy.deepcopy(module).get_submodule("layer")
    assert torch.equal(copied(x), adapted)
    with torch.no_grad():
        copied.get_parameter(B).zero_()
    assert torch.equal(layer(x), adapted), "a copy has parameters of its own"
    changed = list(merge(plain, trained(module), lora.scale))
    assert changed == ["layer.weight"]
    torch.testing.assert_close(plain.get_submodule("layer")(x), adapted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted, network(name)[0].get_submodule("layer")(x), atol=1e-2)


def test_square_kernels_have_the_published_form() -> None:
    module = nn.ModuleDict({"layer": nn.Conv2d(6, 4, 3)})
    Lora(module, "layer", rank=2, alpha=1.0)
    shapes = {name: tuple(value.shape) for name, value in trained(module).items()}
    assert shapes == {"layer.lora_A": (6, 18), "layer.lora_B": (12, 6)}


def test_what_else_is_trained_is_named() -> None:
    module = nn.ModuleDict({"layer": nn.Linear(3, 3), "planes": nn.Linear(3, 2), "other": nn.Linear(3, 3)})
    lora = Lora(module, "layer", rank=1, alpha=1.0, also_train="planes")
    assert lora.others == ("planes.weight", "planes.bias")
    assert set(trained(module)) == {"layer.lora_A", "layer.lora_B", "planes.weight", "planes.bias"}


def test_only_layers_that_learn_are_adapted() -> None:
    module = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3).requires_grad_(False)})
    assert Lora(module, "o", rank=1, alpha=1.0).layers == ("one",)


def frozen() -> nn.Module:
    return nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3).requires_grad_(False)})


@pytest.mark.parametrize(
    ("make", "match", "words"),
    [
        (frozen, "three", r"'three' finds no layer: there are one"),
        (frozen, "two", r"only layers that this task does not train, such as two: there are one"),
        (frozen, "(", "no regular expression"),
        (lambda: nn.ModuleDict({"norm": nn.LayerNorm(3)}), "norm", r"kinds LayerNorm, which cannot be adapted"),
        (lambda: nn.ModuleDict({"s": SpectralLinear(3, 3)}), "s", r"SpectralLinear, which cannot be adapted"),
    ],
)
def test_a_match_that_finds_nothing_is_an_error(make: Callable[[], nn.Module], match: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Lora(make(), match, rank=1, alpha=1.0)
    with pytest.raises(ValueError, match="finds no parameter"):
        Lora(frozen(), "one", rank=1, alpha=1.0, also_train="nothing")


def test_an_adapter_goes_with_its_weights_alone(tmp_path: Path) -> None:
    module, x = network("2d")
    base, other = copy.deepcopy(module), copy.deepcopy(module)
    lora = Lora(module, "layer", rank=2, alpha=1.0)
    with torch.no_grad():
        module.get_submodule("layer").get_parameter(B).normal_()
    settings = AdapterSettings(task="toy", match="layer", rank=2, alpha=1.0, base_sha256=parameter_hash(base))
    Adapter(settings=settings, tensors=trained(module)).write(tmp_path / "adapter")
    for folder in (tmp_path, tmp_path / "adapter"):
        found = Adapter.read(folder)
        assert found.settings == settings
        weights = copy.deepcopy(base)
        found.apply(weights, "base")
        torch.testing.assert_close(weights.get_submodule("layer")(x), module.get_submodule("layer")(x))
    assert lora.scale == 0.5
    with torch.no_grad():
        other.get_submodule("other").get_parameter("bias").add_(1)
    with pytest.raises(ValueError, match=r"belongs to weights with sha256 .* of another have"):
        Adapter.read(tmp_path).apply(other, "another")
    (tmp_path / "adapter" / "adapter.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        Adapter.read(tmp_path)
    with pytest.raises(ValueError, match="there is no adapter in"):
        Adapter.read(tmp_path / "nothing")


def test_an_adapter_of_another_model_is_refused() -> None:
    module, _ = network("linear")
    with pytest.raises(ValueError, match=r"changes elsewhere.weight, which these weights lack"):
        merge(module, {"elsewhere.lora_A": torch.zeros(1, 1), "elsewhere.lora_B": torch.zeros(1, 1)}, 1.0)
    with pytest.raises(ValueError, match=r"does not fit layer.weight"):
        merge(module, {"layer.lora_A": torch.zeros(1, 5), "layer.lora_B": torch.zeros(4, 1)}, 1.0)
    with pytest.raises(ValueError, match=r"does not fit layer.weight"):
        merge(module, {"layer.lora_A": torch.zeros(1, 6)}, 1.0)
