"""Records: what is written about a unit of work, its commit record or its quarantine record.

A unit counts only with its commit record. Together with the catalogs the records account for every input.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from talkinghead.provenance import pretty_json
from talkinghead.schema import Member, Rejection


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


@dataclass(frozen=True, kw_only=True)
class RejectedPiece:
    """One clip, or one piece of it, that was read and judged to be no sample."""

    key: str
    rejection: Rejection


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """Commit record: job `job` turned the input `key` into `file`, or rejected it."""

    job: str
    """`ingest`, `annotate-<version>`, `encode-<version>`, `pack-media`, `pack-<version>`."""
    key: str
    """Clip key (ingest), sample key (annotate, encode), `clips-000042` (pack)."""
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

    def to_json(self) -> bytes:
        """The record file's content."""
        return pretty_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> UnitRecord:
        """Parse a record file."""
        value = json.loads(data)
        # `asdict` has turned the nested dataclasses into objects of JSON: build them again.
        value["samples"] = [
            SampleRecord(**{**sample, "members": [Member(**member) for member in sample["members"]]})
            for sample in value.get("samples", ())
        ]
        value["rejected"] = [
            RejectedPiece(key=piece["key"], rejection=Rejection(**piece["rejection"]))
            for piece in value.get("rejected", ())
        ]
        return cls(**value)


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

    @property
    def cause(self) -> str:
        """Cause of the last try."""
        return self.attempts[-1].cause

    def to_json(self) -> bytes:
        """The record file's content."""
        return pretty_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> QuarantineRecord:
        """Parse a record file."""
        value = json.loads(data)
        value["attempts"] = [Attempt(**attempt) for attempt in value["attempts"]]
        return cls(**value)
