"""Checks of one media shard and its annotation shards: file against manifest, tar against index, members against one
another."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from shards.index import Archive, Index
from shards.index_format import SCORE
from shards.layout import WAV_HEADER, check_wav_header
from shards.manifest import AnnotationEntry, ShardEntry
from talkinghead import rng
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMN, check_arrays
from talkinghead.column import Column, decode_column, fits_shape
from talkinghead.config import shown
from talkinghead.derived import ANNOTATION
from talkinghead.files.foreign import JSON_BYTES, open_regular, parse_json, refuse_large
from talkinghead.files.storage import Storage
from talkinghead.npy import NPY_HEAD, npy_layout, read_npy
from talkinghead.provenance import hash_stream
from talkinghead.sampletar import walk_members
from talkinghead.schema import CLIP_INFO_BYTES, MEDIA_MEMBERS, ClipInfo, Member, SampleIndex, media_shard_name
from talkinghead.timebase import FPS, samples_in

MOST_SAMPLES = 1 << 15
"""Samples of a shard that are checked, at most: a shard of the usual size holds some hundred."""
_MOST_MEMBERS = 8 * MOST_SAMPLES
_FRAMES = Column("frames", (), "", np.dtype("u1"))  # an array without a form: one row for each frame

# --- files and tars ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a data set."""

    file: str
    """Path relative to DATA."""
    key: str | None
    """Key of the sample concerned; None: the problem concerns no single sample."""
    kind: str
    """`missing`, `size`, `sha256`, `unreadable`, `order`, `members`, `content`, `counts`, `splits`, `versions`."""
    detail: str

    def __str__(self) -> str:
        return f"{self.file}: {f'{self.key}: ' if self.key else ''}{self.detail} [{self.kind}]"


@dataclass(frozen=True)
class TarSample:
    """A sample as the tar itself lists it, whatever the index says."""

    key: str
    members: tuple[Member, ...]
    stream: BinaryIO
    """The tar."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the members, in their order."""
        return tuple(member.suffix for member in self.members)

    def size(self, suffix: str) -> int:
        """Bytes of a member's content."""
        return self.members[self.suffixes.index(suffix)].size

    def read(self, suffix: str, most: int | None = None) -> bytes:
        """Content of a member, or at most its first bytes."""
        member = self.members[self.suffixes.index(suffix)]
        self.stream.seek(member.offset)
        return self.stream.read(member.size if most is None else min(member.size, most))


class ShardCheck:
    """Check of all files of one shard number, which collects problems and counts.

    Args:
        storage: Storage of the data set.
        number: Number of the shard.
        indexes: Indexes of the versions to check; all must agree with the media.
        deep: Decode every clip instead of one per shard.
        shapes: Version and array → shape of its rows, where the settings decide it: that of the first sample, which is
            noted here and holds for all shards.
    """

    def __init__(
        self,
        storage: Storage,
        number: int,
        indexes: Sequence[Index],
        *,
        deep: bool,
        shapes: dict[tuple[str, str], tuple[int, ...]],
    ) -> None:
        self.storage = storage
        self.number = number
        self.indexes: list[Index] = []
        self.deep = deep
        self.shapes = shapes
        self.problems: list[Problem] = []
        self.shards = self.samples = self.frames = self.bytes = self.decoded = 0
        # Key → row of the first index that has it: the facts about a clip are the same in every version.
        self._rows: dict[str, SampleIndex] = {}
        for index in reversed(indexes):
            rows = index.shard_rows(number)
            if rows.stop - rows.start > MOST_SAMPLES:
                detail = f"index {index.version} lists {rows.stop - rows.start:,} samples in it"
                self.problems.append(Problem(media_shard_name(number), None, "counts", detail))
                continue
            self.indexes.insert(0, index)
            self._rows |= {row.key: row for row in index.rows(rows)}

    def media(self, entry: ShardEntry) -> None:
        """Check the media shard, also against every index."""
        for stream in self._intact(entry):
            listed = self._list(entry, stream)
            for index in self.indexes:
                self._compare(entry, listed, index, "media")
            # Unless all are decoded, decode one sample per shard, chosen by the shard's hash: the same each time.
            chosen = rng.key_bits(0, "verify", entry.sha256) % max(1, len(listed))
            for ordinal, sample in enumerate(listed):
                self.samples += 1
                if row := self._rows.get(sample.key):  # else `_compare` has reported it
                    self.frames += row.num_frames
                    with self._reporting(entry, sample):
                        info = check_media(row, sample)
                        if self.deep or ordinal == chosen:
                            self.decoded += 1
                            check_frames(sample.read("mp4"), info)

    def annotation(self, entry: ShardEntry, version: AnnotationEntry, index: Index | None) -> None:
        """Check the shard of one version; without its index, which is damaged, only the file's contents."""
        for stream in self._intact(entry):
            listed = self._list(entry, stream)
            if index in self.indexes:
                self._compare(entry, listed, index, "annotation")
            seen = self._seen(index) if index in self.indexes and version.kind == ANNOTATION else set()
            for sample in listed:
                if row := self._rows.get(sample.key):
                    with self._reporting(entry, sample):
                        shapes = check_annotation(sample, row.num_frames, version, seen=sample.key in seen)
                        self._check_shapes(version, shapes)

    def _seen(self, index: Index) -> set[str]:
        """Keys of the samples whose frames all show a face by the scores, so that readers do not look at `valid`."""
        if "valid_fraction" not in index.score_names:
            return set()
        rows = index.shard_rows(self.number)
        shares = index.numbers(f"{SCORE}valid_fraction")[rows]
        keys = index.table.column("key")[rows].to_pylist()
        return {key for key, share in zip(keys, shares.tolist(), strict=True) if share == 1}

    def _check_shapes(self, version: AnnotationEntry, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise `ValueError` for rows of another shape than those of the version's other clips."""
        for name, shape in shapes.items():
            first = self.shapes.setdefault((version.version, name), shape)
            if shape != first:
                raise ValueError(f"{name}.npy has rows of {list(shape)}, other clips of the version of {list(first)}")

    def _report(self, entry: ShardEntry, kind: str, detail: str, key: str | None = None) -> None:
        self.problems.append(Problem(entry.name, key, kind, detail))

    def _intact(self, entry: ShardEntry) -> Iterator[BinaryIO]:
        """Yield the file once, open, after comparing it with the manifest; nothing when it is missing."""
        size = self.storage.size(entry.name)
        if size is None:
            self._report(
                entry, "missing", "is not there: the command that made it packs it again (make shards, derive)"
            )
            return
        self.shards += 1
        self.bytes += size
        if size != entry.size:
            self._report(entry, "size", f"has {size} bytes, DATASET.json says {entry.size}")
        with self.storage.local_copy(entry.name) as path, open_regular(path) as stream:
            if (sha256 := hash_stream(stream)) != entry.sha256:
                self._report(entry, "sha256", f"has sha256 {sha256[:12]}…, DATASET.json says {entry.sha256[:12]!r}…")
            yield stream

    def _list(self, entry: ShardEntry, stream: BinaryIO) -> list[TarSample]:
        """Samples of a tar by its own headers, with its form checked: plain files grouped by key, proper end."""
        # Group neighbouring members by key.
        groups: list[tuple[str, list[Member]]] = []
        try:
            for count, (key, member) in enumerate(walk_members(stream)):
                if count == _MOST_MEMBERS:
                    raise ValueError(f"it has more than {_MOST_MEMBERS:,} members")
                if not groups or groups[-1][0] != key:
                    groups.append((key, []))
                groups[-1][1].append(member)
        except ValueError as error:
            self._report(entry, "unreadable", f"tar ends early or is damaged: {error}")
        # A key in two groups: another sample's members lie between its own.
        keys = [key for key, _ in groups]
        if len(set(keys)) != len(keys):
            self._report(entry, "order", "the members of a sample are not contiguous")
        # Removed samples, which are in no index, lie in the file until it is rewritten: only their number is known.
        there = [group for group in groups if group[0] in self._rows] if entry.removed else groups
        if (found := (len(there), len(groups) - len(there))) != (entry.samples, entry.removed):
            said = f"{entry.samples}, and {entry.removed} removed" if entry.removed else f"{entry.samples}"
            self._report(entry, "counts", f"holds {sum(found)} samples, DATASET.json says {said}")
        groups = there
        for key, members in groups:
            if len({member.suffix for member in members}) != len(members):
                self._report(entry, "members", "a member occurs twice", key)
        return [TarSample(key, tuple(members), stream) for key, members in groups]

    def _compare(self, entry: ShardEntry, listed: list[TarSample], index: Index, archive: Archive) -> None:
        """Compare a tar with an index: the same keys in the same order, and every member where the index says."""
        # Every sample must have media; annotations may lack only where the sample is dropped.
        rows = list(index.rows(index.shard_rows(self.number)))
        expected = [(row, getattr(row, archive)) for row in rows]
        for row, members in expected:
            if not members and (archive == "media" or row.keep):
                self._report(entry, "members", f"index {index.version} keeps it, but has no {archive} of it", row.key)
        # The keys in order, then the members of each.
        expected = [(row, members) for row, members in expected if members]
        names = [row.key for row, _ in expected]
        found = [sample.key for sample in listed]
        if names != found:
            self._report(entry, "order", f"index {index.version} lists other samples: {_difference(names, found)}")
        by_key = {sample.key: sample.members for sample in listed}
        for row, members in expected:
            if row.key in by_key and by_key[row.key] != tuple(members):
                self._report(entry, "members", f"index {index.version} has other members, places or sizes", row.key)

    @contextlib.contextmanager
    def _reporting(self, entry: ShardEntry, sample: TarSample) -> Iterator[None]:
        """Context in which a `ValueError` becomes a problem with the sample's content."""
        try:
            yield
        except ValueError as error:
            self._report(entry, "content", str(error), sample.key)


def _difference(expected: list[str], found: list[str]) -> str:
    """Words for the first difference between two lists of keys."""
    if sorted(expected) == sorted(found):
        position = next(i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
        return f"another order from ordinal {position} on ({expected[position]} expected, {found[position]} found)"
    missing, surplus = set(expected) - set(found), set(found) - set(expected)
    return f"{len(missing)} missing {sorted(missing)[:3]}, {len(surplus)} surplus {sorted(surplus)[:3]}"


# --- what a sample's members must hold --------------------------------------------------------------------------------


def check_media(row: SampleIndex, sample: TarSample) -> ClipInfo:
    """Check the members of a media sample, except the frames themselves, against its row of the index.

    Returns:
        The sample's clip info.

    Raises:
        ValueError: A member is missing, unknown or unreadable, or has another key or length than the index.
    """
    # The order counts, too: equal samples must give equal bytes.
    if sample.suffixes != MEDIA_MEMBERS:
        raise ValueError(f"has the members {', '.join(sample.suffixes)}, expected {', '.join(MEDIA_MEMBERS)}")
    refuse_large("json", sample.size("json"), CLIP_INFO_BYTES, "clip info")
    try:
        info = ClipInfo.from_json(sample.read("json"))
    except ValueError as error:
        raise ValueError(f"json is no clip info: {error}") from error
    for name in ("key", "clip_key", "dataset", "person", "split_group", "licence"):
        if getattr(info, name) != getattr(row, name):
            raise ValueError(f"json says {name} {shown(getattr(info, name))}, index {shown(getattr(row, name))}")
    num_frames = row.num_frames
    if info.num_frames != num_frames or len(info.source_pts) != num_frames:
        raise ValueError(f"json says {info.num_frames} frames ({len(info.source_pts)} times), index {num_frames}")
    check_wav_header(sample.read("wav", WAV_HEADER), num_frames)
    if sample.size("wav") != WAV_HEADER + 2 * samples_in(num_frames):
        raise ValueError(f"wav has {sample.size('wav')} bytes, {num_frames} frames need another number")
    return info


def check_frames(data: bytes, info: ClipInfo) -> None:
    """Decode all frames of an `mp4` member.

    Raises:
        ValueError: It cannot be decoded, has audio, or is not H.264 yuv420p at constant 25 fps of the size and length
            in `info`.
    """
    from av.error import FFmpegError

    try:
        _decode(data, info)
    except (FFmpegError, ValueError) as error:
        raise ValueError(f"mp4: {error}") from error


def _decode(data: bytes, info: ClipInfo) -> None:
    from talkinghead.media.media_file import open_media

    with open_media(io.BytesIO(data)) as container:
        if len(container.streams) != 1 or not container.streams.video:
            raise ValueError(f"has {len(container.streams)} streams, expected one video stream")
        stream = container.streams.video[0]
        if stream.codec_context.name != "h264" or stream.codec_context.pix_fmt != "yuv420p":
            raise ValueError(f"is {stream.codec_context.name} {stream.codec_context.pix_fmt}, not h264 yuv420p")
        if (stream.width, stream.height) != (info.width, info.height):
            raise ValueError(f"is {stream.width}x{stream.height}, json says {info.width}x{info.height}")
        count = 0
        for frame in container.decode(stream):
            # The container counts time in ticks: 1 ms is far below the 40 ms of a frame.
            if frame.time is None or abs(frame.time - count / FPS) > 1e-3:
                raise ValueError(f"shows frame {count} at {frame.time} s, not at {count / FPS} s")
            count += 1
    if count != info.num_frames:
        raise ValueError(f"has {count} frames, json says {info.num_frames}")


def check_annotation(
    sample: TarSample, num_frames: int, version: AnnotationEntry, *, seen: bool = False
) -> dict[str, tuple[int, ...]]:
    """Check the members of an annotation sample against what the version holds, and against one another.

    A face annotation must be complete, and a derived column as `DATASET.json` describes its arrays. Latents of releases
    that did not describe them only need rows for all frames.

    Args:
        sample: The members.
        num_frames: Frames of the clip.
        version: The version.
        seen: Whether the scores say that every frame shows a face.

    Returns:
        Array → shape of its rows, where the column's settings decide it.

    Raises:
        ValueError: A member is missing, unknown or unreadable, or has another type, shape or length; a number is
            infinite; a face is not NaN exactly where `valid` is 0; or `valid` is not what the scores say.
    """
    faces = version.kind == ANNOTATION
    forms = COLUMN if faces else version.arrays if "column" in version.details else {}
    _check_names(sample, version, forms)
    # Each member by itself: readable, of its form, and with as many rows as the clip needs.
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for suffix in sample.suffixes:
        if suffix.endswith(".json"):
            refuse_large(suffix, sample.size(suffix), JSON_BYTES, "JSON file")
            if not isinstance(parse_json(sample.read(suffix), suffix), dict):
                raise ValueError(f"{suffix} holds no object")
            continue
        form = forms.get(suffix.removesuffix(".npy"))
        try:
            layout = npy_layout(sample.read(suffix, NPY_HEAD))
            if layout.size != sample.size(suffix) or layout.shape[0] != (form or _FRAMES).num_rows(num_frames):
                raise ValueError(f"is {layout.shape} in {sample.size(suffix)} bytes, the clip has {num_frames} frames")
            if form and faces:
                arrays[form.name] = decode_column(form, sample.read(suffix))
            elif form:
                _check_stored(form, read_npy(sample.read(suffix)))
                if None in form.shape:
                    shapes[form.name] = layout.shape[1:]
        except ValueError as error:
            raise ValueError(f"{suffix}: {error}") from error
    # All columns of a face annotation together: NaN exactly where `valid` is 0.
    if faces:
        check_arrays(arrays)
        if seen and (without := int((~arrays["valid"]).sum())):
            raise ValueError(f"valid.npy: {without} frames show no face, by the index's valid_fraction all do")
    return shapes


def _check_names(sample: TarSample, version: AnnotationEntry, forms: Mapping[str, Column]) -> None:
    """Raise `ValueError` unless a sample has the members that its version needs."""
    if version.kind == ANNOTATION:
        needed = set(ANNOTATION_MEMBERS)
    else:
        needed = {f"{version.kind}.json", *(form.member for form in forms.values())} if forms else set()
        if unknown := set(sample.suffixes) - needed if needed else ():
            raise ValueError(f"has the unknown members {', '.join(sorted(unknown))}")
    if missing := needed - set(sample.suffixes):
        raise ValueError(f"lacks {', '.join(sorted(missing))}")


def _check_stored(form: Column, stored: np.ndarray) -> None:
    """Raise `ValueError` unless rows, as they are stored, are those of a column.

    NaN is not judged: the form does not say whether a frame may lack a value.
    """
    if stored.dtype != form.stored or not fits_shape(form, stored.shape[1:]):
        shape = ", ".join("?" if size is None else str(size) for size in form.shape)
        raise ValueError(f"is {stored.dtype} {list(stored.shape)}, must be {form.stored} of rows [{shape}]")
    if stored.dtype.kind == "f" and (infinite := int(_is_infinite(stored).sum())):
        raise ValueError(f"holds {infinite} infinite numbers")
    if stored.dtype.kind == "b" and stored.view(np.uint8).max(initial=0) > 1:
        raise ValueError("holds bytes that are neither true nor false")


def _is_infinite(values: np.ndarray) -> np.ndarray:
    """Which floats are infinite."""
    if values.dtype == np.float16:
        # By their bits without the sign: five times as fast for latents, which are most of what is read.
        return (values.view(np.uint16) << 1) == 0xF800
    return np.isinf(values)
