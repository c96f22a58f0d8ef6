"""Watch over a training: its figures, times, operations, networks, held-out loss and profile. It changes nothing of it.

docs/watching.md lists every figure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from train.config import TrainConfig
from train.run.run_folder import RunFolder
from train.task import Task
from train.trainer.figures import Interval
from train.trainer.flops import FlopCount, Work, peak_of
from train.trainer.held_out import HeldOut
from train.trainer.learner import Learner
from train.trainer.network_norms import NetworkNorms
from train.trainer.parallel import bare, over_ranks
from train.trainer.port import Port
from train.trainer.profile import Profiler
from train.trainer.throughput import Throughput

log = logging.getLogger(__name__)


class Watch:
    """Everything that looks at a training, on one rank. Every rank makes one, and all call the same methods.

    Args:
        task: Task in training.
        learner: Its module.
        critic: Critic of its adversary.
        clock: Clock of the steps.
        config: Settings of the trainer.
        run: Folder of the run.
        port: Place of this rank.

    Attributes:
        interval: Figures since the last line.
        networks: Gradients and updates of each network, for steps that end with a line.

    Raises:
        ValueError: A profile was asked for that this device cannot give.
    """

    def __init__(
        self,
        task: Task,
        learner: Learner,
        critic: Learner | None,
        clock: Throughput,
        config: TrainConfig,
        run: RunFolder,
        port: Port,
    ) -> None:
        self.learner, self.clock, self.config, self.port = learner, clock, config, port
        self.device = clock.device
        self.interval = Interval(clock)
        self.held_out = HeldOut(task, learner, critic, config, self.device, port.rank, port.world)
        self.networks = NetworkNorms(learner, task.networks)
        self._profiler = Profiler(run.path / "profile", config.log, self.device, port.rank)

    def announce(self, step: int) -> None:
        """Log where and how a training begins.

        Args:
            step: Number of steps that are done.
        """
        parallel = self.config.parallel
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        parameters = list(bare(self.learner.module).parameters())
        trained = sum(p.numel() for p in self.learner.parameters.values())
        log.info(
            "training on %d x %s (%s, %s%s): %s; %s of %s parameters trained; %s",
            self.port.world,
            name,
            parallel.strategy,
            parallel.precision,
            ", compiled" if parallel.compile else "",
            self.config.arithmetic(self.port.world),
            f"{trained:,}",
            f"{sum(p.numel() for p in parameters):,}",
            f"from the checkpoint of step {step}" if step else "from the first step",
        )

    @contextmanager
    def counting(self, samples: int) -> Iterator[None]:
        """Context of a forward and backward pass over some samples, in which its operations are counted. Collective.

        Args:
            samples: Number of samples of this rank.
        """
        with FlopCount() as count:
            yield
        sums = torch.tensor([count.flops, samples], dtype=torch.float64, device=self.device)
        flops, everyones = over_ranks(sums)
        gpu = self.device.type == "cuda"
        peak = peak_of(torch.cuda.get_device_name(self.device), self.config.parallel) if gpu else None
        self.clock.work = Work(flops=flops / everyones, world=self.port.world, peak=peak)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Context of step `step`, from 1."""
        self._profiler.before(step)
        with self.clock.step():
            yield
        self._profiler.after(step)

    def has_line(self, step: int) -> bool:
        """Whether step `step`, from 1, ends with a line of figures."""
        return step == self.config.steps or step % self.config.log.every == 0

    def close(self, step: int) -> None:
        """Write what is left of a profile, where a training ends early after some steps."""
        self._profiler.close(step)
