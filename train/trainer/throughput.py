"""Speed of a training, and where its time goes, from one line of `metrics.jsonl` to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from talkinghead.runtime.peak_memory import peak_memory
from train.trainer.parallel import over_ranks


class Throughput:
    """Clock of one rank over the steps between two lines.

    Args:
        device: Device of the training. It works on after Python has moved on: end `step` only after a result of the
            step was read.

    Attributes:
        steps: Number of steps in the interval.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Context of a whole step, whose time is counted."""
        start = time.perf_counter()
        yield
        self._step_s += time.perf_counter() - start
        self.steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context of the part of a step in which it waits for data."""
        start = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - start

    def interval(self, samples: float) -> dict[str, float]:
        """Figures since the last call. Collective.

        Args:
            samples: Number of samples of all steps since, over all ranks.

        Returns:
            `samples_per_s` (over all ranks, with checkpoints and whatever else took time), `step_s`, `data_wait` (share
            of the steps' time), `memory_gb` (10⁹ bytes): each from the rank where it is worst. Memory is the most that
            tensors took on the GPU; on a CPU the largest resident size of the process so far, because no system keeps
            that for intervals.
        """
        elapsed = time.perf_counter() - self._start
        mine = [elapsed, self._step_s / max(1, self.steps), self._wait_s / max(self._step_s, 1e-9), self._memory_gb()]
        # The worst rank sets the pace. float64 keeps times exact; one exchange for all four numbers.
        slowest, step_s, data_wait, memory_gb = over_ranks(
            torch.tensor(mine, dtype=torch.float64, device=self.device), dist.ReduceOp.MAX
        )
        self.restart()
        return {
            "samples_per_s": samples / slowest,
            "step_s": step_s,
            "data_wait": data_wait,
            "memory_gb": memory_gb,
        }

    def restart(self) -> None:
        """Begin a new interval here."""
        self._start = time.perf_counter()
        self.steps, self._step_s, self._wait_s = 0, 0.0, 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _memory_gb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return peak_memory() / 1e9
