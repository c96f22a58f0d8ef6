"""Speed of a training, and where its time goes, from one line of `metrics.jsonl` to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable

from talkinghead.runtime.peak_memory import peak_memory
from train.trainer.flops import Work
from train.trainer.parallel import over_ranks

Part = Literal["data_wait", "to_device", "all_reduce"]
"""Part of a step: waiting for data, for its copy to the device, and for the exchange of gradients and sums (with slower
ranks), each as far as no computation goes on meanwhile. What FSDP2 gathers before it computes is not seen."""
PARTS: tuple[Part, ...] = ("data_wait", "to_device", "all_reduce")
Timed = tuple[Part, torch.cuda.Event, torch.cuda.Event]
"""Part of a step on a GPU, and the events before and after it."""
TIMES = ("samples_per_s", "step_s", *PARTS, "checkpoint_wait", "tflops", "mfu", "memory_gb", "allocator_retries")
"""Figures of a line that tell of the machine rather than of what is learnt: they differ from one start to the next."""


class Throughput:
    """Clock of one rank over the steps between two lines.

    Args:
        device: Device of the training. It works on after Python has moved on, so that Python's time of a single step
            may be that of a step before; over the steps between two lines, at whose ends Python waits, both agree.

    Attributes:
        steps: Number of steps in the interval.
        work: What a sample costs, once it is known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.work: Work | None = None
        self._cuda = device.type == "cuda"
        self.restart()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Context of a whole step, whose time is counted."""
        start = time.perf_counter()
        yield
        self._step_s += time.perf_counter() - start
        self.steps += 1

    def launched(self) -> list[Timed]:
        """Parts that the device has been given since this was called last."""
        launched, self._on_device = self._on_device, []
        return launched

    def settle(self, launched: Sequence[Timed]) -> None:
        """Count the times of parts of a step, of which a result has been read that came after them."""
        for part, begin, end in launched:
            self._part_s[part] += begin.elapsed_time(end) / 1000

    @contextmanager
    def waiting(self, part: Part = "data_wait") -> Iterator[None]:
        """Context of a part of a step in which the host waits: for data, or for other ranks."""
        start = time.perf_counter()
        yield
        self._part_s[part] += time.perf_counter() - start

    @contextmanager
    def on_device(self, part: Part) -> Iterator[None]:
        """Context of a part of a step that the device does; on a GPU it is timed there."""
        start = self._now()
        yield
        self._add(part, start)

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Context in which the ranks wait for a checkpoint."""
        start = time.perf_counter()
        yield
        self._checkpoint_s += time.perf_counter() - start

    def backward(self, objective: Tensor, *, exchanges: bool) -> None:
        """Backward pass of a scalar.

        Args:
            objective: What is minimised.
            exchanges: Whether ranks exchange gradients in it. The end of it, when all gradients are there and the last
                of them are still on their way, is counted as `all_reduce`.
        """
        started: list[Any] = []
        if exchanges:
            # Callbacks run in the order in which they were queued, and DDP and FSDP2 queue theirs, which wait for the
            # exchange, later in the pass.
            engine = Variable._execution_engine
            mark = lambda: started.append(self._now())  # noqa: E731
            objective.register_hook(lambda _: engine.queue_callback(mark))
        objective.backward()
        if started:
            self._add("all_reduce", started[0])

    def interval(self, samples: float) -> dict[str, float]:
        """Figures since the last call. Collective.

        Args:
            samples: Number of samples of all steps since, over all ranks.

        Returns:
            `samples_per_s` (over all ranks, with checkpoints and whatever else took time), `step_s`, the shares
            `data_wait`, `to_device` and `all_reduce` of the steps' time and `checkpoint_wait` of all time, `memory_gb`
            (10⁹ bytes): each from the rank where it is worst. Memory is the most that tensors took on the GPU; on a CPU
            the largest resident size of the process so far, because no system keeps that for intervals. Where the work
            is known `tflops` (10¹² operations a second of each rank) and, where the device's peak is, `mfu`, its share
            of that; on a GPU `allocator_retries`.
        """
        elapsed = time.perf_counter() - self._start
        steps_s = max(self._step_s, 1e-9)
        mine = [elapsed, self._step_s / max(1, self.steps), self._checkpoint_s / elapsed, self._memory_gb()]
        mine += [self._part_s[part] / steps_s for part in PARTS]
        mine.append(float(_retries(self.device) - self._retries))
        # The worst rank sets the pace. float64 keeps times exact; one exchange for all numbers.
        slowest, step_s, checkpoint_wait, memory_gb, *parts, retries = over_ranks(
            torch.tensor(mine, dtype=torch.float64, device=self.device), dist.ReduceOp.MAX
        )
        figures = {"samples_per_s": samples / slowest, "step_s": step_s, **dict(zip(PARTS, parts, strict=True))}
        figures |= {"checkpoint_wait": checkpoint_wait, "memory_gb": memory_gb}
        if self.work is not None:
            figures |= self.work.figures(figures["samples_per_s"])
        if self._cuda:
            figures["allocator_retries"] = retries
        self.restart()
        return figures

    def restart(self) -> None:
        """Begin a new interval here."""
        self._start = time.perf_counter()
        self.steps, self._step_s, self._checkpoint_s = 0, 0.0, 0.0
        self._part_s: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        self._on_device: list[Timed] = []
        self._retries = _retries(self.device)
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def _now(self) -> Any:
        """The time: of the host in seconds, or an event on the GPU, which is passed in the order of its work."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _add(self, part: Part, start: Any) -> None:
        end = self._now()
        if self._cuda:
            self._on_device.append((part, start, end))
        else:
            self._part_s[part] += end - start

    def _memory_gb(self) -> float:
        if self._cuda:
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return peak_memory() / 1e9


def _retries(device: torch.device) -> int:
    """Number of times that the allocator of a GPU had to give memory back before it got some."""
    return torch.cuda.memory_stats(device).get("num_alloc_retries", 0) if device.type == "cuda" else 0
