"""Records: what is written about a unit of work, its commit record or its quarantine record.

A unit counts only with its commit record. Together with the catalogs the records account for every input. They may be a
stranger's, like all of DATA: one is read only if every field has the type and a value that it can have.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from talkinghead.config import from_json
from talkinghead.files.foreign import parse_json
from talkinghead.provenance import pretty_json
from talkinghead.schema import Member, Rejection

RECORD_BYTES = 64 << 20
"""Largest record that is read: that of a shard of 50,000 samples."""


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One sample in a unit's output tar."""

    # The fields of all classes here are those of JSON files in DATA: names stay, and a new field needs a default.

    key: str
    num_frames: int
    members: list[Member]
    """Suffix, offset and size of each of its files, in tar order."""
    sha256: str
    """SHA-256 of the sample's bytes in the tar: headers, contents, padding."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """Name → clip score that the filters judge; None where it could not be measured."""
    labels: dict[str, str] = field(default_factory=dict)
    """Name → label of the clip, by which readers select."""

    def __post_init__(self) -> None:
        _check_counts(self, "num_frames")
        for member in self.members:
            _check_counts(member, "offset", "size")


@dataclass(frozen=True, kw_only=True)
class RejectedPiece:
    """One clip, or one piece of it, that was read and judged to be no sample."""

    key: str
    rejection: Rejection


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """Commit record: job `job` turned the input `key` into `file`, or rejected it."""

    job: str
    """`ingest`, `annotate-<version>`, `derive-<version>` (latents: `encode-<version>`), `fit-…`, `pack-media`,
    `pack-<version>`."""
    key: str
    """Clip key (ingest), sample key (annotate, derive), `part-000003` (fit), `clips-000042` (pack)."""
    pkey: str
    """Provenance key: hash of the inputs, parameters, models and libraries that the output depends on."""
    samples: list[SampleRecord] = field(default_factory=list)
    rejected: list[RejectedPiece] = field(default_factory=list)
    file: str | None = None
    """Path of the output, relative to DATA; None when everything was rejected."""
    file_bytes: int = 0
    file_sha256: str | None = None
    frames: int = 0
    """Frames of the output."""
    seconds: float = 0.0
    """Wall time of the successful try."""
    cpu_seconds: float = 0.0
    """CPU time of its process meanwhile, with all threads."""
    attempts: int = 1
    """Tries made, with the successful one."""
    details: dict[str, Any] = field(default_factory=dict)
    """Facts for later jobs and the report, which need not open the output."""

    def __post_init__(self) -> None:
        _check_counts(self, "file_bytes", "frames", "attempts")

    def to_json(self) -> bytes:
        """The record file's content."""
        return pretty_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, name: str = "the record") -> UnitRecord:
        """Parse a record file.

        Args:
            data: Content of the file.
            name: Name of the file, for messages.

        Raises:
            ValueError: It is no commit record.
        """
        return checked(cls, parse_json(data, name), name)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One failed try at a unit."""

    cause: str
    """Kind of the failure, by which the quarantine is listed and released: `media:<word>` (no readable media),
    `error:<Class>`, `crash:<SIGNAL>` (plain `crash` for a worker of the pool), `timeout`, `memory`."""
    message: str
    """One line for a person: what is wrong, with which file."""
    trace: str = ""
    """End of the traceback or of stderr."""
    alone: bool = False
    """Whether the unit ran alone, in a child process of its own."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class QuarantineRecord:
    """Quarantine record: an input that could not be processed. It stays until that is retried, mended or removed."""

    job: str
    key: str
    pkey: str
    source: str
    """Name of the input, for messages: the file, or the sample's key."""
    attempts: list[Attempt]
    """Failed tries, the last of which decides the cause."""

    def __post_init__(self) -> None:
        if not self.attempts:
            raise ValueError("it has no attempts")

    @property
    def cause(self) -> str:
        """Cause of the last try."""
        return self.attempts[-1].cause

    def to_json(self) -> bytes:
        """The record file's content."""
        return pretty_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, name: str = "the record") -> QuarantineRecord:
        """Parse a record file.

        Args:
            data: Content of the file.
            name: Name of the file, for messages.

        Raises:
            ValueError: It is no quarantine record.
        """
        return checked(cls, parse_json(data, name), name)


@dataclass(frozen=True, kw_only=True)
class PassRecord:
    """What one pass over a job's units took, for the report."""

    job: str
    units: int
    """Units committed or quarantined in it."""
    frames: int
    """Frames that they put out."""
    wall_seconds: float

    def __post_init__(self) -> None:
        _check_counts(self, "units", "frames")

    def to_json(self) -> bytes:
        """The record file's content."""
        return pretty_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, name: str = "the record") -> PassRecord:
        """Parse a record file. Raises `ValueError`, which names the file by `name`, if it is none."""
        return checked(cls, parse_json(data, name), name)


T = TypeVar("T")


def checked(cls: type[T], value: Any, name: str) -> T:
    """A record from its JSON value.

    Args:
        cls: Class of the record.
        value: The JSON value.
        name: Name of the file, for the message.

    Raises:
        ValueError: A field is missing, unknown, or no value that it can have.
    """
    try:
        return from_json(cls, value)
    except ValueError as error:
        raise ValueError(f"{name} is no record of ours: {error}") from None


def _check_counts(record: Any, *names: str) -> None:
    """Raise `ValueError` unless certain fields, which are counts or places in files, are 0 or more."""
    for name in names:
        if getattr(record, name) < 0:
            raise ValueError(f"{name} is {getattr(record, name)}, must be 0 or more")
