"""Transfers between the host and the device for which neither waits: microbatches, numbers, and figures.

The host is ahead of a GPU: it asks for work that is done later. Asking for a number makes it wait until the GPU is
there, and the GPU then waits for the host. So what goes to the GPU comes from pinned memory, and what comes back is
read when it has arrived. On a CPU both are one, and nothing is copied.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from train.task import Batch
from train.trainer.parallel import moved
from train.trainer.throughput import Throughput

_POLL_S = 0.01
"""Seconds between two questions to a device whether it is done."""


def sent(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers of the host on a device, `[N]` float64."""
    host = torch.from_numpy(np.array(values, dtype=np.float64))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


class Returning:
    """Numbers of the device on their way to the host, in one copy.

    Args:
        values: Kind → name → scalar; they may change once this is made.
    """

    def __init__(self, values: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._names = {kind: tuple(named) for kind, named in values.items()}
        numbers = [number for named in values.values() for number in named.values()]
        self._host = torch.stack([number.detach().double() for number in numbers])
        self._arrived: torch.cuda.Event | None = None
        if self._host.device.type == "cuda":
            there = self._host
            self._host = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            self._host.copy_(there, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def arrived(self, patience_s: float) -> bool:
        """Whether the numbers are on the host, or get there within some seconds."""
        if self._arrived is None:
            return True
        until = time.monotonic() + patience_s
        while not (there := self._arrived.query()) and time.monotonic() < until:
            time.sleep(_POLL_S)
        return there

    def read(self) -> dict[str, dict[str, float]]:
        """Kind → name → number. Waits for the device, if it is not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers = iter(self._host.tolist())
        return {kind: {name: next(numbers) for name in names} for kind, names in self._names.items()}


class Ahead:
    """Microbatches on their way to the device: each is copied while the one before it is worked on.

    On a GPU the copies have a stream of their own. It takes memory for one microbatch more.

    Args:
        device: Device of the training.
        clock: Clock of the steps; `to_device` is how long the device waits for a copy.
    """

    def __init__(self, device: torch.device, clock: Throughput) -> None:
        self.device, self.clock = device, clock
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # By the identity of the batch, which is kept along so that no other gets the same.
        self._started: dict[int, tuple[Batch, Batch, torch.cuda.Event]] = {}

    def start(self, batch: Batch) -> None:
        """Begin to copy a microbatch that `take` will ask for."""
        if self._stream is None or id(batch) in self._started:
            return
        with torch.cuda.stream(self._stream):
            there = moved(batch, self.device)
            done = torch.cuda.Event()
            done.record()
        self._started[id(batch)] = batch, there, done

    def take(self, batch: Batch) -> Batch:
        """Microbatch on the device; once for each `start`, and also without."""
        with self.clock.on_device("to_device"):
            if id(batch) not in self._started:
                return moved(batch, self.device)
            _, there, done = self._started.pop(id(batch))
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(done)
        for value in there.values():
            if torch.is_tensor(value):
                # Its memory is of the other stream, and must not be used again before this one is done with it.
                value.record_stream(stream)
        return there

    def in_turn(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Microbatches, each to be taken while the next one is copied."""
        for number, batch in enumerate(batches):
            for one in batches[number : number + 2]:
                self.start(one)
            yield batch
