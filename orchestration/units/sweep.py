"""Removing the tars of segments that lost the race for the commit record, or that a killed worker has left.

Such a tar may go when its segment has a commit record that names another one: a record is created only if there is
none, so whoever made the tar, however late, can only be refused. Without a record the tar may belong to a worker that
is about to write one, on whatever machine, and stays. So a sweep never takes a file that something names, or ever will.

It must not run next to a removal, which alone replaces records: the writer of DATA does both.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestration.units.segment_records import read_segment, segment_names
from talkinghead import dataroot
from talkinghead.files.storage import Storage, StoredFile


def unnamed_tars(storage: Storage, job: str) -> Iterator[StoredFile]:
    """Tars of committed segments of a job that their records do not name."""
    tars: dict[str, list[StoredFile]] = {}
    for file in storage.list(dataroot.units(job), ".tar"):
        if found := dataroot.segment_of_tar(file.path):
            tars.setdefault(found[1], []).append(file)
    # Listed after the tars: what has a record by now had it, or another, when its tars were listed.
    for name in segment_names(storage, job) if tars else ():
        if name not in tars:
            continue
        try:
            file = read_segment(storage, job, name).file
        except (FileNotFoundError, ValueError):  # nothing is known of it
            continue
        yield from (tar for tar in tars[name] if tar.path != file)


def sweep(storage: Storage, job: str) -> int:
    """Delete such tars; returns how many."""
    found = list(unnamed_tars(storage, job))
    for file in found:
        storage.delete(file.path)
    return len(found)
