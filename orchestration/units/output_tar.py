"""A unit's output: a tar that grows on the disk sample by sample, and takes its name only when it is complete.

No more than one sample is in memory, so a unit may put out any number of them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import BinaryIO, cast

from orchestration.units.records import RejectedPiece, SampleRecord, UnitRecord
from talkinghead import dataroot
from talkinghead.files.foreign import LinkError
from talkinghead.files.storage import Storage
from talkinghead.runtime.errors import MachineError, UnreachableError
from talkinghead.sampletar import END_OF_ARCHIVE, write_sample
from talkinghead.schema import Rejection


class UnwritableError(MachineError):
    """The place of the outputs cannot be written: no fault of the unit whose output it is."""


@contextlib.contextmanager
def writing_to(storage: Storage) -> Iterator[None]:
    """Turn errors of writing to DATA into ones that are known from errors of the input.

    Raises:
        UnwritableError: The operating system refuses to write.
        UnreachableError: The object store does not answer.
        LinkError: A link lies where the file should go.
    """
    try:
        yield
    except (UnreachableError, LinkError):
        raise
    except OSError as error:
        raise UnwritableError(f"cannot write to {storage.uri}: {error.strerror or error}") from error


class OutputChangedError(Exception):
    """The output of a packed unit came out with other bytes than before: it must not take its name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} came out with other bytes than before")
        self.name = name
        """Path of the output."""


class OutputTar:
    """The output of a unit while it is being made. A context manager: the tar is stored when the block ends.

    After an error in the block nothing is stored. A process that is killed in it leaves at most a temporary file, which
    the next command removes. Where no sample was added, there is no tar.

    Args:
        storage: DATA, the data set's folder or bucket.
        job: Name of the unit's job.
        key: Key of the unit.
        pkey: Its provenance key.
        same_as: Record whose samples must come out again; None: any may.
    """

    def __init__(self, storage: Storage, job: str, key: str, pkey: str, *, same_as: UnitRecord | None = None) -> None:
        self._storage, self._job, self._key, self._pkey = storage, job, key, pkey
        self._same_as = same_as
        self._path = dataroot.unit(job, key, pkey)
        self._file: HashedFile | None = None
        self._whole = hashlib.sha256()
        self._stack = contextlib.ExitStack()
        self._samples: list[SampleRecord] = []
        self.rejected: list[RejectedPiece] = []
        """Pieces of the input that gave no sample, each with its reason."""

    def __enter__(self) -> OutputTar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Without an error: end the tar, flush it to the disk and rename it. With one: remove it.
        with writing_to(self._storage):
            if error is not None:
                self._stack.__exit__(kind, error, trace)
                return
            with self._stack:
                self._check_same()
                if self._file is not None:
                    self._file.write(END_OF_ARCHIVE)

    def _check_same(self) -> None:
        if self._same_as is None:
            return
        known, found = (
            {sample.key: sample.sha256 for sample in part} for part in (self._same_as.samples, self._samples)
        )
        if known != found:
            raise OutputChangedError(self._path)

    def leave_out(self, key: str, contents: Mapping[str, bytes]) -> None:
        """Go past a sample that must not be stored; the hash of the output is as if it were there.

        So a unit that is made again after one of its samples was removed is known by the same hash as before.
        """
        write_sample(cast(BinaryIO, HashedFile(None, self._whole)), 0, key, contents)

    def add(
        self,
        key: str,
        num_frames: int,
        contents: Mapping[str, bytes],
        *,
        scores: Mapping[str, float | None] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Append one sample.

        Args:
            key: Key of the sample.
            num_frames: Its length in frames.
            contents: Suffix → content, in the order of the tar.
            scores: Clip scores.
            labels: Labels.

        Raises:
            UnwritableError: DATA cannot be written.
            UnreachableError: The object store does not answer.
            LinkError: A link lies where the tar should go.
        """
        with writing_to(self._storage):
            if self._file is None:
                # A scratch file first, which closes before it is synced and takes its name.
                scratch = self._stack.enter_context(self._storage.staged(self._path))
                self._file = HashedFile(self._stack.enter_context(scratch.open("wb")), self._whole)
            self._samples.append(self._file.append(key, num_frames, contents, scores, labels))

    def record(self) -> UnitRecord:
        """Commit record of what is stored, still without timings; to be called after the block."""
        file = self._file
        return UnitRecord(
            job=self._job,
            key=self._key,
            pkey=self._pkey,
            samples=self._samples,
            rejected=with_reason(self._key, self._samples, self.rejected),
            file=None if file is None else self._path,
            file_bytes=0 if file is None else file.size,
            file_sha256=None if file is None else file.whole.hexdigest(),
            frames=sum(sample.num_frames for sample in self._samples),
        )


def with_reason(key: str, samples: Sequence[SampleRecord], rejected: Sequence[RejectedPiece]) -> list[RejectedPiece]:
    """Rejected pieces of a unit; every unit ends with a sample or a reason, so that no input disappears without a
    trace."""
    if samples or rejected:
        return list(rejected)
    nothing = Rejection(reason="no_output", detail="the job gave neither a sample nor a reason")
    return [RejectedPiece(key=key, rejection=nothing)]


class HashedFile:
    """A file that is hashed while it is written: as a whole, and the sample that was appended last.

    Args:
        stream: The file, at the place where it is written; None: it is only hashed.
        whole: Hash of the whole.
        start: Offset of that place.
    """

    def __init__(self, stream: BinaryIO | None, whole: hashlib._Hash, start: int = 0) -> None:
        self._stream = stream
        self.size = start
        self.whole = whole
        self.part = hashlib.sha256()

    def append(
        self,
        key: str,
        num_frames: int,
        contents: Mapping[str, bytes],
        scores: Mapping[str, float | None] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> SampleRecord:
        """Append one sample; arguments as of `OutputTar.add`."""
        self.part = hashlib.sha256()
        members = write_sample(cast(BinaryIO, self), self.size, key, contents)
        return SampleRecord(
            key=key,
            num_frames=num_frames,
            members=members,
            sha256=self.part.hexdigest(),
            scores=dict(scores or {}),
            labels=dict(labels or {}),
        )

    def write(self, data: bytes) -> int:
        """Append `data`."""
        if self._stream is not None:
            self._stream.write(data)
        self.size += len(data)
        self.whole.update(data)
        self.part.update(data)
        return len(data)
