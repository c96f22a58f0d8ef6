"""Packing a shard: copying the members of its samples, byte for byte, into one tar.

Nothing is decoded, and a member's bytes do not depend on its place, so the same samples in the same order give the
same shard. The caller commits the file: `with storage.staged(name) as sink: pack_shard(storage, samples, sink)`.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from shards.plan import PlannedSample
from talkinghead.files.storage import Storage
from talkinghead.sampletar import BLOCK, END_OF_ARCHIVE, member_header
from talkinghead.schema import Member

FLUSH_BYTES = 16 << 20
"""Bytes after which the disk is asked to write, so that little is left for the closing fsync."""


@dataclass(frozen=True, kw_only=True)
class PackedSample:
    """One sample in its shard."""

    key: str
    num_frames: int
    members: list[Member]
    """Offsets in the shard."""


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """A finished shard, as it goes into its commit record, the index and the manifest."""

    sha256: str
    size: int
    """Size in bytes."""
    samples: list[PackedSample]

    @property
    def num_frames(self) -> int:
        """Number of frames of all samples."""
        return sum(sample.num_frames for sample in self.samples)


def pack_shard(storage: Storage, samples: Sequence[PlannedSample], sink: Path) -> PackedShard:
    """Write the shard with these samples in this order to the local file `sink`.

    Args:
        storage: Storage of the units' output files.
        samples: Samples to copy; their keys must differ.
        sink: Temporary file, which the caller syncs and renames.

    Raises:
        ValueError: A key occurs twice; or a unit's file does not match its record: it was replaced, damaged or cut.
        FileNotFoundError: A unit's file is gone.
    """
    if len({sample.key for sample in samples}) != len(samples):
        raise ValueError("a key occurs twice in the shard")
    digest = hashlib.sha256()
    packed: list[PackedSample] = []
    position = flushed = 0
    # Hashing and flushing work in threads next to the copying: both release the interpreter lock.
    with sink.open("wb", buffering=0) as stream, ThreadPoolExecutor(2) as hasher, ThreadPoolExecutor(1) as flusher:
        hashing = checking = hasher.submit(digest.update, b"")
        flushing = flusher.submit(os.fdatasync, stream.fileno())
        for sample in samples:
            # Read the sample, then wait for the checks of the previous one: at most two blocks are in memory, and the
            # blocks enter the shard's hash in order.
            block = _read_sample(storage, sample)
            hashing.result()
            checking.result()
            hashing = hasher.submit(digest.update, block)
            checking = hasher.submit(_check_content, storage, sample, block)
            _write_all(stream, block)
            # Its members keep their distances; only their place in the file shifts.
            shift = position - sample.offset
            members = [Member(suffix=m.suffix, offset=m.offset + shift, size=m.size) for m in sample.members]
            packed.append(PackedSample(key=sample.key, num_frames=sample.num_frames, members=members))
            position += sample.length
            # Let the disk write meanwhile, one flush at a time.
            if position - flushed >= FLUSH_BYTES and flushing.done():
                flushing.result()
                flushing = flusher.submit(os.fdatasync, stream.fileno())
                flushed = position
        # Errors of the threads surface here; then the two zero blocks that end a tar.
        hashing.result()
        checking.result()
        flushing.result()
        digest.update(END_OF_ARCHIVE)
        _write_all(stream, END_OF_ARCHIVE)
    return PackedShard(sha256=digest.hexdigest(), size=position + len(END_OF_ARCHIVE), samples=packed)


def _check_content(storage: Storage, sample: PlannedSample, block: bytes) -> None:
    if sample.sha256 is not None and hashlib.sha256(block).hexdigest() != sample.sha256:
        raise ValueError(
            f"{storage.describe(sample.file)} is damaged: the bytes of {sample.key} are not those of its record."
            " Delete its record and run the job again"
        )


def _write_all(stream: io.FileIO, block: bytes) -> None:
    written = stream.write(block)
    while written < len(block):  # an unbuffered write may stop early, e.g. after 2 GiB
        written += stream.write(memoryview(block)[written:])


def _read_sample(storage: Storage, sample: PlannedSample) -> bytes:
    """Byte range of a sample, with every member header and padding checked against the record."""
    try:
        # One read for all members: headers, contents and padding follow one another.
        block = storage.read_range(sample.file, sample.offset, sample.length)
    except EOFError as error:
        raise ValueError(f"{storage.describe(sample.file)} is not what its record says: {error}") from error
    for member in sample.members:
        content = member.offset - sample.offset
        # The header is the block of 512 bytes before the content; it is made again from the record and must be equal.
        if block[content - BLOCK : content] != member_header(sample.key, member.suffix, member.size):
            raise ValueError(
                f"{storage.describe(sample.file)} is not what its record says: no header of"
                f" {sample.key}.{member.suffix} with {member.size} bytes at {member.offset - BLOCK}."
                " The file was replaced or damaged: delete its record and run the job again"
            )
        # Tar fills the content up to whole blocks with zeros; `-size % BLOCK` is the number of them.
        if any(block[content + member.size : content + member.size + -member.size % BLOCK]):
            raise ValueError(
                f"{storage.describe(sample.file)} is damaged after {sample.key}.{member.suffix}: padding is not zero."
                " Delete its record and run the job again"
            )
    return block
