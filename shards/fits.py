"""Global fits over the packed clips: their parts, the work on one, the merge of all, and their files in DATA.

A cluster and a single process do the very same steps, so that both make the same bytes: parts from the index alone
(`plan_parts`), sums of each (`fit_part`), merges in an order that the number of parts decides (`merge_parts`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from shards.manifest import DatasetManifest, FitEntry, read_manifest
from shards.order import spread
from shards.reader import SPEECH, Sample, ShardReader
from shards.selection import Selection
from talkinghead import dataroot
from talkinghead.annotation import COLUMN
from talkinghead.column import Arrays
from talkinghead.derived import MEDIA_NEEDS, ColumnError, Fit
from talkinghead.files.storage import Storage
from talkinghead.global_fit import GlobalFit
from talkinghead.npz import MOST_BYTES, decode_npz, encode_npz
from talkinghead.provenance import canonical_json, hash_bytes, library_versions, provenance_key
from talkinghead.runtime.progress import ProgressCallback
from talkinghead.schema import ClipInfo


class FitFileError(ValueError):
    """Error about the file of a fit that is missing or damaged; the message names it."""


FRAMES_OF_A_PART = 100_000
"""Frames that a part of speakers has, more or less; about a minute of work."""

_AT_ONCE = 100  # frames that are decoded at once


@dataclass(frozen=True, kw_only=True)
class FitSource:
    """Everything that decides what a fit comes out as, next to its code."""

    settings: Any
    """Settings of the fit: its own dataclass."""
    annotation: str
    """Annotation version of the clips."""
    index: str
    """Path of its index; the name holds a hash of the content."""
    selection: Selection = field(default_factory=Selection)
    """Choice of the clips, next to split, kept and what the fit needs."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Name of a derived column that is joined → the version of it."""
    fits: Mapping[str, str] = field(default_factory=dict)
    """Name of another fit → SHA-256 of its file."""

    def to_json(self) -> dict[str, Any]:
        """Fields of a `FitEntry`."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


# --- the clips of a fit and their parts -------------------------------------------------------------------------------


def reader_for(
    fit: GlobalFit,
    storage: Storage,
    *,
    annotation: str | None = None,
    join: Sequence[str] = (),
    selection: Selection | None = None,
) -> ShardReader:
    """Open the clips of a fit: the kept training clips that have what it needs, with audible sound where it needs any.

    Args:
        fit: The fit.
        storage: Data set.
        annotation: Annotation version; None: the newest.
        join: Derived columns to join (`column`, or `column@version`). Others that the fit needs are joined in their
            newest versions; the reader's `joined` says which.
        selection: Further choice of the clips; it may use scores and labels of columns in `join`.

    Raises:
        FileNotFoundError: There is no data set.
        ValueError: It lacks a version, column, score or person; the message tells how to make it.
    """
    selection = selection or Selection()
    columns = [need for need in fit.needs if need in COLUMN]
    derived = [need for need in fit.needs if need not in COLUMN and need not in MEDIA_NEEDS]
    # Of derived columns that it needs, a clip must have all arrays, in the version that is joined.
    if derived:
        manifest = read_manifest(storage)
        join = [*join, *(name for name in derived if name not in {manifest.derived(joined).kind for joined in join})]
        columns += [
            array for name in join if (entry := manifest.derived(name)).kind in derived for array in entry.arrays
        ]
    if "wav" in fit.needs:
        selection = replace(selection, at_most=with_speech(selection.at_most))
    return ShardReader(storage, version=annotation, columns=tuple(columns), join=tuple(join), **selection.arguments())


def with_speech(at_most: Mapping[str, float]) -> dict[str, float]:
    """Upper bounds of scores, and those that leave out clips without audible sound (`shards.reader.SPEECH`)."""
    return {**at_most, **{score: min(most, at_most.get(score, most)) for score, most in SPEECH.items()}}


def source_of(
    reader: ShardReader, settings: Any, selection: Selection | None = None, fits: Mapping[str, Fit] | None = None
) -> FitSource:
    """What a fit over the clips of a reader is made of.

    Args:
        reader: Reader of `reader_for`.
        settings: Settings of the fit.
        selection: Selection with which the reader was opened.
        fits: The fits that it needs.
    """
    return FitSource(
        settings=settings,
        annotation=reader.version,
        index=reader.manifest.annotation(reader.version).index,
        selection=selection or Selection(),
        pins=dict(reader.joined),
        fits={name: fit.sha256 for name, fit in (fits or {}).items()},
    )


def plan_parts(fit: GlobalFit, reader: ShardReader) -> list[list[int]]:
    """Sample numbers of each part of a fit, in order: a function of the index and the fit's declaration alone.

    Clips are divided by shard; or by speaker, so that all clips of a speaker are in one part, with the speakers in the
    order of their names and each one's clips in the order of the reader.
    """
    chosen = range(len(reader)) if fit.most_clips is None else spread(len(reader), fit.most_clips)
    if not chosen:
        return []
    if fit.parts == "shards":
        shards = reader.index.numbers("shard")[reader.rows]
        return [list(part) for _, part in itertools.groupby(chosen, lambda sample: int(shards[sample]))]
    # Speaker after speaker; each is in the part in whose share of the frames its middle lies.
    persons, groups = (reader.index.table.column(name).take(reader.rows).to_pylist() for name in _SPEAKER)
    names = [person or group for person, group in zip(persons, groups, strict=True)]
    by_name = sorted(chosen, key=lambda sample: (names[sample], sample))
    frames = reader.num_frames
    total = int(frames[by_name].sum())
    count = max(1, total // FRAMES_OF_A_PART)
    parts: dict[int, list[int]] = {}
    before = 0
    for _, samples in itertools.groupby(by_name, lambda sample: names[sample]):
        speaker = list(samples)
        own = int(frames[speaker].sum())
        parts.setdefault((2 * before + own) * count // (2 * total), []).extend(speaker)
        before += own
    return list(parts.values())


_SPEAKER = ("person", "split_group")  # the first that a sample has


def frames_of(reader: ShardReader, parts: Sequence[Sequence[int]]) -> int:
    """Number of frames of the clips of all parts."""
    lengths = reader.num_frames
    return sum(int(lengths[list(part)].sum()) for part in parts)


class ReaderSample:
    """Sample of a reader, as a fit sees it; see `talkinghead.derived.ColumnSample`.

    Args:
        reader: The reader.
        number: Number of the sample.
    """

    def __init__(self, reader: ShardReader, number: int) -> None:
        self._sample: Sample = reader[number]
        self._index = reader.index

    @property
    def key(self) -> str:
        """Key of the sample."""
        return self._sample.key

    @property
    def speaker(self) -> str:
        """Name of the speaker: the person, or where the data set names none, the split group."""
        texts = (self._index.text(name, self._sample.row) for name in _SPEAKER)
        return next(text for text in texts if text)

    @property
    def num_frames(self) -> int:
        """Number of frames F."""
        return self._sample.num_frames

    @property
    def info(self) -> ClipInfo:
        """Facts about the clip."""
        return self._sample.info

    def video(self) -> Iterator[np.ndarray]:
        """Every frame in order, RGB uint8 `[H, W, 3]`."""
        for first in range(0, self.num_frames, _AT_ONCE):
            yield from self._sample.video(first, min(_AT_ONCE, self.num_frames - first))

    def audio(self) -> np.ndarray:
        """The whole sound, float32 `[F · 640]` at 16 kHz in -1 … 1."""
        return self._sample.audio()

    def column(self, name: str) -> np.ndarray:
        """A column `[rows, …]`, NaN where there is none; `ColumnError` where the sample has none."""
        try:
            return self._sample.annotation(name)
        except ValueError as error:
            raise ColumnError("needs", str(error)) from error


# --- making a fit -----------------------------------------------------------------------------------------------------


def fit_part(
    fit: GlobalFit,
    settings: Any,
    fits: Mapping[str, Fit],
    reader: ShardReader,
    part: Sequence[int],
    num_frames: int,
    on_sample: ProgressCallback | None = None,
) -> dict[str, np.ndarray]:
    """Sums over the clips of one part.

    Args:
        fit: The fit.
        settings: Its settings.
        fits: The fits that it needs.
        reader: Reader of its clips.
        part: Sample numbers of `plan_parts`.
        num_frames: Frames of the clips of all parts (`frames_of`).
        on_sample: Called with the clips of this part that are done.
    """

    def samples() -> Iterator[ReaderSample]:
        for done, number in enumerate(part):
            if on_sample:
                on_sample(stage_of(fit), done, len(part))
            yield ReaderSample(reader, number)

    return fit.partial(samples(), settings, fits, num_frames)


def merge_parts(fit: GlobalFit, parts: Iterable[Arrays], num_frames: int) -> Arrays | None:
    """Sums over all parts, given in their order; None where there is no part.

    Equal numbers of neighbouring parts are merged first, so that what grows with the clips is copied a few times and
    not once for each part. The order of the merges is a function of the number of parts.
    """
    waiting: list[tuple[int, Arrays]] = []  # (number of parts, sums), each more parts than the next one
    for sums in parts:
        waiting.append((1, sums))
        while len(waiting) > 1 and waiting[-2][0] == waiting[-1][0]:
            _merge_last(fit, waiting, num_frames)
    while len(waiting) > 1:
        _merge_last(fit, waiting, num_frames)
    return waiting[0][1] if waiting else None


def _merge_last(fit: GlobalFit, waiting: list[tuple[int, Arrays]], num_frames: int) -> None:
    (more, two), (count, one) = waiting.pop(), waiting.pop()
    waiting.append((count + more, fit.merge(one, two, num_frames)))


def make_fit(
    fit: GlobalFit,
    settings: Any,
    fits: Mapping[str, Fit],
    reader: ShardReader,
    on_progress: ProgressCallback | None = None,
) -> dict[str, np.ndarray]:
    """A fit, made in this process.

    Args:
        fit: The fit.
        settings: Its settings.
        fits: The fits that it needs.
        reader: Reader of its clips (`reader_for`).
        on_progress: Called with the clips that are done.

    Raises:
        ValueError: The clips do not allow the fit.
    """
    parts = plan_parts(fit, reader)
    num_frames = frames_of(reader, parts)
    total = sum(map(len, parts))

    def each() -> Iterator[Arrays]:
        before = 0
        for part in parts:

            def tell(stage: str, done: int, _: int, before: int = before) -> None:
                if on_progress:
                    on_progress(stage, before + done, total)

            yield fit_part(fit, settings, fits, reader, part, num_frames, tell)
            before += len(part)

    sums = merge_parts(fit, each(), num_frames)
    if sums is None:
        raise ValueError(f"{reader.storage.uri} has no training clip for the fit {fit.name}: look at make report")
    return fit.finish(sums, settings, fits)


def stage_of(fit: GlobalFit) -> str:
    """Name of the work on a fit, for progress."""
    return f"fit {fit.name}"


# --- files of fits ----------------------------------------------------------------------------------------------------


def fit_key(fit: GlobalFit, source: FitSource) -> str:
    """Provenance key: the same key, the same sums and the same file."""
    return provenance_key(
        f"fit-{fit.name}",
        fit.version,
        parameters=_plain(source.settings),
        inputs=source.to_json(),
        libraries=library_versions("numpy"),
    )


def find_fit(
    storage: Storage,
    manifest: DatasetManifest,
    fit: GlobalFit,
    settings: Any,
    index: str,
    selection: Selection | None = None,
    pins: Mapping[str, str] | None = None,
    *,
    needed: Mapping[str, Fit] | None = None,
    keys: Sequence[str] | None = None,
) -> Fit | None:
    """Read the newest fit of these settings, clips and code out of DATA; None where there is none.

    Args:
        storage: Data set.
        manifest: Its manifest.
        fit: The fit.
        settings: Its settings.
        index: Path of the annotation's index.
        selection: Choice of the clips.
        pins: Name of a derived column → version of it.
        needed: The fits that it must have been made with; None: whichever they were.
        keys: Keys of the clips that it must have been made of (`keys_of`); None: whichever it was. A derived column
            whose failures were mended has the same version, and may lead to other clips.

    Raises:
        FitFileError: The file that the manifest names is missing or damaged.
    """
    hashes = None if needed is None else {name: made.sha256 for name, made in needed.items()}
    wanted = canonical_json([settings, index, selection or Selection(), pins or {}])
    for entry in reversed(manifest.fits):
        known = canonical_json([entry.settings, entry.index, entry.selection, entry.pins])
        if (entry.name, entry.version) != (fit.name, fit.version) or known != wanted:
            continue
        if hashes is not None and entry.fits != hashes:
            continue
        arrays, about = _read(storage, entry.name, entry.sha256)
        if keys is None or (isinstance(about, dict) and about.get("keys") == list(keys)):
            return Fit(sha256=entry.sha256, arrays=arrays)
    return None


def read_fit(storage: Storage, name: str, sha256: str) -> Fit:
    """Fit with this hash.

    Raises:
        ValueError: Its file is missing or damaged.
    """
    return Fit(sha256=sha256, arrays=_read(storage, name, sha256)[0])


def _read(storage: Storage, name: str, sha256: str) -> tuple[dict[str, np.ndarray], Any]:
    path = dataroot.fit(name, sha256)
    shown = storage.describe(path)
    try:
        data = storage.read(path, MOST_BYTES, "global fit")
    except FileNotFoundError:
        raise FitFileError(f"{shown} is missing, and DATASET.json names it: run make basis again") from None
    if hash_bytes(data) != sha256:
        raise FitFileError(f"{shown} is damaged (its hash is another): run make basis again")
    return decode_npz(data, shown)


def write_fit(
    storage: Storage, fit: GlobalFit, source: FitSource, keys: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> FitEntry:
    """Write the file of a fit, which its hash names.

    Args:
        storage: Data set.
        fit: The fit.
        source: What it was made of.
        needed: The fits that it must have been made with; None: whichever they were.
        keys: Keys of the clips that it read, in order.
        arrays: The fit.

    Returns:
        Its entry in `DATASET.json`, which the caller makes.
    """
    about = {"name": fit.name, "version": fit.version, **source.to_json(), "keys": list(keys)}
    data = encode_npz(arrays, about)
    sha256 = hash_bytes(data)
    storage.write(dataroot.fit(fit.name, sha256), data)
    return FitEntry(
        name=fit.name, version=fit.version, sha256=sha256, size=len(data), clips=len(keys), **source.to_json()
    )


def keys_of(reader: ShardReader, parts: Sequence[Sequence[int]]) -> list[str]:
    """Keys of the clips of all parts, in order."""
    return [reader.keys[number] for part in parts for number in part]


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON: no dataclasses and tuples."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
