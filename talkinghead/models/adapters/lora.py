"""LoRA: low-rank additions to the weights of frozen layers (Hu et al., arXiv 2106.09685).

An adapted layer computes with W + alpha / rank · B A. A is drawn, B is zero, so that it first computes what it did
before, to the bit. `lora_A` and `lora_B` are parameters of the layer itself: no other name of the module changes.

| layer | A | B | product |
|---|---|---|---|
| linear, `[out, in]` | `[r, in]` | `[out, r]` | |
| convolution, `[out, in / groups, k, k]` | `[r k, in / groups k]` | `[out k, r k]` | read row by row as the kernel |
| any other convolution, `[out, in / groups, …]` | `[r, in / groups …]` | `[out, r]` | the same |

The form of square kernels is that of published adapters (MimicTalk). A layer that scales its weight when it runs, such
as a modulated convolution, is `Adaptable`: it adds what it is given after its gain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

A, B = "lora_A", "lora_B"
"""Names of the parameters in a layer."""

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@runtime_checkable
class Adaptable(Protocol):
    """Layer that takes an addition to its weight after a gain of its own."""

    weight: nn.Parameter

    @property
    def gain(self) -> float:
        """Factor on the weight at run time."""
        ...

    def adapt(self, delta: Callable[[], Tensor]) -> None:
        """From now on compute with `weight * gain + delta()`."""
        ...


class Lora:
    """Low-rank additions in the layers of a module, all of one rank.

    Args:
        module: Module; its adapted layers are changed in place, and all its parameters are frozen but the new ones.
        match: Regular expression that is searched for in the names of the layers. Layers that are frozen stay so:
            what does not learn gives an addition no gradient either.
        rank: Rank of the additions.
        alpha: Factor alpha; the addition is scaled by alpha / rank.
        also_train: Regular expression of parameters that are trained next to them; None: none.

    Raises:
        ValueError: No layer matches, a matching one cannot be adapted, or no parameter is `also_train`.
    """

    def __init__(self, module: nn.Module, match: str, rank: int, alpha: float, also_train: str | None = None) -> None:
        if rank < 1 or not 0 < alpha < math.inf:
            raise ValueError(f"a LoRA has a rank of at least 1 and an alpha above 0, not {rank} and {alpha}")
        self.scale = alpha / rank
        found = _matching(module, match)
        module.requires_grad_(False)
        for layer in found.values():
            _adapt(layer, rank, self.scale)
        self.layers = tuple(found)
        """Names of the adapted layers."""
        self.others = tuple(_released(module, also_train))
        """Names of the parameters that are trained next to them."""


def merged_weight(layer: nn.Module, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Weight of a layer with an addition in it, `scale` times the product of B and A, of the type of the weight.

    Args:
        layer: The layer, adapted or not.
        weight: Its weight without the addition.
        a: Its A.
        b: Its B.
        scale: alpha / rank.
    """
    gain = 1.0 if isinstance(layer, _PLAIN) else layer.gain
    assert isinstance(gain, float)
    addition = (b.float() @ a.float()).view(weight.shape) * (scale / gain)
    return (weight.detach().float() + addition.to(weight.device)).to(weight.dtype)


def forms(weight: Tensor, rank: int, *, square: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of A and B for a weight.

    Args:
        weight: Weight of the layer, `[out, in / groups, …]`.
        rank: Rank of the addition.
        square: Whether it is a kernel `[out, in / groups, k, k]`, in the published form.
    """
    side = weight.shape[-1] if square else 1
    columns = weight[0].numel() // side
    return (rank * side, columns), (weight.numel() // columns, rank * side)


# --- layers -----------------------------------------------------------------------------------------------------------


def _matching(module: nn.Module, match: str) -> dict[str, nn.Module]:
    """Layers of a module whose names match, and that can be adapted; others of these names are containers."""
    try:
        pattern = re.compile(match)
    except re.error as error:
        raise ValueError(f"--lora.match {match!r} is no regular expression: {error}") from error
    named = {name: layer for name, layer in module.named_modules() if pattern.search(name)}
    found = {name: layer for name, layer in named.items() if _can_adapt(layer)}
    if frozen := [name for name, layer in found.items() if not _weight(layer).requires_grad]:
        if len(frozen) == len(found):
            raise ValueError(
                f"--lora.match {match!r} finds only layers that this task does not train, such as {frozen[0]}:"
                f" {_some_names(module)}"
            )
        found = {name: layer for name, layer in found.items() if name not in set(frozen)}
    if not found:
        kinds = sorted({type(layer).__name__ for layer in named.values() if [*layer.parameters(False)]})
        what = f"only layers of the kinds {', '.join(kinds)}, which cannot be adapted" if kinds else "no layer"
        raise ValueError(f"--lora.match {match!r} finds {what}: {_some_names(module)}")
    return found


def _can_adapt(layer: nn.Module) -> bool:
    # A weight that is made of others (weight norm, spectral norm) is no parameter to add to.
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return False
    # Layers that override the forward of the plain ones compute something else; they say how by `adapt`.
    if isinstance(layer, _PLAIN):
        plain = next(kind for kind in _PLAIN if isinstance(layer, kind))
        return type(layer).forward is plain.forward
    return isinstance(layer, Adaptable)


def _weight(layer: nn.Module) -> nn.Parameter:
    return layer.get_parameter("weight")


def _some_names(module: nn.Module) -> str:
    names = [name for name, layer in module.named_modules() if _can_adapt(layer) and _weight(layer).requires_grad]
    return f"there are {', '.join(names[:3])} … {names[-1]}" if names else "it has none that can be adapted"


def _released(module: nn.Module, match: str | None) -> Iterator[str]:
    """Make parameters trainable, and name them."""
    if match is None:
        return
    try:
        pattern = re.compile(match)
    except re.error as error:
        raise ValueError(f"--lora.also-train {match!r} is no regular expression: {error}") from error
    some = False
    for name, parameter in module.named_parameters():
        if pattern.search(name) and name.rpartition(".")[2] not in (A, B):
            parameter.requires_grad_(True)
            some = True
            yield name
    if not some:
        raise ValueError(f"--lora.also-train {match!r} finds no parameter")


def _adapt(layer: nn.Module, rank: int, scale: float) -> None:
    weight = _weight(layer)
    square = weight.ndim == 4 and weight.shape[2] == weight.shape[3] and weight.shape[2] > 1
    a, b = forms(weight, rank, square=square)
    like: dict[str, Any] = {"device": weight.device, "dtype": torch.float32}
    layer.register_parameter(A, nn.Parameter(torch.empty(a, **like)))
    layer.register_parameter(B, nn.Parameter(torch.zeros(b, **like)))
    nn.init.kaiming_uniform_(layer.get_parameter(A), a=math.sqrt(5))
    if isinstance(layer, _PLAIN):
        # A class of its own that knows the addition; everything else of the layer stays as it is.
        layer.lora_scale = scale  # pyright: ignore[reportArgumentType]
        kind = _LinearWithLora if isinstance(layer, nn.Linear) else _ConvolutionWithLora
        layer.__class__ = type(f"Lora{type(layer).__name__}", (kind, type(layer)), {})  # pyright: ignore
    else:
        assert isinstance(layer, Adaptable)
        layer.adapt(_Addition(layer, scale))


class _Addition:
    """Addition to the weight of an adaptable layer; copied together with it."""

    def __init__(self, layer: nn.Module, scale: float) -> None:
        self._layer, self._scale = layer, scale

    def __call__(self) -> Tensor:
        layer = self._layer
        return (layer.get_parameter(B) @ layer.get_parameter(A)).view(_weight(layer).shape) * self._scale


class _LinearWithLora(nn.Module):
    lora_scale: float

    def forward(self, x: Tensor) -> Tensor:
        # Two thin products rather than the whole matrix, whose gradient would take as much memory as the weight's.
        thin = functional.linear(x, self.get_parameter(A))
        return super().forward(x) + functional.linear(thin, self.get_parameter(B)) * self.lora_scale


class _ConvolutionWithLora(nn.Module):
    lora_scale: float

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        addition = (self.get_parameter(B) @ self.get_parameter(A)).view(weight.shape) * self.lora_scale
        return super()._conv_forward(x, weight + addition, bias)  # pyright: ignore[reportAttributeAccessIssue]


# --- adapters as files ------------------------------------------------------------------------------------------------


def merge(module: nn.Module, tensors: Mapping[str, Tensor], scale: float) -> Iterable[str]:
    """Add an adapter to the weights of a module that was not adapted, in place.

    Args:
        module: Module.
        tensors: `<layer>.lora_A` and `<layer>.lora_B` of each adapted layer, and whole parameters by their names.
        scale: alpha / rank.

    Returns:
        Names of the parameters that have changed.

    Raises:
        ValueError: The adapter names a layer that the module lacks, or has another shape than its weight.
    """
    changed = []
    parameters = dict(module.named_parameters())
    for name, tensor in tensors.items():
        layer_name, _, kind = name.rpartition(".")
        if kind == B:
            continue
        target = f"{layer_name}.weight" if kind == A else name
        if target not in parameters:
            raise ValueError(f"the adapter changes {target}, which these weights lack: it is of another model")
        try:
            if kind == A:
                layer = module.get_submodule(layer_name)
                value = merged_weight(layer, parameters[target], tensor, tensors[f"{layer_name}.{B}"], scale)
            else:
                value = tensor.view(parameters[target].shape)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the adapter does not fit {target}: it is damaged, or of another model") from error
        with torch.no_grad():
            parameters[target].copy_(value)
        changed.append(target)
    return changed
