"""What becomes of a unit that failed: whether it is tried again, alone, and how its quarantine record is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestration.units.records import Attempt, QuarantineRecord
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage

ALONE_TIMES = 4.0
"""Time limit of a unit that is tried again, alone, over that of its first try: the same one would only pass again."""
LONGEST_LIMIT_S = 1e8
"""Longest time limit that a unit may be given, in seconds: three years, far below what clocks of the system hold."""


@dataclass(frozen=True, kw_only=True)
class RetrySettings:
    """Number of tries, and limits, of a failing unit before it is quarantined."""

    attempts: int = 3
    """Tries of a unit that crashed, hung or ran out of memory; all but the first are made alone."""
    memory_gb: float = 8.0
    """Memory that a unit's process may take, in GiB."""
    time_limit_s: float | None = None
    """Wall-clock limit of one unit in seconds; four times as long when it is tried again (default: from the length and
    the frame size of its clip)."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"--attempts is {self.attempts}, must be at least 1")
        if self.memory_gb < 1:
            raise ValueError(f"--memory-gb is {self.memory_gb}, must be at least 1")
        if self.time_limit_s is not None and not 0 < self.time_limit_s <= LONGEST_LIMIT_S:
            raise ValueError(
                f"--time-limit-s is {self.time_limit_s:g}, must be above 0 and at most {LONGEST_LIMIT_S:,.0f}"
            )


def may_pass_later(attempt: Attempt) -> bool:
    """Whether a retry can help: after crash, hang, memory and system errors, but not after a verdict on the input, nor
    where the longer time of a try alone was up."""
    if attempt.cause == "timeout":
        return not attempt.alone
    if attempt.cause.startswith(("media:", "column:")):
        return False
    if not attempt.cause.startswith("error:"):
        return True
    # The same input gives these errors again.
    name = attempt.cause.removeprefix("error:")
    never = {"ValueError", "FileNotFoundError", "PermissionError", "IsADirectoryError"}
    return name not in never


def alone(unit: Unit) -> Unit:
    """The unit with the longer time limit of a try alone."""
    return replace(unit, time_limit_s=ALONE_TIMES * unit.time_limit_s)


def quarantine(storage: Storage, unit: Unit, attempts: Sequence[Attempt]) -> Attempt:
    """Write the quarantine record of a unit, unless there is one; returns the last try, with what the user can do.

    Args:
        storage: DATA, the data set's folder or bucket.
        unit: The unit.
        attempts: Its failed tries.
    """
    last = _with_advice(attempts[-1], unit)
    # `create` keeps a record that is already there: object stores have no lock, and another driver may be first.
    record = QuarantineRecord(
        job=unit.job, key=unit.key, pkey=unit.pkey, source=unit.source, attempts=[*attempts[:-1], last]
    )
    storage.create(dataroot.quarantine(unit.job, unit.key, unit.pkey), record.to_json())
    return last


def _with_advice(result: Attempt, unit: Unit) -> Attempt:
    """The last failed try of a unit; where its time was up, with what the user can do."""
    if result.cause != "timeout":
        return result
    # The next first try gets what the longest try has had in vain, and the try alone more than that.
    tried = unit.time_limit_s * (ALONE_TIMES if result.alone else 1.0)
    then = f"make retry CAUSE=timeout, then again with ARGS='--time-limit-s {math.ceil(tried)}'"
    return replace(result, message=f"{result.message}; if it is not stuck but long: {then}")
