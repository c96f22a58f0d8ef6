"""Verification of a data set: every file against `DATASET.json`, every member against the index, the members of every
sample against one another, and derived columns against what their version says of them.

Nothing is repaired and nothing is written. Findings are of two kinds: problems, which make the data set wrong, and
unknown files, which belong to no version (left by an unfinished job, or put there by somebody).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.index import MOST_BYTES, Index, parse_index
from shards.manifest import AnnotationEntry, DatasetManifest, FitEntry, read_manifest
from shards.pins import pin_paths, read_pin
from shards.shard_check import Problem, ShardCheck
from talkinghead import dataroot
from talkinghead.config import shown
from talkinghead.derived import ANNOTATION
from talkinghead.files.foreign import open_regular
from talkinghead.files.storage import TEMPORARY_FOLDER, Storage
from talkinghead.provenance import hash_bytes, hash_stream
from talkinghead.schema import CATALOG_SCHEMA, DATASETS, SPLITS, check_key
from talkinghead.tables import read_table

_CATALOG_BYTES = 1 << 30
_MOST_REPEATED = 1000  # groups or keys that are listed


@dataclass(kw_only=True)
class VerifyReport:
    """Findings of a verification, and the amount of data that was checked."""

    versions: list[str]
    """Versions that were checked: face annotations and derived columns."""
    fits: list[str] = field(default_factory=list)
    """Global fits that were checked."""
    problems: list[Problem] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Paths relative to DATA of files that belong to no version. Not problems: readers never open them."""
    kept: list[str] = field(default_factory=list)
    """Paths of files that `DATASET.json` does not name, and that are kept on purpose: indexes that a reader may still
    have open, and what a run of training reads."""
    shards: int = 0
    samples: int = 0
    frames: int = 0
    bytes: int = 0
    decoded: int = 0
    """Number of clips whose frames were decoded."""

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def verify(
    storage: Storage,
    *,
    version: str | None = None,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check a data set.

    Args:
        storage: Storage of the data set.
        version: Version to check, with the global fits that it used; None: all.
        deep: Decode every clip instead of one per shard.
        progress: Called with (bytes checked, total) after every shard.

    Raises:
        FileNotFoundError: There is no data set.
        ValueError: `DATASET.json` is unreadable, of another schema, or has no such version.
    """
    manifest = read_manifest(storage)
    entries = [manifest.annotation(version)] if version else manifest.annotations
    # The indexes: their hashes, their counts, and their agreement with one another.
    report = VerifyReport(versions=[entry.version for entry in entries])
    if not manifest.counts.get("samples", 1) or not manifest.media:
        detail = "the data set holds no sample: make shards SOURCE=<folder with other videos> fills it"
        report.problems.append(Problem(dataroot.DATASET_JSON, None, "counts", detail))
    indexes = dict(_indexes(storage, entries, report))
    for entry in entries:
        if index := indexes.get(entry.version):
            report.problems.extend(_check_counts(manifest, entry, index))
    report.problems.extend(_check_versions(list(indexes.values())))
    # The shards by number: media, then the annotations of every version.
    total = sum(shard.size for part in (manifest.media, *(entry.shards for entry in entries)) for shard in part)
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for number, media in enumerate(manifest.media):
        check = ShardCheck(storage, number, list(indexes.values()), deep=deep, shapes=shapes)
        check.media(media)
        for entry in entries:
            if number < len(entry.shards):
                check.annotation(entry.shards[number], entry, indexes.get(entry.version))
        # Each shard adds up by itself, and its rows of the index are let go with it.
        report.problems.extend(check.problems)
        report.shards += check.shards
        report.samples += check.samples
        report.frames += check.frames
        report.bytes += check.bytes
        report.decoded += check.decoded
        if progress:
            progress(report.bytes, total)
    # The global fits, the pins, and the files that nothing names.
    for fit in manifest.fits if version is None else _used_fits(manifest, entries):
        report.fits.append(f"{fit.name}@{fit.sha256[:12]}")
        report.problems.extend(_check_fit(storage, fit))
    report.problems.extend(_check_pins(storage))
    report.problems.extend(_check_catalogs(storage, manifest))
    others = _other_files(storage, manifest)
    report.kept = _kept_files(storage, manifest, others)
    report.unknown = [path for path in others if path not in set(report.kept)]
    return report


def _indexes(storage: Storage, entries: list[AnnotationEntry], report: VerifyReport) -> Iterator[tuple[str, Index]]:
    """Readable indexes by version; damaged and missing ones become problems of the report."""
    for entry in entries:
        try:
            data = storage.read(entry.index, MOST_BYTES, "index")
            # A wrong hash is reported, but the index is read all the same, so that more can be found with it.
            if hash_bytes(data) != entry.index_sha256:
                report.problems.append(Problem(entry.index, None, "sha256", "is not the index that DATASET.json names"))
            yield entry.version, parse_index(data, entry.version, storage.describe(entry.index))
        except FileNotFoundError:
            again = f"make shards ANN={entry.version}" if entry.kind == ANNOTATION else entry.command
            report.problems.append(Problem(entry.index, None, "missing", f"is not there: {again} makes it again"))
        except ValueError as error:
            report.problems.append(Problem(entry.index, None, "unreadable", str(error)))


def _check_counts(manifest: DatasetManifest, entry: AnnotationEntry, index: Index) -> Iterator[Problem]:
    """Problems of an index: counts that differ from `DATASET.json`, split groups in two splits, repeated keys."""

    def differ(what: str, said: object, found: object) -> Iterator[Problem]:
        if said != found:
            detail = f"DATASET.json says {what} {shown(said)}, the index has {shown(found)}"
            yield Problem(entry.index, None, "counts", detail)

    # Totals of the version and of the data set.
    keep = index.numbers("keep")
    frames = index.numbers("num_frames")
    licences = {item["values"]: item["counts"] for item in index.table.column("licence").value_counts().to_pylist()}
    yield from differ("samples", entry.samples, len(index))
    yield from differ("kept samples", entry.kept, int(keep.sum()))
    splits = {split: int((keep & index.equals("split", split)).sum()) for split in SPLITS}
    yield from differ("kept by split", {split: entry.splits.get(split, 0) for split in SPLITS}, splits)
    yield from differ("licences", manifest.licences, licences)
    # A count that the manifest does not hold is not compared.
    for what, found in (("samples", len(index)), ("frames", int(frames.sum()))):
        yield from differ(f"counts.{what}", manifest.counts.get(what, found), found)
    yield from differ("media shards", len(manifest.media), int(index.numbers("shard").max(initial=-1)) + 1)
    if len(entry.shards) != len(manifest.media):
        yield Problem(
            entry.index, None, "counts", f"{len(entry.shards)} annotation shards, {len(manifest.media)} media shards"
        )
    # Counts of the single shards.
    samples = np.bincount(index.numbers("shard"), minlength=len(manifest.media))
    # With weights, `bincount` sums in float64, which is exact for numbers of frames.
    sums = np.bincount(index.numbers("shard"), frames, len(manifest.media)).astype(int)
    for number, shard in enumerate(manifest.media):
        yield from differ(f"samples of {shard.name}", shard.samples, int(samples[number]))
        yield from differ(f"frames of {shard.name}", shard.frames, int(sums[number]))
    yield from _check_groups(entry, index)


def _check_versions(indexes: list[Index]) -> Iterator[Problem]:
    """Problems of columns that do not depend on the annotation but differ between the indexes of versions."""
    # All against the first: if the columns equal those of one index, they equal one another.
    for other in indexes[1:]:
        for name in (
            "key",
            "clip_key",
            "dataset",
            "shard",
            "ordinal",
            "num_frames",
            "split",
            "split_group",
            "person",
            "licence",
        ):
            if not other.table.column(name).equals(indexes[0].table.column(name)):
                detail = f"{name} differs from the index of {indexes[0].version}"
                yield Problem(f"index of {other.version}", None, "versions", detail)


def _check_groups(entry: AnnotationEntry, index: Index) -> Iterator[Problem]:
    """Problems of split groups (one person, one source video) that are spread over splits, and of keys that repeat."""
    # As tables, which take far less memory than objects: an index may have many rows.
    groups, splits = index.table.column("split_group"), index.table.column("split").cast(pa.string())
    pairs = pa.table({"group": groups, "split": splits}).group_by(["group", "split"]).aggregate([])
    for group in _repeated(pairs.column("group")):
        # A group that is split would leak a person from training into validation.
        found = pairs.filter(pc.call_function("equal", [pairs.column("group"), group])).column("split").to_pylist()
        yield Problem(entry.index, None, "splits", f"group {shown(group)} is in {' and in '.join(sorted(found))}")
    for key in _repeated(index.table.column("key")):
        yield Problem(entry.index, key, "order", "occurs twice in the index")


def _repeated(column: pa.ChunkedArray) -> list[str]:
    """Values that occur more than once, the first of them."""
    counts = column.value_counts()
    repeated = counts.filter(pc.call_function("greater", [counts.field("counts"), 1]))
    return repeated.field("values").slice(0, _MOST_REPEATED).to_pylist()


def _used_fits(manifest: DatasetManifest, entries: list[AnnotationEntry]) -> list[FitEntry]:
    """Global fits that versions of derived columns were made with."""
    used = {sha256 for entry in entries if entry.kind != ANNOTATION for sha256 in entry.made_of.fits.values()}
    return [fit for fit in manifest.fits if fit.sha256 in used]


def _check_fit(storage: Storage, fit: FitEntry) -> Iterator[Problem]:
    """Problems of a global fit's file, whose name holds its hash."""
    size = storage.size(fit.path)
    if size is None:
        yield Problem(fit.path, None, "missing", "is not there")
        return
    if size != fit.size:
        yield Problem(fit.path, None, "size", f"has {size} bytes, DATASET.json says {fit.size}")
    with storage.local_copy(fit.path) as path, open_regular(path) as stream:
        if (sha256 := hash_stream(stream)) != fit.sha256:
            yield Problem(fit.path, None, "sha256", f"has sha256 {sha256[:12]}…, its name and DATASET.json say another")


def _check_pins(storage: Storage) -> Iterator[Problem]:
    """Problems of the pins of runs: one that cannot be read hides what its run needs."""
    for path in pin_paths(storage):
        try:
            read_pin(storage, path)
        except FileNotFoundError:  # removed since the listing
            continue
        except ValueError as error:
            yield Problem(path, None, "unreadable", str(error))


def _check_catalogs(storage: Storage, manifest: DatasetManifest) -> Iterator[Problem]:
    """Problems of the catalogs: the report and removals need them. A copy for training, with nothing that ingest keeps,
    is not asked for any."""
    kept = {file.path for folder in ("catalog", "plans") for file in storage.list(folder)}
    is_copy = not any(path.startswith(("catalog/", "plans/ingest-")) for path in kept)
    is_copy = is_copy and not storage.list(dataroot.records("ingest"))
    for dataset in DATASETS:
        path = dataroot.catalog(dataset)
        again = f"make ingest DATASET={dataset} SOURCE=<its folder> DATA={storage.uri} makes it again"
        try:
            table = read_table(storage.read(path, _CATALOG_BYTES, "catalog"), "it", _check_catalog_schema)
            for key in table.column("key").to_pylist():
                check_key(key)
        except FileNotFoundError:
            if not is_copy and dataset in manifest.datasets:
                yield Problem(path, None, "missing", f"is not there: {again}")
        except ValueError as error:
            yield Problem(path, None, "unreadable", f"is damaged, or of another version ({error}): {again}")


def _check_catalog_schema(schema: pa.Schema) -> None:
    if not schema.equals(CATALOG_SCHEMA):
        raise ValueError("it has other columns")


def _kept_files(storage: Storage, manifest: DatasetManifest, others: list[str]) -> list[str]:
    """Those of the files that `DATASET.json` does not name which lie there on purpose."""
    pins = []
    for path in pin_paths(storage):
        with contextlib.suppress(FileNotFoundError, ValueError):  # reported elsewhere
            pins.append(read_pin(storage, path))
    versions = {version for pin in pins for version in pin.versions}
    fits = {sha256 for pin in pins for sha256 in pin.fits}
    known = versions | {entry.version for entry in manifest.annotations}
    kept = []
    for path in others:
        folder, _, name = path.partition("/")
        stem = name.partition(".")[0].partition("/")[0]
        if folder == dataroot.INDEX_FOLDER:
            # An index is named by its content: what fits its name is one of ours.
            if dataroot.is_index(path) and stem in known and _named_by_content(storage, path):
                kept.append(path)
        elif (folder == "ann" and stem in versions and path.endswith(".tar")) or (
            folder == "fits" and path.removesuffix(".npz").rpartition("/")[2] in fits
        ):
            kept.append(path)
    return kept


def _named_by_content(storage: Storage, path: str) -> bool:
    """Whether the name of an index's file holds the hash of its content."""
    try:
        return hash_bytes(storage.read(path, MOST_BYTES, "index"))[:12] == path.split(".")[-2]
    except (FileNotFoundError, ValueError):
        return False


def _other_files(storage: Storage, manifest: DatasetManifest) -> list[str]:
    """Paths relative to DATA of files that `DATASET.json` does not name."""
    known = {dataroot.DATASET_JSON, *(shard.name for shard in manifest.media), *pin_paths(storage)}
    known |= {fit.path for fit in manifest.fits}
    for entry in manifest.annotations:
        known |= {entry.index, *(shard.name for shard in entry.shards)}
    return [path for path in _data_files(storage) if path not in known]


def _data_files(storage: Storage) -> Iterator[str]:
    """Paths of files where shards, indexes, fits, pins and temporary files lie; folders of other jobs are left out."""
    # Media shards lie in DATA itself, which holds the folders of other jobs, too: no listing with subfolders there.
    for folder in ("ann", "fits", dataroot.INDEX_FOLDER, "pins", TEMPORARY_FOLDER):
        yield from (file.path for file in storage.list(folder))
    if storage.local_root:
        yield from sorted(path.name for path in storage.local_root.iterdir() if path.is_file() and path.name[0] != ".")
