"""A unit of work, and how a worker runs one: call the job's function, store its output, then commit its record."""

from __future__ import annotations

import importlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from orchestration.units.output_tar import OutputChangedError, OutputTar, UnwritableError, writing_to
from orchestration.units.records import RECORD_BYTES, Attempt, RejectedPiece, UnitRecord
from orchestration.units.segment_records import read_segment
from talkinghead import dataroot
from talkinghead.derived import ColumnError
from talkinghead.files.foreign import LinkError, parse_json
from talkinghead.files.lease import LeaseLostError
from talkinghead.files.s3_files import RefusedError
from talkinghead.files.storage import Storage
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.runtime.errors import MachineError, UnreachableError, error_text, is_machine_error


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of a job: a clip (ingest), a sample (annotate, derive) or a shard (pack)."""

    job: str
    """Name of the job, under which the unit is committed."""
    key: str
    """Key of the clip, sample or shard."""
    pkey: str
    """Provenance key: with another one, the unit counts as not done."""
    function: str
    """`module:function` of the job: `function(storage, unit) -> Output`."""
    payload: dict[str, Any]
    """Arguments of the function, as a JSON value: paths and settings, never media."""
    source: str
    """Name of the input for messages, as a person would call it."""
    time_limit_s: float
    """Wall-clock limit of the first try in seconds. It does not shape the output, and is no part of `pkey`."""
    frames: int = 0
    """Frames that it goes through, about; 0 where that is not known. For progress, and to begin with the longest."""
    is_packed: bool = False
    """Whether its output is in a shard, or is one: if it must be made again, its bytes have to be the same."""
    is_freed: bool = False
    """Whether nothing needs the file of its output any more, which may be gone."""
    segment: str = ""
    """Name of the segment in which it is committed together with its neighbours; empty: it is committed on its own."""

    def to_json(self) -> str:
        """One line of ASCII JSON (file names may hold bytes that are no UTF-8)."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """Inverse of `to_json`."""
        return cls(**parse_json(text, "the unit"))


@dataclass(kw_only=True)
class Output:
    """Result of a job function: samples to store and what it rejected, or a file that it has stored itself."""

    contents: list[tuple[str, int, dict[str, bytes]]] = field(default_factory=list)
    """Samples of the unit's tar: key, number of frames, {suffix: content} in tar order."""
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Sample key → clip scores."""
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Sample key → labels."""
    rejected: list[RejectedPiece] = field(default_factory=list)
    stored: UnitRecord | None = None
    """Record of what the job has streamed itself (`OutputTar`, pack), still without timings."""
    details: dict[str, Any] = field(default_factory=dict)
    """Details of the commit record."""


class JobStoppedError(MachineError):
    """The machine is at fault, not the input: DATA cannot be written, or the installation or the model differs.

    The job stops and quarantines nothing for it. Once the machine is mended, the same command goes on.
    """


CHANGED = "changed"
"""Cause of a failed try whose output was not the one that is packed. It is no fault of the input: no quarantine."""


def run_unit(storage: Storage, unit: Unit, *, attempts: int) -> UnitRecord:
    """Run one unit up to its commit record.

    Args:
        storage: DATA, the data set's folder or bucket.
        unit: Unit to run.
        attempts: Number of this try, counted from 1, for the record.

    Returns:
        The commit record, already written.

    Raises:
        JobStoppedError: The machine is at fault.
        OutputChangedError: What is packed of it came out with other bytes now. Nothing was stored.
        Exception: Whatever the job function raises about its input.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    output = compute(storage, unit)
    # Store and commit, in this order: without its record a stored tar does not count, and a rerun replaces it.
    try:
        record = replace(
            output.stored or store_output(storage, unit, output),
            seconds=round(time.perf_counter() - started, 4),
            cpu_seconds=round(time.process_time() - cpu_started, 4),
            attempts=attempts,
            details=output.details,
        )
        record = UnitRecord.from_json(record.to_json())  # of the types that a record has, or it could not be read
        # `create` never replaces: of two workers with the same unit, the first commit stays.
        path = dataroot.record(unit.job, unit.key, unit.pkey)
        with writing_to(storage):
            if not storage.create(path, record.to_json()) and (known := packed_before(storage, unit)) is not None:
                # Its samples may have lain elsewhere, in a file that had lost others of them.
                places = {sample.key: sample.members for sample in record.samples}
                samples = [replace(sample, members=places[sample.key]) for sample in known.samples]
                moved = replace(known, samples=samples, file=record.file, file_bytes=record.file_bytes)
                if moved != known:
                    storage.write(path, moved.to_json())
    except (UnwritableError, UnreachableError, LinkError, RefusedError) as error:
        raise JobStoppedError(str(error)) from error
    return record


def compute(storage: Storage, unit: Unit) -> Output:
    """What the job function makes of a unit; nothing is stored yet.

    Raises:
        JobStoppedError: The machine is at fault.
        Exception: Whatever the job function raises about its input.
    """
    # An error is the machine's (the job stops) or the input's (an attempt on its record): sorted out here.
    try:
        return _job_function(unit.function)(storage, unit)
    except ImportError as error:
        raise _incomplete(error) from error
    except JobStoppedError:
        raise
    # In DATA, where the result should go; of a node that lacks boto3; or of a command that was taken over.
    except (LinkError, UnwritableError, RefusedError, LeaseLostError) as error:
        raise JobStoppedError(str(error)) from error
    except Exception as error:
        if not is_machine_error(error):
            raise
        said = " ".join(error_text(error).split())
        raise JobStoppedError(f"the machine failed while working on {unit.source}: {said}") from error


def reader_ahead(unit: Unit) -> Callable[[Storage, Unit], None] | None:
    """Function `read_ahead(storage, unit)` of the module of a unit's job function, or None where it has none.

    It begins to read, in a thread, what the unit needs that is computed next in this process.

    Raises:
        JobStoppedError: The module cannot be imported.
    """
    try:
        return getattr(importlib.import_module(unit.function.partition(":")[0]), "read_ahead", None)
    except ImportError as error:
        raise _incomplete(error) from error


def _incomplete(error: ImportError) -> JobStoppedError:
    return JobStoppedError(f"the installation is not complete: {error} (make setup mends it)")


def packed_before(storage: Storage, unit: Unit) -> UnitRecord | None:
    """Commit record of a packed unit that is run again, whose samples must come out as they were; None without one."""
    if not unit.is_packed:
        return None
    path = dataroot.record(unit.job, unit.key, unit.pkey)
    if storage.exists(path):
        return UnitRecord.from_json(storage.read(path, RECORD_BYTES, "record"), storage.describe(path))
    if unit.segment and storage.exists(dataroot.segment_record(unit.job, unit.segment)):
        return read_segment(storage, unit.job, unit.segment).units().get((unit.key, unit.pkey))
    return None


def _job_function(name: str) -> Callable[[Storage, Unit], Output]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def store_output(storage: Storage, unit: Unit, output: Output) -> UnitRecord:
    """Write the unit's tar, if it has samples; returns the commit record, still without timings."""
    with OutputTar(storage, unit.job, unit.key, unit.pkey, same_as=packed_before(storage, unit)) as tar:
        tar.rejected += output.rejected
        for key, num_frames, contents in output.contents:
            tar.add(key, num_frames, contents, scores=output.scores.get(key, {}), labels=output.labels.get(key, {}))
    return tar.record()


def failed_attempt(error: BaseException, *, alone: bool, seconds: float) -> Attempt:
    """Attempt that records an exception which a job function raised about its input."""
    if isinstance(error, MemoryError):
        cause = "memory"
    elif isinstance(error, OutputChangedError):
        cause = CHANGED
    elif isinstance(error, UnreadableMediaError):
        cause = f"media:{error.cause}"
    elif isinstance(error, ColumnError):
        cause = f"column:{error.cause}"
    else:
        cause = f"error:{type(error).__name__}"
    message = " ".join(str(error).split()) or type(error).__name__
    trace = "".join(traceback.format_exception(error))[-4000:]
    return Attempt(cause=cause, message=message[:1000], trace=trace, alone=alone, seconds=round(seconds, 3))
