"""Random access to the samples of a data set: by byte offset, a window at a time.

reader = ShardReader("build/real", split="train")
sample = reader[12]
sample.video(100, 16)                    # uint8 [16, H, W, 3]
sample.audio(100, 16)                    # float32 [16 * 640]
sample.annotation("landmarks", 100, 16)  # float32 [16, 478, 3], NaN where there is no face
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shards.index import Archive, Index, read_index
from shards.layout import NPY_HEAD, WAV_HEADER, check_wav_header, npy_layout
from shards.manifest import read_manifest
from shards.ranges import RangeReader
from talkinghead import timebase
from talkinghead.annotation import COLUMN, decode_column
from talkinghead.files.storage import Storage
from talkinghead.sampletar import read_members
from talkinghead.schema import ClipInfo, Member, SampleIndex, annotation_shard_name, media_shard_name

log = logging.getLogger(__name__)

SPEECH = {"audio_missing": 0.0, "audio_silent": 0.0}
"""`at_most` of samples that can be heard."""


class ShardReader:
    """The samples of one split, in index order.

    Opening reads `DATASET.json` and the index; media are read when asked for. Safe to use after a fork, from threads,
    and to pickle into spawned processes.

    Args:
        data: The data set: folder, URI or storage.
        version: Annotation version; None: the newest face annotation.
        split: `train`, `val` or `test`; None: all.
        kept: Only samples that the filters kept.
        columns: Annotation columns that will be asked for; checked here rather than in the middle of an epoch.
        extra: Further annotation versions whose columns are read too, joined by key (latents, audio features, …).
        at_most: Score → largest value; samples above it, or without the score, are left out. Training from speech
            asks for `SPEECH`.
        persons: Only samples of these persons (or split groups, where the data set names no persons); empty: all.

    Raises:
        FileNotFoundError: No data set there.
        ValueError: No such version, column, score or person; says how to make it.
    """

    def __init__(
        self,
        data: Storage | str | Path,
        *,
        version: str | None = None,
        split: str | None = "train",
        kept: bool = True,
        columns: tuple[str, ...] = (),
        extra: tuple[str, ...] = (),
        at_most: Mapping[str, float] | None = None,
        persons: tuple[str, ...] = (),
    ) -> None:
        self.storage = data if isinstance(data, Storage) else Storage(data)
        self.manifest = read_manifest(self.storage)
        entry = self.manifest.annotation(version)
        self.version = entry.version
        self.index = read_index(self.storage, entry)
        chosen = self.index.numbers("keep").copy() if kept else np.ones(len(self.index), bool)
        if split is not None:
            chosen &= self.index.equals("split", split)
        self._where: dict[str, tuple[Index, Archive]] = {}
        for archive, suffixes in self.index.members.items():
            self._where.update(dict.fromkeys(suffixes, (self.index, archive)))
        for name in extra:
            entry = self.manifest.annotation(name)
            self._join(read_index(self.storage, entry))
        for column in columns:
            there = self._index_of(f"{column}.npy").has_member(f"{column}.npy")
            if lacking := int((chosen & ~there).sum()):
                log.warning("%d of %d samples have no %s and are left out", lacking, int(chosen.sum()), column)
            chosen &= there
        for score, most in (at_most or {}).items():
            chosen &= self._scored(score, most, chosen)
        if persons:
            chosen &= self._of(persons)
        self.rows = np.flatnonzero(chosen)
        self.ranges = RangeReader(self.storage)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: int) -> Sample:
        if not -len(self) <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        return Sample(self, int(self.rows[sample]))

    @property
    def num_frames(self) -> np.ndarray:
        """`[N]` frames of each sample."""
        return self.index.numbers("num_frames")[self.rows]

    @functools.cached_property
    def keys(self) -> list[str]:
        """Keys of the samples, in order."""
        return self.index.table.column("key").take(self.rows).to_pylist()

    def find(self, key: str) -> Sample:
        """The sample with this key; `KeyError` when it is not in this split."""
        return self[self._by_key[key]]

    @functools.cached_property
    def _by_key(self) -> dict[str, int]:
        return {key: sample for sample, key in enumerate(self.keys)}

    def _join(self, other: Index) -> None:
        for name in ("key", "shard", "ordinal"):
            if not self.index.table.column(name).equals(other.table.column(name)):
                kind = self.manifest.annotation(other.version).kind
                how = "make latents" if kind == "latents" else f"make reannotate ANN={other.version}"
                raise ValueError(
                    f"annotation versions {self.version} and {other.version} are not of the same samples ({name}):"
                    f" run {how} to bring it up to date"
                )
        self._where.update(dict.fromkeys(other.members["annotation"], (other, "annotation")))

    def _scored(self, score: str, most: float, chosen: np.ndarray) -> np.ndarray:
        if score not in self.index.score_names:
            raise ValueError(
                f"annotation version {self.version} has no score {score!r}: make it with make reannotate"
                f" ANN=<version> DATA={self.storage.uri}"
            )
        fitting = self.index.numbers(f"score_{score}") <= most  # NaN: no score
        if lacking := int((chosen & ~fitting).sum()):
            log.warning("%d of %d samples have %s above %g and are left out", lacking, int(chosen.sum()), score, most)
        return fitting

    def _of(self, persons: tuple[str, ...]) -> np.ndarray:
        found = np.zeros(len(self.index), bool)
        for person in persons:
            same = self.index.equals("person", person) | self.index.equals("split_group", person)
            if not same.any():
                raise ValueError(f"no sample of {self.storage.uri} is of person or split group {person!r}")
            found |= same
        return found

    def check_column(self, column: str) -> None:
        """Raise `ValueError` when the data set has no such annotation column, or a sample of this reader lacks it."""
        there = self._index_of(f"{column}.npy").has_member(f"{column}.npy")[self.rows]
        if not there.all():
            raise ValueError(
                f"{int((~there).sum())} of {len(self)} samples have no {column}:"
                f" name it in the reader's columns=({column!r},) to leave them out"
            )

    def _index_of(self, suffix: str) -> Index:
        if suffix not in self._where:
            there = ", ".join(sorted(name.removesuffix(".npy") for name in self._where))
            name = suffix.removesuffix(".npy")
            holding = [entry.version for entry in self.manifest.of_kind("latents") if name in entry.details["columns"]]
            how = (
                f"it is in {', '.join(holding)}, to be named in the reader's extra=(…)"
                if holding
                else f"make it with make reannotate ANN=<version> DATA={self.storage.uri}"
            )
            raise ValueError(f"the data set has no {name!r} in annotation version {self.version}, only {there}: {how}")
        return self._where[suffix][0]

    def locate(self, row: int, suffix: str) -> tuple[str, Member]:
        """File and place of one member; `ValueError` when the sample or the data set has none."""
        index = self._index_of(suffix)
        member = index.member(suffix, row)
        if member is None:
            raise ValueError(f"sample {index.text('key', row)} has no {suffix}: annotating it failed (make quarantine)")
        shard = int(index.numbers("shard")[row])
        archive = self._where[suffix][1]
        name = media_shard_name(shard) if archive == "media" else annotation_shard_name(index.version, shard)
        return name, member


class Sample:
    """One sample; every method reads only the bytes it needs."""

    def __init__(self, reader: ShardReader, row: int) -> None:
        self._reader = reader
        self.row = row
        """Row of the index."""
        self.num_frames = int(reader.index.numbers("num_frames")[row])

    def __repr__(self) -> str:
        return f"Sample({self.key}, {self.num_frames} frames)"

    @property
    def key(self) -> str:
        """The sample's key."""
        key = self._reader.index.text("key", self.row)
        assert key is not None
        return key

    @property
    def index(self) -> SampleIndex:
        """Its row of the index: scores, split, reason, …"""
        return self._reader.index.row(self.row)

    @functools.cached_property
    def info(self) -> ClipInfo:
        """Where it comes from."""
        return ClipInfo.from_json(self.member("json"))

    def member(self, suffix: str) -> bytes:
        """A whole member as it is stored."""
        path, member = self._reader.locate(self.row, suffix)
        return self._reader.ranges.read(path, member.offset, member.size)

    def members(self, *suffixes: str) -> dict[str, memoryview]:
        """Several members (all by default) as they are stored, with one read per shard."""
        places: dict[str, list[Member]] = {}
        for suffix in suffixes or self._reader._where:
            path, member = self._reader.locate(self.row, suffix)
            places.setdefault(path, []).append(member)
        found: dict[str, memoryview] = {}
        for path, members in places.items():
            found |= read_members(self._reader.ranges.read, path, self.key, members)
        return found

    def video(self, first: int = 0, count: int | None = None, stride: int = 1) -> np.ndarray:
        """`count` frames from `first` on, each `stride` after the other, as RGB: uint8 `[count, H, W, 3]`.

        Nothing after the last of them is decoded. Without a count: all that there are.
        """
        from talkinghead.media.clip import decode_window

        if stride < 1:
            raise ValueError(f"stride must be at least 1, not {stride}: frames are read in their order")
        span = self._check_window(first, None if count is None else (count - 1) * stride + 1)
        path, member = self._reader.locate(self.row, "mp4")
        with self._reader.ranges.open(path, member.offset, member.size) as stream:
            return decode_window(stream, first, (span - 1) // stride + 1, stride)

    def audio(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """The audio of these frames, float32 `[count * 640]` in -1 .. 1."""
        count = self._check_window(first, count)
        path, member = self._reader.locate(self.row, "wav")
        read = self._reader.ranges.read
        try:
            check_wav_header(read(path, member.offset, WAV_HEADER), self.num_frames)
        except ValueError as error:
            raise ValueError(f"{self._reader.storage.describe(path)}: {self.key}.wav is {error}") from error
        window = timebase.frame_slice_of_samples(first, count)
        data = read(path, member.offset + WAV_HEADER + 2 * window.start, 2 * (window.stop - window.start))
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)

    def annotation(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """Rows of an annotation column, `[count, …]`: float32 with NaN where there is no face (`valid`: bool).

        Columns that `talkinghead.annotation` does not know come as they are stored.
        """
        count = self._check_window(first, count)
        path, member = self._reader.locate(self.row, f"{name}.npy")
        read = self._reader.ranges.read
        try:
            layout = npy_layout(read(path, member.offset, min(member.size, NPY_HEAD)))
            if layout.shape[0] != self.num_frames or layout.size != member.size:
                raise ValueError(f"shape {layout.shape} in {member.size} bytes for {self.num_frames} frames")
            rows = read(path, member.offset + layout.start + first * layout.row_bytes, count * layout.row_bytes)
            if name in COLUMN:
                return decode_column(COLUMN[name], layout.array_bytes(rows))
        except ValueError as error:
            where = self._reader.storage.describe(path)
            raise ValueError(
                f"{where}: {self.key}.{member.suffix}: {error}; make verify lists what is damaged"
            ) from error
        return np.frombuffer(rows, layout.dtype).reshape(count, *layout.shape[1:])

    def _check_window(self, first: int, count: int | None) -> int:
        count = self.num_frames - first if count is None else count
        if first < 0 or count < 1 or first + count > self.num_frames:
            raise ValueError(f"frames {first} … {first + count - 1} are not in {self.key}: it has {self.num_frames}")
        return count


def read_media(storage: Storage, row: SampleIndex, suffix: str) -> bytes:
    """Content of `<key>.<suffix>` of a media shard, for who holds a row of the index and needs no reader.

    Raises:
        ValueError: The index lists no such member.
        OSError: The shard cannot be read there (`EOFError` when it is too short).
    """
    return bytes(read_members(storage.read_range, media_shard_name(row.shard), row.key, row.media, suffix)[suffix])


def read_column(storage: Storage, version: str, row: SampleIndex, name: str) -> np.ndarray:
    """One annotation column of a sample, float32 with NaN where a frame has no face (`valid`: bool).

    Raises as `read_media` does; also `ValueError` when the member is no such column.
    """
    suffix = COLUMN[name].member
    shard = annotation_shard_name(version, row.shard)
    found = read_members(storage.read_range, shard, row.key, row.annotation, suffix)
    return decode_column(COLUMN[name], bytes(found[suffix]))
