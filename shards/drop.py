"""Removing a version of a data set: a face annotation, a version of a derived column, or a global fit.

It is removed only when nothing that `DATASET.json` names was made from it, and no run of training that may go on reads
it. Only files with names of our forms go, and nothing goes through a link.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from shards.index import read_index
from shards.manifest import AnnotationEntry, DatasetManifest, FitEntry, read_manifest, write_manifest
from shards.pins import forget_gone, read_pins
from shards.removal_records import find_pending
from shards.versions import HASH_DIGITS, fit_name, needing
from talkinghead import dataroot
from talkinghead.config import shown
from talkinghead.derived import ANNOTATION
from talkinghead.files.foreign import warn_of_owner
from talkinghead.files.storage import Storage, StoredFile
from talkinghead.schema import NAME_PATTERN, VERSION_PATTERN

_FEWEST_DIGITS = 4  # of a fit's hash, where a user names it
_UNIT_JOBS = ("annotate-", "derive-", "encode-")  # beginnings of the names of jobs that make a version's samples
_PACK_JOB = "pack-"
_SHARD = re.compile(r"ann/[^/]+/ann-\d{6}(?:\.r\d{1,6})?\.tar")
_RELEASED = re.compile(r"released/[^/]+/[A-Za-z0-9_-]{1,90}\.[A-Za-z0-9_-]{1,90}\.\d{1,9}\.json")
_FIT_FILE = re.compile(r"fits/[^/]+/([0-9a-f]{64})\.npz")


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What was removed."""

    name: str
    files: int
    bytes: int


def drop(
    storage: Storage, name: str, *, force: bool = False, progress: Callable[[int, int], None] | None = None
) -> Dropped:
    """Remove one version or fit, with all that its jobs wrote, so that making it again starts anew; with a fit go the
    files of all jobs of its name.

    After a kill at any moment the data set is whole, with the version or without it, and a second call removes the
    rest. A version that never was finished is removed, too.

    Args:
        storage: Storage of the data set.
        name: A version; `<fit>@<first digits of its hash>`; or `<fit>`, which stands for its newest file.
        force: Remove it even if a run of training reads it.
        progress: Called with (files removed, total) after every file.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: There is no such version; something needs it, and the message says what; a link lies where files are
            to be removed; or a removal or collection was interrupted, which another command has to finish.
        LockedError: Another process is writing to DATA.
        OSError: DATA cannot be written.
    """
    with _only_writer(storage):
        if find_pending(storage) is not None:
            raise ValueError(
                f"a removal or a collection in {storage.uri} was interrupted: make retry DATA={storage.uri} finishes it"
            )
        # What goes, and whether it may.
        manifest = read_manifest(storage)
        target = _find(storage, manifest, name)
        files = [*target.unread, *target.files]
        if target.entry is not None:
            _refuse_needed(storage, manifest, target.entry, target.name)
        _refuse_read(storage, target, force)
        storage.check_links(*sorted({file.path.rpartition("/")[0] for file in files}))
        # First what no reader looks at, then the version for readers, then what they looked at.
        done = 0

        def remove(part: Sequence[StoredFile]) -> None:
            nonlocal done
            for file in part:
                storage.delete(file.path)
                done += 1
                if progress:
                    progress(done, len(files))

        remove(target.unread)
        if target.entry is not None:
            write_manifest(storage, _without(storage, manifest, target.entry))
        remove(target.files)
        forget_gone(storage)
    return Dropped(name=target.name, files=len(files), bytes=sum(file.size for file in files))


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What is to be removed."""

    name: str
    entry: AnnotationEntry | FitEntry | None = None
    """None: only files are left of it, or it never was finished."""
    unread: list[StoredFile] = field(default_factory=list)
    """Files that go first, because no reader looks at them."""
    files: list[StoredFile]
    """The others, in the order in which they go."""


@contextlib.contextmanager
def _only_writer(storage: Storage) -> Iterator[None]:
    """Hold the lease of the jobs that write to DATA."""
    if storage.local_root is not None and not storage.local_root.is_dir():  # no lease in a place that is no data set
        raise FileNotFoundError(f"there is no {storage.uri}")
    with storage.held():
        if storage.local_root is not None:
            warn_of_owner(storage.local_root)
        yield


def _find(storage: Storage, manifest: DatasetManifest, name: str) -> _Target:
    """What a name stands for; raises `ValueError` where it stands for nothing."""
    for entry in manifest.annotations:
        if entry.version == name:
            return _Target(name=name, entry=entry, files=_version_files(storage, name))
    fit, at, digits = name.partition("@")
    if NAME_PATTERN.fullmatch(fit) and re.fullmatch("[0-9a-f]*", digits):
        if at and len(digits) < _FEWEST_DIGITS:
            raise ValueError(f"{name} names no fit: give at least {_FEWEST_DIGITS} digits of its hash after the @")
        if target := _find_fit(storage, manifest, fit, digits):
            return target
    if VERSION_PATTERN.fullmatch(name) and name != "media" and (files := _version_files(storage, name)):
        return _Target(name=name, files=files)
    there = ", ".join([*(entry.version for entry in manifest.annotations), *map(fit_name, manifest.fits)])
    raise ValueError(f"there is no version or fit {shown(name)} in {storage.uri}, only {there or 'none at all'}")


def _find_fit(storage: Storage, manifest: DatasetManifest, name: str, digits: str) -> _Target | None:
    """A fit by its name and the first digits of its hash, none for the newest; None where there is none."""
    listed = [fit for fit in manifest.fits if fit.name == name and fit.sha256.startswith(digits)]
    entries = {fit.sha256: fit for fit in listed}
    files: dict[str, StoredFile] = {}
    for file in storage.list(f"fits/{name}", ".npz"):
        if (found := _FIT_FILE.fullmatch(file.path)) and found[1].startswith(digits):
            files[found[1]] = file
    # What a killed call left comes first: a name alone would mean the fit before it by now.
    left = sorted(files.keys() - entries.keys())
    hashes = [*left, *entries] if digits else [*left, *(fit.sha256 for fit in reversed(listed))][:1]
    if len(hashes) > 1:
        names = ", ".join(f"{name}@{sha256[:HASH_DIGITS]}" for sha256 in hashes)
        raise ValueError(f"{name}@{digits} may be {names}: give more digits")
    unread = _fit_job_files(storage, name)
    if hashes:
        sha256 = hashes[0]
        return _Target(
            name=f"{name}@{sha256[:HASH_DIGITS]}",
            entry=entries.get(sha256),
            unread=unread,
            files=[files[sha256]] if sha256 in files else [],
        )
    return _Target(name=name, unread=unread, files=[]) if unread and not digits else None


def _fit_job_files(storage: Storage, name: str) -> list[StoredFile]:
    """Files of all jobs that made a fit, finished or not: of finished ones the records outlive the sums that they are
    about, and would make the next job miss those."""
    plan = re.compile(rf"plans/(fit-{re.escape(name)}-[0-9a-f]{{12}})\.(?:parquet|json)")
    plans = [file for file in storage.list("plans") if plan.fullmatch(file.path)]
    jobs = sorted({file.path.removeprefix("plans/").rpartition(".")[0] for file in plans})
    # The plans last, by which the rest is found.
    return [file for job in jobs for file in (*_records(storage, job), *_units(storage, job))] + plans


def _version_files(storage: Storage, version: str) -> list[StoredFile]:
    """Files of a version and of its jobs, in the order in which they go.

    A record goes before the file that it is about, and records of samples before those of packed shards: a job that
    starts between two removals makes anew what is missing, and never takes a file for done that is not there.
    """
    units = [f"{prefix}{version}" for prefix in _UNIT_JOBS]
    jobs = [*units, f"{_PACK_JOB}{version}"]
    indexes = storage.list(dataroot.INDEX_FOLDER, ".parquet")
    found = [file for file in indexes if dataroot.is_index(file.path) and _index_version(file.path) == version]
    for path in (place(job) for job in jobs for place in (dataroot.plan, dataroot.old_plan)):
        if (size := storage.size(path)) is not None:
            found.append(StoredFile(path, size))
    for job in jobs:
        found += _records(storage, job)
    found += [file for file in storage.list(f"ann/{version}", ".tar") if _SHARD.fullmatch(file.path)]
    for job in units:
        found += _units(storage, job)
    return found


def _records(storage: Storage, job: str) -> list[StoredFile]:
    """Commit records of a job, and quarantine records, also those of units that were released."""
    found: list[StoredFile] = []
    for folder in (dataroot.records(job), dataroot.quarantines(job)):
        files = storage.list(folder)
        found += [f for f in files if dataroot.keys_of_record(f.path) or dataroot.segment_of_record(f.path)]
    return found + [file for file in storage.list(f"released/{job}", ".json") if _RELEASED.fullmatch(file.path)]


def _units(storage: Storage, job: str) -> list[StoredFile]:
    """Outputs of a job's units."""
    return [file for file in storage.list(dataroot.units(job), ".tar") if dataroot.is_unit(file.path, job)]


def _index_version(path: str) -> str:
    return path.removeprefix(f"{dataroot.INDEX_FOLDER}/").partition(".")[0]


def _refuse_needed(storage: Storage, manifest: DatasetManifest, entry: AnnotationEntry | FitEntry, name: str) -> None:
    """Raise `ValueError` when another version or fit needs one."""
    faces = manifest.of_kind(ANNOTATION)
    if faces == [entry]:
        raise ValueError(f"{name} is the only face annotation of {storage.uri}, which every reader needs")
    if others := needing(manifest, entry):
        raise ValueError(f"{name} is needed by {_listed(others)}, made from it: drop that first")


def _refuse_read(storage: Storage, target: _Target, force: bool) -> None:
    """Raise `ValueError` when a run reads what is to be removed, also where `DATASET.json` no longer lists it: new
    shards take columns off the list until they are made for those, too."""
    entry, name = target.entry, target.name
    runs = [
        f"{shown(pin.run)} on {shown(pin.host)}"
        for pin in read_pins(storage)
        if not pin.is_gone and (entry.sha256 in pin.fits if isinstance(entry, FitEntry) else name in pin.versions)
    ]
    if runs and not force:
        raise ValueError(f"{name} is read by the run {_listed(runs)}: add --force if it will not go on")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _without(storage: Storage, manifest: DatasetManifest, entry: AnnotationEntry | FitEntry) -> DatasetManifest:
    """Content of `DATASET.json` without a version or fit."""
    if isinstance(entry, FitEntry):
        return replace(manifest, fits=[fit for fit in manifest.fits if fit is not entry])
    rest = replace(manifest, annotations=[other for other in manifest.annotations if other is not entry])
    if entry.kind != ANNOTATION:
        return rest
    # The number of kept samples is an annotation's: now that of the one that readers open.
    index = read_index(storage, rest.annotation())
    kept, frames = index.numbers("keep"), index.numbers("num_frames")
    return replace(rest, counts={**rest.counts, "kept": int(kept.sum()), "frames_kept": int(frames[kept].sum())})
