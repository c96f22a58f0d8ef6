"""The job functions of `tests.support.poison`, of a job that reads ahead; some units end the process already then."""

from __future__ import annotations

import os
import signal

from orchestration.units.unit import Output, Unit
from talkinghead.files.storage import Storage
from tests.support import poison


def behave(storage: Storage, unit: Unit) -> Output:
    """Do what the payload says."""
    if unit.payload.get("crash_ahead"):
        os.kill(os.getpid(), signal.SIGKILL)
    return poison.behave(storage, unit)


def read_ahead(storage: Storage, unit: Unit) -> None:
    """End the process where the payload says so."""
    if unit.payload.get("crash_ahead"):
        os.kill(os.getpid(), signal.SIGKILL)
