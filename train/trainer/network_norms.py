"""Gradients and updates of each network of a module: which part learns, and how fast."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from train.trainer.eight_bit_adam import moments_of
from train.trainer.learner import Learner
from train.trainer.parallel import local, reduced

GRADIENT = "network_gradient_norm/"
UPDATE = "network_update_ratio/"


def network_of(name: str, networks: Mapping[str, str]) -> str:
    """Network that a parameter belongs to: the first whose expression is found in its name, else the first part of it.

    Args:
        name: Name of the parameter in the bare module.
        networks: Name of a network → regular expression.
    """
    return next((network for network, match in networks.items() if re.search(match, name)), name.split(".")[0])


class NetworkNorms:
    """Norms over the networks of a module in training, scalars on the device. They cost about as much as an update: ask
    for them now and then.

    No copy of the weights is kept: what Adam has changed follows from its moments.

    Args:
        learner: Module in training.
        networks: Networks that are told apart inside the parts of the module, see `network_of`.
    """

    def __init__(self, learner: Learner, networks: Mapping[str, str]) -> None:
        self.learner = learner
        self._network = {name: network_of(name, networks) for name in learner.parameters}
        self._names = list(dict.fromkeys(self._network.values()))

    @torch.no_grad()
    def gradients(self) -> dict[str, Tensor]:
        """L2 norm of the gradient of each network, before clipping. Collective where gradients are sharded."""
        squares = self._zeros(1)
        for name, parameter in self.learner.parameters.items():
            if parameter.grad is not None:
                squares[self._place(name), 0] += _square(local(parameter.grad))
        norms = self._over_ranks(squares).sqrt()
        return {GRADIENT + name: norm for name, norm in zip(self._names, norms[:, 0], strict=True)}

    @torch.no_grad()
    def updates(self, step: int) -> dict[str, Tensor]:
        """L2 norm of what the newest update changed of each network, over that of its weights. Collective where they
        are sharded.

        Weights that the step did not move count as unchanged; NaN where all are 0.

        Args:
            step: Number of that step, from 0, which must not have been skipped.
        """
        squares = self._zeros(2)
        active = self.learner.active(step)
        optimizer = self.learner.optimizer
        settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self.learner.parameters.items():
            place, weight = self._place(name), local(parameter.detach())
            squares[place, 1] += _square(weight)
            if name in active:
                squares[place, 0] += _square(_update(weight, optimizer.state[parameter], settings[id(parameter)]))
        changed, whole = self._over_ranks(squares).unbind(1)
        ratios = (changed / whole).sqrt().masked_fill(whole == 0, math.nan)
        return {UPDATE + name: ratio for name, ratio in zip(self._names, ratios, strict=True)}

    def _zeros(self, columns: int) -> Tensor:
        device = next(iter(self.learner.parameters.values())).device
        return torch.zeros(len(self._names), columns, dtype=torch.float64, device=device)

    def _place(self, name: str) -> int:
        return self._names.index(self._network[name])

    def _over_ranks(self, squares: Tensor) -> Tensor:
        # Shards lie on one rank each; what is not sharded, every rank has as a whole.
        sharded = any(isinstance(p, DTensor) for p in self.learner.parameters.values())
        return reduced(squares) if sharded else squares


def _square(tensor: Tensor) -> Tensor:
    """Sum of the squares, float64."""
    return torch.linalg.vector_norm(tensor.float()).double().square()


def _update(weight: Tensor, state: Mapping[str, Tensor], settings: Mapping[str, object]) -> Tensor:
    """What the newest update of Adam or AdamW has added to a weight.

    Kingma and Ba, arXiv 1412.6980, algorithm 1, with the decoupled decay of Loshchilov and Hutter, arXiv 1711.05101:
    new = (1 - rate · decay) · old - rate · m̂ / (√v̂ + ε), solved for new - old.
    """
    rate, eps, decay = (float(settings[name]) for name in ("lr", "eps", "weight_decay"))  # pyright: ignore
    beta1, beta2 = settings["betas"]  # pyright: ignore
    moment, square = map(local, moments_of(state))
    count = state["step"]
    first, second = 1 - beta1**count, 1 - beta2**count
    step = moment / (square.div(second.to(square)).sqrt_().add_(eps)) * (rate / first.to(moment))
    if not decay:
        return step
    return step.add_(weight, alpha=rate * decay).div_(1 - rate * decay)
