"""Crew of a validation: the processes that measure its clips, each a share of them; mostly a single one.

With `validation.device ranks` it is all ranks of a training. They exchange what they have measured, numbers only, and
each exchange also tells whether somebody has failed: then all stop at the same exchange, and none waits for an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class CrewError(RuntimeError):
    """Another process of the crew has failed; the message is its error."""


@dataclass(frozen=True)
class Crew:
    """Place of this process in a crew. All of its processes call the same methods in the same order.

    Args:
        rank: Number of this process.
        world: Number of processes.
        group: Process group in which they exchange objects; None for a single process.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def own(self, items: Sequence[T], before: int = 0) -> list[T]:
        """Share of this process.

        Args:
            items: Items to share out, in turn.
            before: Number of items that were shared out before these, so that the turns go on.
        """
        return [item for number, item in enumerate(items, before) if number % self.world == self.rank]

    def exchange(self, value: T) -> list[T]:
        """Values of all processes, in their order. Collective.

        Raises:
            CrewError: One has failed.
        """
        return self._answers(value, None)

    def end(self, error: Exception | None) -> None:
        """Say how this process's part has ended. Collective; not after a `CrewError`, which all have got.

        Args:
            error: Error of this process; None: it has done its part.

        Raises:
            CrewError: Another one has failed, and this one has not.
        """
        self._answers(None, None if error is None else str(error))

    def _answers(self, value: Any, error: str | None) -> list[Any]:
        answers: list[Any] = [(value, error)]
        if self.group is not None:
            answers = [None] * self.world
            dist.all_gather_object(answers, (value, error), group=self.group)
        if error is None and (failed := next((said for _, said in answers if said is not None), None)) is not None:
            raise CrewError(failed)
        return [value for value, _ in answers]


ONE = Crew()
"""Crew of a single process."""


def shared(function: Callable[[], T], crew: Crew) -> T:
    """Result of a part that the whole crew does, once all have done theirs. Collective.

    Args:
        function: Part of this process, in which it may exchange.
        crew: The crew.

    Raises:
        CrewError: Another process has failed.
        ValueError: This one has, for a reason of the data, the weights or the settings.
        OSError: This one has, at a file.
        RuntimeError: This one has, at the device.
    """
    try:
        result = function()
    except CrewError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        crew.end(error)
        raise
    crew.end(None)
    return result
