"""Segments: units of a plan that share one output tar and one commit record, so that there are few files.

Which units make up a segment is decided when the plan is made, never by what happens to be pending. A worker puts their
samples into a temporary file; then the file takes a name that only this attempt has, and the commit record is created
if there is none. The first record wins, and says whose tar counts; a worker that comes late deletes its own.

An outcome that is on record elsewhere outweighs a segment: a unit that an earlier release has committed on its own, or
that was tried again after its quarantine, has a record of its own.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestration.units.output_tar import HashedFile, UnwritableError, with_reason, writing_to
from orchestration.units.records import UnitRecord
from orchestration.units.segment_records import SegmentRecord, SegmentRow, read_segment
from orchestration.units.unit import JobStoppedError, Output, Unit
from talkinghead import dataroot
from talkinghead.files.foreign import LinkError, parse_json
from talkinghead.files.s3_files import RefusedError
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json, hash_bytes
from talkinghead.runtime.errors import UnreachableError, error_text
from talkinghead.sampletar import END_OF_ARCHIVE

SEGMENT_FRAMES = 6000
"""Frames of a segment, four minutes of video: what is computed again, at most, when a worker is killed. A clip that is
longer is a segment of its own."""


# --- planned ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Units that are run by one worker, one after the other, and committed together."""

    job: str
    name: str
    units: tuple[Unit, ...]
    """Those that have no outcome yet, in the order of the plan."""

    @property
    def key(self) -> str:
        """Name of the segment, as progress is told by it."""
        return self.name

    @property
    def source(self) -> str:
        """Name for messages."""
        return f"{self.name} ({self.units[0].source}{f' and {len(self.units) - 1} more' if self.units[1:] else ''})"

    @property
    def frames(self) -> int:
        """Frames of its units."""
        return sum(unit.frames for unit in self.units)

    def to_json(self) -> str:
        """One line of ASCII JSON."""
        return json.dumps({"job": self.job, "name": self.name, "units": [asdict(unit) for unit in self.units]})

    @classmethod
    def from_json(cls, text: str) -> Segment:
        """Inverse of `to_json`."""
        value = parse_json(text, "the segment")
        return cls(job=value["job"], name=value["name"], units=tuple(Unit(**unit) for unit in value["units"]))


def in_segments(units: Iterable[Unit], groups: Mapping[str, Sequence[str]]) -> list[Unit]:
    """Units, each with the name of its segment, in their order.

    Segments are consecutive units of a group with at most `SEGMENT_FRAMES` frames together. So they are a function of
    the plan alone; the name ends with a hash of keys and provenance keys, since other units are another segment.

    Args:
        units: Units of a plan; those of no group stay on their own.
        groups: Name of a group, such as a shard → keys of its units, in order.
    """
    units = list(units)
    by_key = {unit.key: unit for unit in units}
    names: dict[str, str] = {}
    for group, keys in groups.items():
        for number, part in enumerate(_parts([by_key[key] for key in keys if key in by_key])):
            pairs = [[unit.key, unit.pkey] for unit in part]
            name = f"segment-{group}-{number:03d}-{hash_bytes(canonical_json(pairs))[:12]}"
            names |= {unit.key: name for unit in part}
    return [replace(unit, segment=names.get(unit.key, "")) for unit in units]


def _parts(units: Sequence[Unit]) -> list[list[Unit]]:
    parts: list[list[Unit]] = []
    frames = 0
    for unit in units:
        if not parts or frames + unit.frames > SEGMENT_FRAMES:
            parts.append([])
            frames = 0
        parts[-1].append(unit)
        frames += unit.frames
    return parts


def grouped(units: Iterable[Unit], committed: Mapping[str, object]) -> list[Unit | Segment]:
    """What is to be run of pending units: segments, and the units that are run on their own.

    Args:
        units: Pending units.
        committed: Segments that have a record. A unit of them that is pending all the same, such as one that was
            released from quarantine, is run on its own.
    """
    found: dict[str, list[Unit]] = {}
    for unit in units:
        is_single = not unit.segment or unit.segment in committed
        found.setdefault("" if is_single else unit.segment, []).append(unit)
    singles: list[Unit | Segment] = list(found.pop("", []))
    return singles + [Segment(job=part[0].job, name=name, units=tuple(part)) for name, part in found.items()]


# --- stored -----------------------------------------------------------------------------------------------------------


class SegmentTar:
    """The temporary file of a segment's tar while units are appended to it; a context manager that closes it.

    Args:
        storage: DATA, for messages.
        scratch: The file, which is there.
        path: Path that the tar will have, relative to DATA.
        end: Bytes of the units that are complete. What a killed process has left after them is cut off.
    """

    def __init__(self, storage: Storage, scratch: Path, path: str, end: int = 0) -> None:
        self._storage, self._path = storage, path
        self._stream = scratch.open("r+b")
        self.end = end
        """Bytes of the units that are complete."""

    def __enter__(self) -> SegmentTar:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, unit: Unit, output: Output) -> UnitRecord:
        """Append what a job made of a unit; returns its commit record, still without timings.

        Raises:
            UnwritableError: DATA cannot be written.
        """
        assert output.stored is None, "a job that stores its output itself has no segments"
        whole, samples = hashlib.sha256(), []
        with writing_to(self._storage):
            self._stream.truncate(self.end)
            self._stream.seek(self.end)
            file = HashedFile(self._stream, whole, self.end)
            for key, num_frames, contents in output.contents:
                samples.append(file.append(key, num_frames, contents, output.scores.get(key), output.labels.get(key)))
            self._stream.flush()  # complete in the file, whatever becomes of this process
        whole.update(END_OF_ARCHIVE)
        size, self.end = file.size - self.end, file.size
        return UnitRecord(
            job=unit.job,
            key=unit.key,
            pkey=unit.pkey,
            samples=samples,
            rejected=with_reason(unit.key, samples, output.rejected),
            file=self._path if samples else None,
            file_bytes=size + len(END_OF_ARCHIVE) if samples else 0,
            file_sha256=whole.hexdigest() if samples else None,
            frames=sum(sample.num_frames for sample in samples),
            details=output.details,
        )


class _NoSamplesError(Exception):
    """No unit of a segment gave a sample: there is no tar."""


Make = Callable[[Path, str], tuple[list[SegmentRow], int]]
"""Function (temporary file, path that the tar will have) → rows of the units, and bytes of their samples."""


def commit_segment(storage: Storage, segment: Segment, make: Make) -> SegmentRecord:
    """Make the tar of a segment, and commit it unless another worker has done so before.

    Returns:
        The commit record that counts, this worker's or another's.

    Raises:
        JobStoppedError: DATA cannot be written, or `make` found the machine at fault.
    """
    attempt = uuid.uuid4().hex[:16]
    path = dataroot.unit(segment.job, segment.name, attempt)
    rows: list[SegmentRow] = []
    size, sha256 = 0, None
    try:
        with writing_to(storage):
            try:
                # A temporary file until the block ends: after a kill there is no tar.
                with storage.staged(path) as scratch:
                    rows, end = _made(make, scratch, path)
                    if not end:
                        raise _NoSamplesError
                    size, sha256 = _end_tar(scratch, end)
            except _NoSamplesError:
                pass
            mine = SegmentRecord(
                job=segment.job, segment=segment.name, attempt=attempt, rows=rows, file_bytes=size, file_sha256=sha256
            )
            if storage.create(mine.path, mine.to_parquet()):
                return mine
            return _first(storage, mine)
    except (UnwritableError, UnreachableError, LinkError, RefusedError) as error:
        raise JobStoppedError(str(error)) from error


def _made(make: Make, scratch: Path, path: str) -> tuple[list[SegmentRow], int]:
    """What `make` returns; its own errors of the operating system are not about DATA."""
    try:
        return make(scratch, path)
    except UnreachableError:
        raise
    except OSError as error:
        raise JobStoppedError(f"a worker cannot run its units: {error_text(error)}") from error


def _end_tar(scratch: Path, end: int) -> tuple[int, str]:
    """Write the end of a tar; returns size and SHA-256."""
    with scratch.open("r+b") as stream:
        stream.truncate(end)
        stream.seek(end)
        stream.write(END_OF_ARCHIVE)
        stream.flush()
        stream.seek(0)
        return end + len(END_OF_ARCHIVE), hashlib.file_digest(stream, "sha256").hexdigest()


def _first(storage: Storage, mine: SegmentRecord) -> SegmentRecord:
    """The record that was there first; the tar of another one goes, which nothing can name any more."""
    try:
        first = read_segment(storage, mine.job, mine.segment)
    except (FileNotFoundError, ValueError) as error:
        # Whether it names this tar nobody knows, so the tar stays.
        raise JobStoppedError(f"{error}; the same command sets it aside and runs its units again") from error
    # A store that answers too late may have taken this very record.
    if first.attempt != mine.attempt and mine.file is not None:
        storage.delete(mine.file)
    return first
