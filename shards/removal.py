"""Taking samples out of a data set: first out of every index, then out of the shards.

`without_samples` writes indexes that no longer list the samples, and gives the `DATASET.json` that names them: a reader
sees the old data set or the new one. The bytes stay in the shards, which no index leads to any more, until
`rewritten` copies the other samples of such shards into new files, under new names; again `DATASET.json` comes last.
Both are repeated without harm after a kill at any moment, since nothing counts that `DATASET.json` does not name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from shards.fit_files import clips_of
from shards.index import Index, build_index, read_index, write_index
from shards.manifest import AnnotationEntry, DatasetManifest, FitEntry, ShardEntry
from shards.pack import PackedShard, pack_shard
from shards.plan import PlannedSample, plan_hash
from shards.shard_names import next_revision
from talkinghead.files.foreign import open_regular
from talkinghead.files.storage import Storage
from talkinghead.provenance import hash_stream
from talkinghead.schema import SPLITS, Member, SampleIndex

# --- out of the indexes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class IndexCounts:
    """Counts of one index, by which a removal is proven."""

    samples: int
    """Rows."""
    kept: int
    splits: dict[str, int]
    """Split → rows, kept or not."""
    shards: list[int]
    """Rows of each shard."""


@dataclass(frozen=True, kw_only=True)
class Without:
    """A data set without some of its samples, whose indexes are written, and whose `DATASET.json` is not."""

    manifest: DatasetManifest
    fits: list[FitEntry] = field(default_factory=list)
    """Global fits that were made of the samples, and are not in the manifest."""
    shards: list[ShardEntry] = field(default_factory=list)
    """Shards at the end that held nothing else, and are not in the manifest."""


def count(index: Index, num_shards: int, but: Collection[str] = ()) -> IndexCounts:
    """Counts of an index over so many shards, of all rows but those of certain samples."""
    rows = np.ones(len(index), bool)
    if gone := frozenset(but):
        rows = np.array([key not in gone for key in index.texts("key")], bool)
    return IndexCounts(
        samples=int(rows.sum()),
        kept=int(index.numbers("keep")[rows].sum()),
        splits={split: int(index.equals("split", split)[rows].sum()) for split in SPLITS},
        shards=np.bincount(index.numbers("shard")[rows], minlength=num_shards).tolist(),
    )


def fits_of(
    storage: Storage, manifest: DatasetManifest, keys: Collection[str], persons: Collection[str] = ()
) -> list[FitEntry]:
    """Global fits that were made of certain samples, or of a choice that names certain persons; and those of which it
    cannot be told."""
    gone, named = frozenset(keys), frozenset(persons)
    return [
        fit
        for fit in manifest.fits
        if (clips := clips_of(storage, fit)) is None or not gone.isdisjoint(clips) or not named.isdisjoint(_chosen(fit))
    ]


def _chosen(fit: FitEntry) -> list[str]:
    """Persons and split groups that the choice of a fit's clips names."""
    parts = [fit.selection.get(name) for name in ("person", "split_group")]
    return [text for part in parts if isinstance(part, list) for text in part if isinstance(text, str)]


def without_samples(
    storage: Storage, manifest: DatasetManifest, keys: Collection[str], persons: Collection[str] = ()
) -> Without:
    """Write an index without some samples for every version.

    Args:
        storage: Storage of the data set.
        manifest: Its manifest, whose versions hold the same samples.
        keys: Keys of the samples; those that an index does not have do not matter.
        persons: Persons and split groups whose samples these are.

    Raises:
        ValueError: No sample would be left, or an index is damaged.
    """
    gone = frozenset(keys)
    opened = {entry.version: read_index(storage, entry) for entry in manifest.annotations}
    before = next(iter(opened.values()))
    if set(before.texts("key")) <= gone:
        raise ValueError(f"no sample of {storage.uri} would be left: remove the folder instead")
    indexes = {version: build_index(version, _rows_without(index, gone)) for version, index in opened.items()}
    first = next(iter(indexes.values()))
    # Shards at the end that are empty now are no shards any more; empty ones between others keep their numbers.
    num_shards = int(first.numbers("shard").max()) + 1
    media = _entries(manifest.media, before, first, has_annotation=False)
    entries = []
    for entry in manifest.annotations:
        index = indexes[entry.version]
        shards = _entries(entry.shards, opened[entry.version], index, has_annotation=True)
        entries.append(_entry_of(storage, replace(entry, shards=shards[:num_shards]), index))
    made_of = fits_of(storage, manifest, gone, persons)
    shrunk = replace(
        manifest,
        media=media[:num_shards],
        annotations=entries,
        fits=[fit for fit in manifest.fits if fit not in made_of],
    )
    dropped = [*manifest.media[num_shards:], *(s for entry in manifest.annotations for s in entry.shards[num_shards:])]
    return Without(manifest=_recounted(shrunk, first, indexes), fits=made_of, shards=dropped)


def _rows_without(index: Index, gone: frozenset[str]) -> Iterator[SampleIndex]:
    """Rows of the samples that stay; their ordinals count on without the others."""
    last, ordinal = -1, 0
    for row in index.rows():
        if row.key in gone:
            continue
        ordinal = ordinal + 1 if row.shard == last else 0
        last = row.shard
        yield replace(row, ordinal=ordinal)


def _entries(shards: list[ShardEntry], before: Index, after: Index, *, has_annotation: bool) -> list[ShardEntry]:
    """Entries of the same files, with the numbers of those samples that an index lists."""
    was, now = (_numbers(index, len(shards), has_annotation) for index in (before, after))
    return [
        replace(
            shard,
            samples=int(now[0][number]),
            frames=int(now[1][number]),
            removed=shard.removed + int(was[0][number] - now[0][number]),
        )
        for number, shard in enumerate(shards)
    ]


def _numbers(index: Index, num_shards: int, has_annotation: bool) -> tuple[np.ndarray, np.ndarray]:
    """Samples and frames in each shard, `[shards]`; of a derived column only the samples that have it."""
    there = np.ones(len(index), bool)
    if has_annotation:
        there = np.zeros(len(index), bool)
        for suffix in index.members["annotation"]:
            there |= index.has_member(suffix)
    numbers = index.numbers("shard")[there]
    frames = np.bincount(numbers, index.numbers("num_frames")[there], num_shards).astype(np.int64)
    return np.bincount(numbers, minlength=num_shards), frames


def _entry_of(storage: Storage, entry: AnnotationEntry, index: Index) -> AnnotationEntry:
    """A version's entry, with an index that this writes."""
    path, sha256 = write_index(storage, index)
    keep = index.numbers("keep")
    return replace(
        entry,
        index=path,
        index_sha256=sha256,
        samples=len(index),
        kept=int(keep.sum()),
        splits=dict(sorted(Counter(index.texts("split")[keep]).items())),
    )


def _recounted(manifest: DatasetManifest, first: Index, indexes: Mapping[str, Index]) -> DatasetManifest:
    """A manifest with the counts of its indexes."""
    newest = indexes[manifest.annotation().version]
    frames, keep = newest.numbers("num_frames"), newest.numbers("keep")
    counts = {
        "samples": len(newest),
        "kept": int(keep.sum()),
        "frames": int(frames.sum()),
        "frames_kept": int(frames[keep].sum()),
    }
    keys = first.texts("key")
    plan = [keys[first.shard_rows(number)].tolist() for number in range(len(manifest.media))]
    return replace(
        manifest,
        # A count that the manifest did not hold is not added.
        counts=manifest.counts | {name: value for name, value in counts.items() if name in manifest.counts},
        datasets=sorted(set(first.texts("dataset"))),
        licences=dict(sorted(Counter(first.texts("licence")).items())),
        plan_hash=plan_hash(plan),
    )


# --- out of the shards ------------------------------------------------------------------------------------------------

MEDIA = "media"
"""Name of the media among the versions: no version has it."""


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A data set some of whose shards are in new files, which are written; its `DATASET.json` is not."""

    manifest: DatasetManifest
    old: list[ShardEntry]
    """Shards whose files nobody needs once the manifest is written."""


def holed(manifest: DatasetManifest) -> list[int]:
    """Numbers of the shards that hold removed samples, in the media or in any version."""
    parts = [manifest.media, *(entry.shards for entry in manifest.annotations)]
    return sorted({number for part in parts for number, shard in enumerate(part) if shard.removed})


def rewritten(storage: Storage, manifest: DatasetManifest, numbers: Iterable[int]) -> Rewritten:
    """Copy what the indexes list of some shards into new files, in its order and byte for byte, and write new indexes.

    Args:
        storage: Storage of the data set.
        manifest: Its manifest.
        numbers: Numbers of the shards.

    Raises:
        ValueError: A shard is not as `DATASET.json` says: what is damaged is not copied.
    """
    indexes = {entry.version: read_index(storage, entry) for entry in manifest.annotations}
    first = next(iter(indexes.values()))
    packed: dict[tuple[str, int], PackedShard] = {}
    new: dict[tuple[str, int], ShardEntry] = {}
    old: list[ShardEntry] = []
    archives = [
        (MEDIA, manifest.media, first),
        *((e.version, e.shards, indexes[e.version]) for e in manifest.annotations),
    ]
    for number in sorted(set(numbers)):
        for name, shards, index in archives:
            if number < len(shards) and (entry := shards[number]).removed:
                samples = _planned(entry, index, number, media=name == MEDIA)
                made = copy_shard(storage, entry.name, entry.sha256, samples)
                target = next_revision(entry.name)
                packed[name, number] = made
                new[name, number] = replace(
                    entry, name=target, sha256=made.sha256, size=made.size, samples=len(samples), removed=0
                )
                old.append(entry)
    # Places have changed in the index of every version that has one of these files.
    entries = []
    for entry in manifest.annotations:
        index = indexes[entry.version]
        moved = build_index(entry.version, _moved_rows(index, packed))
        shards = [new.get((entry.version, number), shard) for number, shard in enumerate(entry.shards)]
        entries.append(_entry_of(storage, replace(entry, shards=shards), moved))
    # The clips are the same: a fit over an old index is one over the new one.
    renamed = {was.index: now.index for was, now in zip(manifest.annotations, entries, strict=True)}
    after = replace(
        manifest,
        media=[new.get((MEDIA, number), shard) for number, shard in enumerate(manifest.media)],
        annotations=entries,
        fits=[replace(fit, index=renamed.get(fit.index, fit.index)) for fit in manifest.fits],
    )
    return Rewritten(manifest=after, old=old)


def _planned(entry: ShardEntry, index: Index, number: int, *, media: bool) -> list[PlannedSample]:
    """Samples of a shard that stay, as they lie in its file."""
    return [
        PlannedSample.of_members(key=row.key, file=entry.name, members=members, num_frames=row.num_frames)
        for row in index.rows(index.shard_rows(number))
        if (members := row.media if media else row.annotation)
    ]


def copy_shard(storage: Storage, name: str, sha256: str, samples: list[PlannedSample]) -> PackedShard:
    """Copy samples of a shard, in their order and byte for byte, into the file of its next revision.

    Args:
        storage: Storage of the data set.
        name: Name of the shard.
        sha256: Hash that it must have.
        samples: Samples, as they lie in it.

    Raises:
        ValueError: It has another hash: what is damaged is not copied.
    """
    with storage.local_copy(name) as path, open_regular(path) as stream:
        if hash_stream(stream) != sha256:
            raise ValueError(f"{storage.describe(name)} is damaged, so it is not rewritten: put it back from a copy")
    with storage.staged(next_revision(name)) as sink:
        return pack_shard(storage, samples, sink)


def _moved_rows(index: Index, packed: Mapping[tuple[str, int], PackedShard]) -> Iterator[SampleIndex]:
    """Rows of an index with the places of the new files."""
    places = {archive: {sample.key: sample.members for sample in made.samples} for archive, made in packed.items()}
    for row in index.rows():
        media: Mapping[str, list[Member]] = places.get((MEDIA, row.shard), {})
        annotation: Mapping[str, list[Member]] = places.get((index.version, row.shard), {})
        yield replace(row, media=media.get(row.key, row.media), annotation=annotation.get(row.key, row.annotation))
