"""Random access to the samples of a data set by byte offset, a window at a time.

reader = ShardReader("build/real", split="train")
sample = reader[12]
sample.video(100, 16)                    # uint8 [16, H, W, 3]
sample.audio(100, 16)                    # float32 [16 * 640]
sample.annotation("landmarks", 100, 16)  # float32 [16, 478, 3], NaN where there is no face

From a store each of these calls costs a request. Where several parts of a sample are known beforehand, `fetch` reads
them together:

sample.fetch(Part("valid"), Part("video"), Part("info"))
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np

from shards.joined import JoinedVersions
from shards.layout import WAV_HEADER, check_wav_header
from shards.manifest import MOST_BYTES, DatasetManifest, read_manifest
from shards.ranges import HeldRanges, Range, RangeReader
from shards.selection import Selection, select
from talkinghead import dataroot, timebase
from talkinghead.annotation import COLUMN, frames_without_face
from talkinghead.column import Column, decode_column, decode_rows, fits_shape
from talkinghead.derived import ANNOTATION
from talkinghead.files.storage import Storage
from talkinghead.npy import NPY_HEAD, NpyLayout, npy_layout
from talkinghead.sampletar import read_members
from talkinghead.schema import MOST_PADDED_SOUND, ClipInfo, Member, SampleIndex

SPEECH = {"audio_missing": 0.0, "audio_silent": 0.0, "audio_padded_fraction": MOST_PADDED_SOUND}
"""Value of `at_most` that leaves out samples without audible sound, or whose sound ends early or has gaps."""

_WHOLE = {"video": "mp4", "info": "json"}
"""Part of a sample that is always read as a whole → its member."""
_VALID = "valid"
_SPEAKER = ("person", "split_group")  # columns of the index; the first that a sample has

ClipDecoder = Literal["pyav", "decord"]
"""Engine that decodes clips. `decord` gives the same frames, with colours one level darker; what it costs and gains
stands in `talkinghead/media/decord_frames.py`, and `make bench` measures it."""


@dataclass(frozen=True)
class Part:
    """Part of a sample that will be read: see `Sample.fetch`."""

    name: str
    """`video`, `audio`, `info`, or a column."""
    first: int = 0
    """Number of the first frame. A video is always read as a whole, for its container says where frames lie."""
    count: int | None = None
    """Number of frames; None: to the end."""


class ShardReader:
    """Reader of the samples of one split, in index order.

    Opening reads `DATASET.json` and the index; media are read when asked for. Safe to use after a fork, from threads,
    and to pickle into spawned processes.

    Args:
        data: Data set: folder, URI or storage.
        version: Annotation version; None: the newest face annotation.
        split: `train`, `val` or `test`; None: all.
        kept: Whether to leave out samples that the filters dropped.
        columns: Columns that will be read: samples that lack one are left out with a warning, now rather than with an
            error in the middle of an epoch.
        join: Derived columns whose arrays, scores and labels can be read, too: `mouth` (its newest version),
            `mouth@mouth-0123456789ab`, or a version's name.
        at_least: Score → smallest value. This and the following are the rules of `shards.selection.Selection`.
        at_most: Score → largest value. Training from speech uses `SPEECH`.
        licence: Licences whose samples are read; empty: all.
        person: Persons (or split groups, where the data set names no persons) whose samples are read; empty: all.
        split_group: Split groups whose samples are read; empty: all.
        label: Label → values of which a sample must have one.
        decoder: Engine that decodes the clips.

    Raises:
        FileNotFoundError: There is no data set.
        ValueError: There is no such decoder, version, column, score, licence, person, group or label, or columns were
            made of different things and do not go together; the message tells what to do.
    """

    def __init__(
        self,
        data: Storage | str | Path,
        *,
        version: str | None = None,
        split: str | None = "train",
        kept: bool = True,
        columns: tuple[str, ...] = (),
        join: tuple[str, ...] = (),
        at_least: Mapping[str, float] | None = None,
        at_most: Mapping[str, float] | None = None,
        licence: tuple[str, ...] = (),
        person: tuple[str, ...] = (),
        split_group: tuple[str, ...] = (),
        label: Mapping[str, tuple[str, ...]] | None = None,
        decoder: ClipDecoder = "pyav",
    ) -> None:
        if decoder not in get_args(ClipDecoder):
            raise ValueError(f"decoder is {decoder!r}, must be {' or '.join(get_args(ClipDecoder))}")
        self.decoder: ClipDecoder = decoder
        # Open the manifest, and the indexes of the version and of what is joined to it.
        selection = Selection(
            at_least=at_least or {},
            at_most=at_most or {},
            licence=licence,
            person=person,
            split_group=split_group,
            label=label or {},
        )
        self.storage = data if isinstance(data, Storage) else Storage(data)
        self.manifest = read_manifest(self.storage)
        self.versions = JoinedVersions(self.storage, self.manifest, version, join)
        self.version = self.versions.first.entry.version
        self.index = self.versions.first.index
        # A flag for every row, [rows] bool; a copy, since the arrays of the index are shared.
        chosen = self.index.numbers("keep").copy() if kept else np.ones(len(self.index), bool)
        if split is not None:
            chosen &= self.index.equals("split", split)
        # Leave out samples that lack a column, or that the user does not want.
        chosen, self.left_out = select(self.versions, selection, columns, chosen)
        """What was wrong with samples, in words, and how many were left out for it, rule by rule."""
        # Sample → row of the index, [N]; everything below is addressed by row.
        self.rows = np.flatnonzero(chosen)
        entries = [self.manifest.media, *(opened.entry.shards for opened in self.versions.opened.values())]
        self.ranges = RangeReader(self.storage, {entry.name: entry for shards in entries for entry in shards})
        self.rows_of: dict[str, NpyLayout] = {}
        """Column whose settings decide the shape of a row → layout of an array of it: of one clip, read out of its
        header, which the other clips then need not be asked for."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: int) -> Sample:
        if not -len(self) <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        return Sample(self, int(self.rows[sample]))

    @property
    def num_frames(self) -> np.ndarray:
        """Number of frames of each sample, `[N]`."""
        return self.index.numbers("num_frames")[self.rows]

    @property
    def name(self) -> str:
        """Data set, for messages."""
        return self.storage.uri

    @functools.cached_property
    def keys(self) -> list[str]:
        """Keys of the samples, in order."""
        return self.index.table.column("key").take(self.rows).to_pylist()

    @property
    def speakers(self) -> list[str]:
        """Speaker of each sample: the person, or where the data set names none, the split group."""
        persons, groups = (self.index.table.column(name).take(self.rows).to_pylist() for name in _SPEAKER)
        return [person or group for person, group in zip(persons, groups, strict=True)]

    @property
    def shards(self) -> np.ndarray:
        """Number of the shard of each sample, `[N]`."""
        return self.index.numbers("shard")[self.rows]

    def find(self, key: str) -> Sample:
        """Sample with this key; `KeyError` when the reader does not have it."""
        return self[self._by_key[key]]

    @functools.cached_property
    def _by_key(self) -> dict[str, int]:
        return {key: sample for sample, key in enumerate(self.keys)}

    @property
    def joined(self) -> dict[str, str]:
        """Derived column → its version, of all that were joined, also of those that only a rule needed."""
        return self.versions.joined

    def form(self, column: str) -> Column | None:
        """Form in which a column is stored; None where nothing says so. `ValueError` where there is no such column."""
        return self.versions.form(column)

    @functools.cached_property
    def always_seen(self) -> np.ndarray:
        """Rows of the index that show a face in every frame by the annotation's scores, `[rows]` bool.

        Their `valid` is not read: of a long clip that would take a request of its own, before anything else could be
        asked for. Whoever reads a face there that is none gets an error, and `make verify` compares the score with
        `valid`.
        """
        opened = self.versions.opened.get(ANNOTATION)
        # The share is a mean of zeros and ones, so it is 1 exactly where all are.
        return opened.score("valid_fraction") == 1 if opened else np.zeros(len(self.index), bool)

    def check_column(self, column: str) -> None:
        """Raise `ValueError` unless every sample of this reader has the column."""
        there = self.versions.holder(f"{column}.npy").index.has_member(f"{column}.npy")[self.rows]
        if not there.all():
            raise ValueError(
                f"{int((~there).sum())} of {len(self)} samples have no {column}:"
                f" name it in the reader's columns=({column!r},) to leave them out"
            )

    def locate(self, row: int, suffix: str) -> tuple[str, Member]:
        """File (relative to DATA) and place of one member; `ValueError` when the sample or the data set has none."""
        index = self.versions.holder(suffix).index
        member = index.member(suffix, row)
        if member is None:
            raise ValueError(f"sample {index.text('key', row)} has no {suffix}: making it failed (make quarantine)")
        shard = int(index.numbers("shard")[row])
        # Media are shared by all versions; each version has annotation shards of its own, numbered alike.
        version = None if self.versions.where[suffix][1] == "media" else index.version
        return shard_name(self.manifest, version, shard), member


class Sample:
    """One sample of a reader; every method reads only the bytes it needs, unless they were fetched before."""

    def __init__(self, reader: ShardReader, row: int) -> None:
        self._reader = reader
        self._held: list[HeldRanges] = []
        self.row = row
        """Row number in the index."""
        self.num_frames = int(reader.index.numbers("num_frames")[row])

    def __repr__(self) -> str:
        return f"Sample({self.key}, {self.num_frames} frames)"

    @property
    def key(self) -> str:
        """Key of the sample."""
        key = self._reader.index.text("key", self.row)
        assert key is not None
        return key

    @property
    def speaker(self) -> str:
        """Name of the speaker: the person, or where the data set names none, the split group."""
        texts = (self._reader.index.text(name, self.row) for name in _SPEAKER)
        return next(text for text in texts if text)

    @property
    def index(self) -> SampleIndex:
        """Row of the index: scores, split, reason, …"""
        return self._reader.index.row(self.row)

    def score(self, name: str) -> float | None:
        """Score of the clip, None where it could not be measured; `name` is a score, or `column.score`.

        Raises:
            ValueError: None of the versions that the reader has joined has it, or several have.
        """
        opened, plain = self._reader.versions.find("score", name)
        value = float(opened.score(plain)[self.row])
        return None if math.isnan(value) else value

    def label(self, name: str) -> str | None:
        """Label of the clip, None where it has none; `name` is a label, or `column.label`. Raises like `score`."""
        opened, plain = self._reader.versions.find("label", name)
        return opened.label(plain, self.row)

    @functools.cached_property
    def info(self) -> ClipInfo:
        """Clip info: where the sample comes from, its size and length (the `json` member)."""
        try:
            return ClipInfo.from_json(self.member("json"))
        except ValueError as error:
            raise self.damaged("json", error) from error

    @property
    def always_seen(self) -> bool:
        """Whether every frame is known to show a face, so that `valid` needs no reading (`ShardReader.always_seen`)."""
        return bool(self._reader.always_seen[self.row])

    def fetch(self, *parts: Part, requests: int | None = None) -> None:
        """Read parts of the sample into memory, out of which the methods that are called later take them.

        Of a store it takes as few requests as `shards.ranges.joined` makes of them, all at the same time. From a local
        disk nothing is fetched: there each part is read when it is asked for. Nor is a part that cannot be read: asking
        for it then says what is wrong, and with which member.

        Args:
            parts: The parts.
            requests: Number of requests that the sample may have taken after this, with those of earlier calls: parts
                that lie far apart in a shard are then read with what lies between them. None: any number.

        Raises:
            OSError: The machine or the store is at fault.
        """
        if not self._reader.ranges.remote:
            return
        left = None if requests is None else requests - sum(map(len, self._held))
        try:
            wanted = [one for part in parts for one in self._ranges(part) if self._find(one) is None]
            self._held.append(self._reader.ranges.read_all(wanted, left))
        except ValueError:
            return

    def _ranges(self, part: Part) -> list[Range]:
        """Bytes that a method reads for a part."""
        if part.name == _VALID and self.always_seen:
            return []
        if part.name in _WHOLE:
            return [self._range(_WHOLE[part.name])]
        count = self._check_window(part.first, part.count)
        if part.name == "audio":
            return self._sound_ranges(part.first, count)
        if count == self.num_frames:
            return [self._range(f"{part.name}.npy")]
        return [self._rows(part.name, part.first, count)[1]]

    def _range(self, suffix: str, first: int = 0, length: int | None = None) -> Range:
        """Bytes of a member: `length` of them (None: to its end) from its own byte `first` on."""
        path, member = self._reader.locate(self.row, suffix)
        return Range(path, member.offset + first, member.size - first if length is None else length)

    def _find(self, wanted: Range) -> memoryview | None:
        """Bytes that were fetched."""
        for held in self._held:
            if (data := held.find(wanted)) is not None:
                return data
        return None

    def _contents(self, wanted: Iterable[Range]) -> list[memoryview]:
        """Bytes of ranges, read unless they were fetched."""
        ranges = list(wanted)
        lacking = [one for one in ranges if self._find(one) is None]
        read = self._reader.ranges.read_all(lacking)
        found = [read.find(one) if one in lacking else self._find(one) for one in ranges]
        return [data for data in found if data is not None]

    def member(self, suffix: str) -> bytes:
        """Content of a whole member, as it is stored."""
        return bytes(self._contents([self._range(suffix)])[0])

    def members(self, *suffixes: str) -> dict[str, memoryview]:
        """Contents of several members (all by default) by suffix, as they are stored, with one read per shard."""
        # Grouped by file: media and annotations lie in different shards.
        places: dict[str, list[Member]] = {}
        for suffix in suffixes or self._reader.versions.where:
            path, member = self._reader.locate(self.row, suffix)
            places.setdefault(path, []).append(member)
        found: dict[str, memoryview] = {}
        for path, members in places.items():
            found |= read_members(self._reader.ranges.read, path, self.key, members)
        return found

    def video(self, first: int = 0, count: int | None = None, stride: int = 1) -> np.ndarray:
        """Frames as RGB uint8 `[count, H, W, 3]`; nothing after the last of them is decoded.

        Args:
            first: Number of the first frame.
            count: Number of frames; None: as many as there are.
            stride: Distance in frames from one to the next; at least 1.

        Raises:
            ValueError: The window does not lie in the clip, `stride` is below 1, or the member is damaged.
        """
        from av.error import FFmpegError

        if self._reader.decoder == "decord":
            from talkinghead.media.decord_frames import decode_window
        else:
            from talkinghead.media.clip import decode_window

        if stride < 1:
            raise ValueError(f"stride must be at least 1, not {stride}: frames are read in their order")
        # Frames from the first to the last one that is shown; with a stride, fewer of them are returned.
        span = self._check_window(first, None if count is None else (count - 1) * stride + 1)
        try:
            with self._open("mp4") as stream:
                return decode_window(stream, first, (span - 1) // stride + 1, stride)
        except (FFmpegError, ValueError) as error:
            raise self.damaged("mp4", error) from error

    def _open(self, suffix: str) -> BinaryIO:
        """A member as a seekable file."""
        whole = self._range(suffix)
        data = self._find(whole)
        return self._reader.ranges.open(*whole) if data is None else io.BytesIO(data)

    def audio(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """Audio of `count` frames from `first` on (None: to the end), float32 `[count * 640]` at 16 kHz in -1 … 1."""
        count = self._check_window(first, count)
        try:
            head, data = self._contents(self._sound_ranges(first, count))
            # Checked at every read: another header would shift all samples, which nobody would notice.
            check_wav_header(bytes(head), self.num_frames)
        except ValueError as error:
            raise self.damaged("wav", error) from error
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)  # int16 → -1 … 1

    def _sound_ranges(self, first: int, count: int) -> list[Range]:
        """Bytes of the header of the sound, and of a window of it."""
        # Two bytes a sample, after the header: only the window is read.
        window = timebase.frame_slice_of_samples(first, count)
        return [
            self._range("wav", 0, WAV_HEADER),
            self._range("wav", WAV_HEADER + 2 * window.start, 2 * (window.stop - window.start)),
        ]

    def annotation(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """Rows of a column that belong to a window of frames, `[rows, …]`.

        Of an annotation column, `[count, …]`: float32 with NaN where there is no face (`valid`: bool). Of a derived
        column, as its form says: one row or several for each frame, steps as float32 with NaN; or, where it has one row
        for the clip, this row for every window. Columns whose form nobody knows have a row a frame, as it is stored.

        Args:
            name: Name of the column.
            first: Number of the first frame.
            count: Number of frames; None: to the end.

        Raises:
            ValueError: The window does not lie in the clip, the column is missing, or the member is damaged.
        """
        count = self._check_window(first, count)
        form = self._reader.form(name)
        self._reader.locate(self.row, f"{name}.npy")  # a column that is missing is no damage
        if name == _VALID and self.always_seen:
            return np.ones(count, bool)
        try:
            layout, place = self._rows(name, first, count)
            [data] = self._contents([place])
            stored = layout.rows(data, place.length // layout.row_bytes)  # read-only
            values = stored if form is None else decode_rows(form, stored)
            if self.always_seen and (lacking := frames_without_face(name, values)):
                raise ValueError(f"{lacking} frames show no face, by the index's valid_fraction all do")
            return values
        except ValueError as error:
            raise self.damaged(f"{name}.npy", error) from error

    def _rows(self, name: str, first: int, count: int) -> tuple[NpyLayout, Range]:
        """Layout of a column, and the bytes of those rows that belong to a window."""
        form = self._reader.form(name)
        in_frame = 1 if form is None else form.rows
        rows, start, wanted = (
            (1, 0, 1) if in_frame == "clip" else (in_frame * self.num_frames, in_frame * first, in_frame * count)
        )
        layout = self._layout(name, rows)
        # Only the window's rows are read.
        return layout, self._range(f"{name}.npy", layout.start + start * layout.row_bytes, wanted * layout.row_bytes)

    def _layout(self, name: str, rows: int) -> NpyLayout:
        """Layout of a column of so many rows, checked against the size of the member.

        Where the header costs a request of its own, the form of the column stands for it. Where it was read anyway, or
        lies on a local disk, it is what counts.
        """
        whole, form = self._range(f"{name}.npy"), self._reader.form(name)
        head = Range(whole.path, whole.offset, min(whole.length, NPY_HEAD))
        data = self._find(head)
        if data is None and self._reader.ranges.remote and form is not None:
            known = self._reader.rows_of.get(name)
            if None not in form.shape:
                known = NpyLayout((1, *form.row_shape), form.stored, NPY_HEAD)
            if known is not None:
                layout = NpyLayout((rows, *known.shape[1:]), known.dtype, known.start)
                if layout.size != whole.length:
                    raise ValueError(f"{whole.length} bytes for {rows} rows of {layout.dtype} {layout.shape[1:]}")
                return layout
        layout = npy_layout(bytes(self._contents([head])[0] if data is None else data))
        if layout.shape[0] != rows or layout.size != whole.length:
            raise ValueError(f"shape {layout.shape} in {whole.length} bytes for {rows} rows")
        # Only what has the form: the others would else be measured by a damaged one.
        if form is not None and fits_shape(form, layout.shape[1:]) and layout.dtype == form.stored:
            self._reader.rows_of[name] = layout
        return layout

    def damaged(self, suffix: str, error: Exception) -> ValueError:
        """Error about a member that does not hold what it should; it names the file."""
        path = self._reader.storage.describe(self._reader.locate(self.row, suffix)[0])
        return ValueError(f"{path}: {self.key}.{suffix}: {error}; make verify lists what is damaged")

    def _check_window(self, first: int, count: int | None) -> int:
        """Number of frames of a window (None: to the end of the clip); `ValueError` unless it lies in the clip."""
        count = self.num_frames - first if count is None else count
        if first < 0 or count < 1 or first + count > self.num_frames:
            raise ValueError(f"frames {first} … {first + count - 1} are not in {self.key}: it has {self.num_frames}")
        return count


def shard_name(manifest: DatasetManifest, version: str | None, shard: int) -> str:
    """Path of a shard relative to DATA, as the manifest names it: of a version, or of the media (None)."""
    shards = manifest.media if version is None else manifest.annotation(version).shards
    if not 0 <= shard < len(shards):
        raise ValueError(f"the index names shard {shard}, DATASET.json has {len(shards)} of {version or 'the media'}")
    return shards[shard].name


@functools.lru_cache(2)
def _parsed(data: bytes, name: str) -> DatasetManifest:
    return DatasetManifest.from_json(data, name)


def _manifest(storage: Storage) -> DatasetManifest:
    """Manifest for callers that read one sample after the other: it is parsed anew only when it has changed."""
    data = storage.read(dataroot.DATASET_JSON, MOST_BYTES, "manifest")
    return _parsed(data, storage.describe(dataroot.DATASET_JSON))


def read_media(storage: Storage, row: SampleIndex, suffix: str) -> bytes:
    """Content of `<key>.<suffix>` in a media shard, for callers that hold a row of the index and need no reader.

    Raises:
        ValueError: The index lists no such member.
        OSError: The shard cannot be read.
        EOFError: The shard is too short.
    """
    shard = shard_name(_manifest(storage), None, row.shard)
    return bytes(read_members(storage.read_range, shard, row.key, row.media, suffix)[suffix])


def read_column(storage: Storage, version: str, row: SampleIndex, name: str) -> np.ndarray:
    """One annotation column of a sample, float32 with NaN where a frame has no face (`valid`: bool).

    Raises like `read_media`; also `ValueError` when the member does not hold such a column.
    """
    suffix = COLUMN[name].member
    shard = shard_name(_manifest(storage), version, row.shard)
    found = read_members(storage.read_range, shard, row.key, row.annotation, suffix)
    return decode_column(COLUMN[name], bytes(found[suffix]))
