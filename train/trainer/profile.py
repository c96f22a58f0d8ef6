"""Profile of a few steps: a Chrome trace of each rank, and on a GPU what its memory held."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from train.config import LogConfig

log = logging.getLogger(__name__)

_MOST_EVENTS = 1_000_000
"""Number of allocations that a memory snapshot holds, the newest ones."""


class Profiler:
    """Profiler of one rank; does nothing in steps that were not asked for.

    Args:
        folder: RUN/profile; made when there is something to write.
        config: Which steps.
        device: Device of the training.
        rank: Number of this process.

    Raises:
        ValueError: A memory snapshot was asked for, and the device is no GPU.
    """

    def __init__(self, folder: Path, config: LogConfig, device: torch.device, rank: int) -> None:
        if config.memory_snapshot and device.type != "cuda":
            raise ValueError(
                f"log.memory_snapshot is of a GPU's memory, and this training is on {device.type}: leave it out"
            )
        self.folder, self.rank = folder, rank
        self._steps = config.profile_range
        self._snapshot = config.memory_snapshot
        self._device = device
        self._running: Any = None
        self._first = 0

    def before(self, step: int) -> None:
        """Begin where step `step`, from 1, is the first one to be profiled."""
        if self._running is None and step in self._steps:
            self._first = step
            if self._snapshot:
                torch.cuda.memory._record_memory_history(max_entries=_MOST_EVENTS)
            gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._running = profile(activities=[ProfilerActivity.CPU, *gpu], record_shapes=True)
            self._running.start()

    def after(self, step: int) -> None:
        """Write the files after the last step that is profiled."""
        if self._running is not None and step == self._steps[-1]:
            self._write(step)

    def close(self, step: int) -> None:
        """Write what there is, where the training ends early.

        Args:
            step: Number of steps that are done.
        """
        if self._running is not None:
            self._write(step)

    def _write(self, last: int) -> None:
        running, self._running = self._running, None
        running.stop()
        self.folder.mkdir(exist_ok=True)
        name = f"steps-{self._first}-{last}-rank-{self.rank}"
        trace = self.folder / f"{name}.json.gz"
        running.export_chrome_trace(str(trace))
        log.info("profile of steps %d … %d: %s (open it at ui.perfetto.dev)", self._first, last, trace)
        if self._snapshot:
            snapshot = self.folder / f"{name}-memory.pickle"
            torch.cuda.memory._dump_snapshot(str(snapshot))
            torch.cuda.memory._record_memory_history(enabled=None)
            log.info("memory of these steps: %s (open it at pytorch.org/memory_viz)", snapshot)
