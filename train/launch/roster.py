"""What rank 0 knows about all ranks: when each has given a sign of life, and how far its main thread is."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace

from train.launch.failure import Failure

GONE = "ended without a word: it was killed, or its machine is gone"
"""What a rank has done whose connection closes."""
SILENT = "has given no sign of life for {:.0f} s: it is stopped, or its machine or network is gone"
"""What a rank has done that says nothing any more; with the seconds."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Newest sign of life of a rank, in seconds of one clock."""

    seen: float
    """When it came."""
    count: int = 0
    """How far the main thread is; see `Progress`."""
    doing: str | None = None
    since: float = 0.0
    """Since when it does that."""


class Roster:
    """Signs of life of all ranks that have not said goodbye.

    Args:
        world: Number of ranks.
        now: Time from which on silence counts.
    """

    def __init__(self, world: int, now: float) -> None:
        self.signs = {rank: Sign(seen=now, since=now) for rank in range(world)}
        self.hosts: dict[int, str] = {}

    def beat(self, rank: int, now: float, count: int, doing: str | None, for_s: float) -> None:
        """Note a sign of life."""
        if rank in self.signs:
            self.signs[rank] = Sign(seen=now, count=count, doing=doing, since=now - for_s)

    def leave(self, rank: int) -> None:
        """Forget a rank that has said goodbye, or said why it fails."""
        self.signs.pop(rank, None)

    def slept(self, seconds: float) -> None:
        """Take back a time in which this process itself stood still, and noticed nothing."""
        self.signs = {rank: replace(sign, seen=sign.seen + seconds) for rank, sign in self.signs.items()}

    def silent(self, now: float, silence_s: float) -> Failure | None:
        """Failure of a rank that gives no sign of life any more."""
        for rank, sign in self.signs.items():
            if (silence := now - sign.seen) > silence_s:
                return Failure(kind="lost", message=f"{self.name(rank)} {SILENT.format(silence)}", rank=rank)
        return None

    def laggard(self, now: float, limit_s: float = 0.0) -> Failure | None:
        """Failure of the rank that the others wait for.

        Args:
            now: The time.
            limit_s: Seconds that it may stand still within a step while others, too, come no further. 0: whatever it
                does, since another rank has waited in vain.
        """
        counts = {rank: sign.count for rank, sign in self.signs.items()}
        if len(set(counts.values())) < 2:
            return None  # all are equally far: nothing tells them apart
        rank = min(counts, key=lambda rank: counts[rank])
        sign = self.signs[rank]
        # It is judged by those that wait, too: they may have come to their place only lately.
        waiting = max(now - other.since for other in self.signs.values() if other.count > sign.count)
        if limit_s and (sign.doing is None or min(now - sign.since, waiting) <= limit_s):
            return None
        what = f"has {sign.doing or 'been between two steps'} for {now - sign.since:.0f} s, and the others for it"
        return Failure(kind="lost", message=f"{self.name(rank)} {what}", rank=rank)

    def name(self, rank: int) -> str:
        """Name of a rank for people, with its machine if that is another one."""
        host = self.hosts.get(rank)
        return f"rank {rank}" + (f" on {host}" if host and host != socket.gethostname() else "")
