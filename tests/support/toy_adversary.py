"""A toy with everything that a task may do: a generator with BatchNorm against a critic with BatchNorm and spectral
normalisation, lazy R1, counts, terms over the whole batch, a buffer that follows the loss, and groups of parameters.

Register it with `TASKS["toy-adversary"] = "tests.support.toy_adversary"`. Each part can be left out by the config.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from talkinghead.models.running_statistics import BatchNorm, SpectralLinear
from tests.support import toy_task
from tests.support.toy_task import NUM_INPUTS, WEIGHTS, ToyTask
from train.config import OptimizerConfig, ParameterGroup, ScheduleConfig
from train.data_sets import DataSets
from train.recipe import Recipe
from train.run.crew import ONE, Crew
from train.task import Adversary, Losses, Step, Totals

R1_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class Config(toy_task.Config):
    """Settings of the toy."""

    free_settings: ClassVar[tuple[str, ...]] = (*toy_task.Config.free_settings, "kill_at")
    independent: ClassVar[bool] = False
    critic: bool = True
    critic_start: int = 0
    norm: bool = True
    """BatchNorm in generator and critic; without it, any microbatch gives the same."""
    r1: bool = True
    counts: bool = False
    term: float = 0.0
    """Weight of the term over the whole batch."""
    follow: bool = False
    """Whether a buffer follows the mean loss."""
    late_head: int = 0
    """First step in which the head learns."""
    bad_critic: tuple[int, ...] = ()
    """Slots whose critic's loss is NaN."""
    kill_at: int = -1
    """Slot in whose loss the process kills itself."""


class Generator(nn.Module):
    """Linear map with BatchNorm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_INPUTS, config.width, bias=False)  # the norm takes any bias away
        self.norm = BatchNorm(config.width) if config.norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, 2)
        self.blocks = nn.ModuleList()
        self.followed: Tensor
        self.register_buffer("followed", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 6]` → `[B, 2]`."""
        return self.head(self.dropout(torch.tanh(self.norm(self.first(x)))))


class Critic(nn.Module):
    """Judge of pairs of numbers."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first = SpectralLinear(2, 8, bias=False)
        self.norm = BatchNorm(8) if norm else nn.Identity()
        self.last = SpectralLinear(8, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """`[B, 2]` → `[B]`."""
        return self.last(torch.tanh(self.norm(self.first(pairs)))).squeeze(-1)


class ToyAdversary(Adversary):
    """Hinge loss with lazy R1."""

    optimizer = OptimizerConfig(name="adam", learning_rate=5e-3, betas=(0.5, 0.9))
    schedule = ScheduleConfig(name="linear")

    def __init__(self, config: Config) -> None:
        self.config, self.start = config, config.critic_start

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            return Critic(self.config.norm)

    def loss(
        self,
        critic: nn.Module,
        batch: dict[str, Any],
        made: Mapping[str, Tensor],
        *,
        seed: int,
        step: int,
        total: Totals,
    ) -> Losses:
        truth = true_pairs(batch).requires_grad_(True)
        # One call for both, since DDP allows no more.
        real, made_up = critic(torch.cat([truth, made["pairs"]])).chunk(2)
        hinge = torch.relu(1 - real) + torch.relu(1 + made_up)
        penalty = torch.zeros_like(hinge)
        if self.config.r1 and step % R1_EVERY == 0:
            (slope,) = torch.autograd.grad(real.sum(), truth, create_graph=True)
            penalty = R1_EVERY * slope.square().sum(dim=1)
        spoil = torch.tensor(
            [float("nan") if slot in self.config.bad_critic else 0.0 for slot in batch["slot"].tolist()]
        )
        return {"loss": hinge + penalty + spoil, "r1": penalty.detach()}


def true_pairs(batch: dict[str, Any]) -> Tensor:
    """True pairs of a batch, `[B, 2]`."""
    return torch.stack([batch["target"], batch["target"] ** 2], dim=1)


class ToyAdversaryTask(ToyTask):
    """Generator of pairs in training; see `train.task.Task`."""

    config: Config
    independent = Config.independent

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return Generator(self.config)

    def counts(self, batch: dict[str, Any], *, seed: int, step: int) -> dict[str, Tensor]:
        return {"weight": weights(batch)} if self.config.counts else {}

    def batch_terms(self, rows: Mapping[str, Tensor], *, seed: int, step: int) -> dict[str, Tensor]:
        # Not a sum over the samples: how far the pairs are spread.
        spread = rows["pairs"].var(dim=0).sum()
        return {"loss": self.config.term * (spread - 1).square(), "spread": spread}

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        late = self.config.late_head
        return (ParameterGroup(match=r"^head\.", rate=0.5, first=late),) if late else ()

    def adversary(self) -> Adversary | None:
        return ToyAdversary(self.config) if self.config.critic else None

    def after_step(self, module: nn.Module, means: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        assert isinstance(module, Generator)
        return {"followed": module.followed.lerp(means["loss"].float(), 0.1)} if self.config.follow else {}

    def loss(
        self,
        module: nn.Module,
        batch: dict[str, Any],
        *,
        seed: int,
        step: int,
        total: Totals,
        critic: nn.Module | None = None,
    ) -> Step:
        if self.config.kill_at in batch["slot"].tolist():
            os.kill(os.getpid(), signal.SIGKILL)
        pairs = module(batch["inputs"]).float()
        error = (pairs - true_pairs(batch)).square().sum(dim=1)
        if self.config.counts:
            error = error * weights(batch) * (total["samples"] / total["weight"])
        spoil = torch.tensor([float("nan") if slot in self.config.bad_loss else 0.0 for slot in batch["slot"].tolist()])
        fooled = -critic(pairs) if critic is not None and step >= self.config.critic_start else torch.zeros_like(error)
        losses = {"loss": error + 0.1 * fooled + spoil, "fooled": fooled.detach()}
        return Step(losses=losses, rows={"pairs": pairs} if self.config.term else {}, made={"pairs": pairs})

    def export(self, module: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), folder / WEIGHTS)
        (folder / "config.json").write_text(json.dumps({}))

    def validate(self, weights: Path, folder: Path, device: torch.device, crew: Crew = ONE) -> dict[str, float]:
        raise NotImplementedError


def weights(batch: dict[str, Any]) -> Tensor:
    """Weight of each sample, `[B]`, which the task counts."""
    return 1.0 + (batch["slot"] % 3).float()


def tiny() -> Recipe:
    """Eight steps."""
    base = toy_task.tiny()
    return Recipe(config=Config(), train=replace(base.train, global_batch=16, microbatch=4))


RECIPES = {"tiny": tiny}


def make(config: Config, data: DataSets | str, folder: Path) -> ToyAdversaryTask:
    """Toy task with an adversary."""
    return ToyAdversaryTask(config, data, folder)
