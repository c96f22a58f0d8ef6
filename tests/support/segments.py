"""Segments of units that do what a test tells them, and what is on record of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestration.units.segment import Segment, in_segments
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.files.storage import Storage

JOB, PKEY = "derive-toy-1", "0123456789abcdef"


def make_unit(folder: Path, key: str, behaviour: str = "sample", *, module: str = "poison", **payload: object) -> Unit:
    """A unit of `tests.support.poison`, or of another module with the same functions."""
    return Unit(
        job=JOB,
        key=key,
        pkey=PKEY,
        function=f"tests.support.{module}:behave",
        payload={"behaviour": behaviour, "runs": str(folder / "runs"), **payload},
        source=f"{key}.mp4",
        # Alone it has four times as long, in which a process of its own starts on a busy machine, too.
        time_limit_s=4.0 if behaviour == "hang" else 240.0,
        frames=3,
    )


def planned(units: Sequence[Unit], group: str = "clips-000000") -> list[Unit]:
    """Units, all of which are in one segment."""
    return in_segments(units, {group: [unit.key for unit in units]})


def segment_of(units: Sequence[Unit], group: str = "clips-000000") -> Segment:
    """The segment of some units."""
    units = planned(units, group)
    return Segment(job=JOB, name=units[0].segment, units=tuple(units))


def tars(storage: Storage) -> list[str]:
    """Paths of the tars of segments."""
    return [file.path for file in storage.list("units") if dataroot.segment_of_tar(file.path)]


def records(storage: Storage) -> list[str]:
    """Paths of the records of segments."""
    return [file.path for file in storage.list("records") if dataroot.segment_of_record(file.path)]
