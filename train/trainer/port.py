"""What a rank knows of its launcher, so that the training loop needs to know none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Port(Protocol):
    """A rank's place among the ranks, and its line to whoever started them."""

    @property
    def rank(self) -> int:
        """This process, 0 … world - 1."""
        ...

    @property
    def world(self) -> int:
        """How many ranks there are."""
        ...

    @property
    def local_rank(self) -> int:
        """This process among those of its machine."""
        ...

    @property
    def local_world(self) -> int:
        """How many ranks run on this machine."""
        ...

    def report(self, metrics: Mapping[str, float]) -> None:
        """Say how far the run is. Every rank calls it at the same steps."""
        ...

    def preempting(self) -> bool:
        """Whether this run will soon be cut short, so that a checkpoint is due now; True once for each notice.

        Every rank calls it at the same steps: they may wait for each other in it. It costs milliseconds: ask once in
        a second or so.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LocalPort:
    """One process alone, or one of those that torchrun started. Nobody listens, nobody preempts (but by a signal)."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls) -> LocalPort:
        """From the variables that torchrun sets."""
        number = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
        return cls(
            rank=number["RANK"],
            world=number["WORLD_SIZE"],
            local_rank=number["LOCAL_RANK"],
            local_world=number["LOCAL_WORLD_SIZE"],
        )

    def report(self, metrics: Mapping[str, float]) -> None:
        """Nobody listens."""

    def preempting(self) -> bool:
        """Never."""
        return False


class RayPort:
    """A worker of Ray Train.

    Args:
        session: The module `ray.train`; only the launcher imports it.
        stop_file: Put there by the launcher when it will end the run at the next checkpoint.
    """

    def __init__(self, session: Any, stop_file: Path) -> None:
        context = session.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()
        self.local_rank: int = context.get_local_rank()
        self.local_world: int = context.get_local_world_size()
        self._session = session
        self._stop_file = stop_file
        self._known: Any = None

    def report(self, metrics: Mapping[str, float]) -> None:
        """Show the figures in Ray's state; checkpoints are not Ray's."""
        # Without waiting for the controller, which looks only every 2 s.
        mode = self._session.CheckpointUploadMode.ASYNC
        self._session.report(dict(metrics), checkpoint_upload_mode=mode)

    def preempting(self) -> bool:
        """Whether Ray drains a node of this run, or the launcher was asked to stop."""
        notice = (self._session.get_preemption_info(), self._stop_file.exists())
        new = notice != self._known and notice != (None, False)
        self._known = notice
        return new
