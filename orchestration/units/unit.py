"""A unit of work, and how one is run: call the job's function, store its output, then commit its record."""

from __future__ import annotations

import importlib
import io
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestration.units.records import Attempt, RejectedPiece, SampleRecord, UnitRecord
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.provenance import hash_bytes
from talkinghead.runtime.errors import MachineError, UnreachableError, error_text, is_machine_error
from talkinghead.sampletar import END_OF_ARCHIVE, write_sample
from talkinghead.schema import Rejection


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One clip (ingest, annotate) or one shard (pack): what to run, on what, under which name it is committed."""

    job: str
    key: str
    pkey: str
    function: str
    """`module:function` of the job: `function(storage, unit) -> Output`."""
    payload: dict[str, Any]
    """JSON value: paths and settings, never media."""
    source: str
    """What a person would call the input, for messages."""
    time_limit_s: float

    def to_json(self) -> str:
        """One line of ASCII JSON (file names may hold bytes that are no UTF-8)."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(kw_only=True)
class Output:
    """What a job function returns: samples to store, or a file it has stored itself, and what it rejected."""

    contents: list[tuple[str, int, dict[str, bytes]]] = field(default_factory=list)
    """Per sample: key, number of frames, {suffix: content} in tar order. Stored as the unit's tar."""
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    rejected: list[RejectedPiece] = field(default_factory=list)
    stored: UnitRecord | None = None
    """For jobs that stream their own file (pack): the record but for its timings."""
    details: dict[str, Any] = field(default_factory=dict)


class RunError(MachineError):
    """The machine is at fault, not the input: DATA cannot be written, the installation or the model differs.

    The run stops and nothing is quarantined for it; when it is mended, the same command goes on.
    """


def run_unit(storage: Storage, unit: Unit, *, attempts: int) -> UnitRecord:
    """Run one unit to its commit record.

    Args:
        storage: DATA.
        unit: What to run.
        attempts: How many tries this one makes, for the record.

    Raises:
        RunError: The machine is at fault.
        Exception: Whatever the job function raises about its input.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        output = _job_function(unit.function)(storage, unit)
    except ImportError as error:
        raise RunError(f"the installation is not complete: {error} (make setup mends it)") from error
    except RunError:
        raise
    except Exception as error:
        if not is_machine_error(error):
            raise
        said = " ".join(error_text(error).split())
        raise RunError(f"the machine failed while working on {unit.source}: {said}") from error
    try:
        fields = asdict(output.stored) if output.stored else store_output(storage, unit, output)
        fields |= {
            "seconds": round(time.perf_counter() - started, 4),
            "cpu_seconds": round(time.process_time() - cpu_started, 4),
            "attempts": attempts,
            "details": output.details,
        }
        record = UnitRecord.from_json(json.dumps(fields).encode())
        storage.create(dataroot.record(unit.job, unit.key, unit.pkey), record.to_json())
    except UnreachableError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        raise RunError(f"cannot write to {storage.uri}: {error.strerror or error}") from error
    return record


def _job_function(name: str) -> Callable[[Storage, Unit], Output]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def store_output(storage: Storage, unit: Unit, output: Output) -> dict[str, Any]:
    """Write the unit's tar, if it has samples, and return the record's fields."""
    record: dict[str, Any] = {"job": unit.job, "key": unit.key, "pkey": unit.pkey}
    record["rejected"] = [asdict(piece) for piece in output.rejected]
    if not output.contents and not output.rejected:
        nothing = Rejection(reason="no_output", detail="the job gave neither a sample nor a reason")
        record["rejected"] = [asdict(RejectedPiece(key=unit.key, rejection=nothing))]
    if output.contents:
        buffer = io.BytesIO()
        samples = []
        for key, num_frames, contents in output.contents:
            start = buffer.tell()
            members = write_sample(buffer, start, key, contents)
            sample = SampleRecord(
                key=key,
                num_frames=num_frames,
                members=members,
                sha256=hash_bytes(buffer.getbuffer()[start:]),
                scores=output.scores.get(key, {}),
            )
            samples.append(asdict(sample))
        buffer.write(END_OF_ARCHIVE)
        data = buffer.getvalue()
        path = dataroot.unit(unit.job, unit.key, unit.pkey)
        storage.write(path, data)
        record |= {"samples": samples, "file": path, "file_bytes": len(data), "file_sha256": hash_bytes(data)}
        record["frames"] = sum(sample["num_frames"] for sample in samples)
    return record


def failed_attempt(error: BaseException, *, alone: bool, seconds: float) -> Attempt:
    """What to note of an exception that a job function raised."""
    if isinstance(error, MemoryError):
        cause = "memory"
    elif isinstance(error, UnreadableMediaError):
        cause = f"media:{error.cause}"
    else:
        cause = f"error:{type(error).__name__}"
    message = " ".join(str(error).split()) or type(error).__name__
    trace = "".join(traceback.format_exception(error))[-4000:]
    return Attempt(cause=cause, message=message[:1000], trace=trace, alone=alone, seconds=round(seconds, 3))
