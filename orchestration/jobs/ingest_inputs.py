"""Inputs of ingest: the catalog of SOURCE, the content of each file that it names, and packed clips' files.

A file that was renamed or moved, as where SOURCE is given one folder higher, keeps the key under which it was packed:
it is known by its content. A packed clip whose file is gone stays in the catalog.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ingest.catalog import Catalog, build_catalog, read_catalog, write_catalog
from ingest.duplicates import Input, renamed
from ingest.fingerprints import Fingerprint, fingerprint, read_fingerprints, write_fingerprints
from ingest.released import check_lengths
from ingest.source_listing import Problem, Problems
from orchestration.jobs import recovered
from orchestration.split_groups import related_groups
from orchestration.units.damage import set_aside
from talkinghead import dataroot
from talkinghead.files.storage import Storage
from talkinghead.runtime.progress import Progress
from talkinghead.schema import CatalogRow, Dataset

log = logging.getLogger(__name__)

GONE = "packed; its source is no longer in SOURCE"
"""Note of a packed clip whose file is not in SOURCE."""
NOT_TAKEN = "packed; not among the clips that LIMIT takes, where it is in SOURCE at all"
"""Note of a packed clip that is not found under a limit: under its own name it is not there, and contents of files that
the limit leaves out are not read."""
REPLACED = "packed; the file of this name in SOURCE has other content now"
"""Note of a packed clip of which SOURCE has another file under its name: that one is an input of its own."""
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """The data set to ingest, and where its videos lie."""

    dataset: Dataset = "folder"
    """Name of the data set, whose metadata is read; `folder`: any media."""
    source: str | None = None
    """Folder with the videos (default: none; the clips that DATA already holds are used)."""
    metadata: str | None = None
    """Folder (or file) with the data set's own metadata (default: looked for in SOURCE)."""
    limit: int | None = None
    """Most clips to take, those with a source file first (default: all)."""
    follow_links: bool = False
    """Take links that lead out of SOURCE, and out of the metadata's folder; only for folders of links of your own."""
    group_by: str | None = None
    """Split group and person of a plain folder's files, from their paths: `parent` folder, `level:N` (the N-th folder
    below SOURCE), `regex:PATTERN`, or `none`; kept in DATA (default: each file is a group of its own)."""
    align_sound: str | None = None
    """Data set (DATA) with the column `sync`, made of the same files: where it measured a clear delay, the sound is
    moved; kept in DATA. `none`: move nothing (default: as this DATA was ingested before)."""
    rehash: bool = False
    """Read all sources again, also those of the same size and time as before: a file may have changed under both."""


@dataclass(frozen=True, kw_only=True)
class IngestInputs:
    """What a data set's ingest starts from."""

    catalog: Catalog
    """With the rows of packed clips whose files are gone."""
    gone: set[str]
    """Keys of those."""
    prints: Mapping[str, Fingerprint]
    """Source → fingerprint."""

    @property
    def rows(self) -> list[CatalogRow]:
        """Rows that are not gone."""
        return [row for row in self.catalog.rows if row.key not in self.gone]

    @property
    def contents(self) -> dict[str, str | None]:
        """Key → SHA-256 of the source, for the rows that have one; None where it cannot be read."""
        return {row.key: self.prints[row.source].sha256 for row in self.rows if row.source is not None}

    def to_compare(self, known: Mapping[str, str | None]) -> list[Input]:
        """All inputs with their contents, those that are gone with what was `known` of them (key → content)."""
        contents = dict(known) | self.contents
        return [Input(row=row, content=contents.get(row.key)) for row in self.catalog.rows if row.source is not None]


def find_inputs(
    storage: Storage,
    source: Source,
    folder: Path,
    packed: set[str],
    known: Mapping[str, str | None],
    group_by: str | None = None,
) -> IngestInputs:
    """Read the metadata, list SOURCE, and fingerprint what the rows name.

    Args:
        storage: DATA, the data set's folder or bucket.
        source: Data set and folder to ingest.
        folder: The folder, as an absolute path.
        packed: Keys of the clips that are in a shard.
        known: Key → content that was ingested before.
        group_by: Rule for split groups that was used before.

    Raises:
        ValueError: The folder or its metadata do not exist, or hold no clip.
    """
    catalog, gone = _catalog(storage, source, folder, packed, group_by)
    prints = _fingerprints(storage, source, folder, catalog, gone)
    catalog, gone = _follow_renamed(catalog, gone, known, prints)
    found = IngestInputs(catalog=catalog, gone=gone, prints=prints)
    return replace(found, catalog=_with_lengths(catalog, found.rows, prints))


def _catalog(
    storage: Storage, source: Source, folder: Path, packed: set[str], group_by: str | None
) -> tuple[Catalog, set[str]]:
    """Catalog of SOURCE.

    Returns:
        The catalog, with the rows of packed clips that SOURCE no longer has, and the keys of those.
    """
    # DATA may lie inside SOURCE: its own media are no input.
    metadata = Path(source.metadata) if source.metadata else None
    outputs = [storage.local_root] if storage.local_root else []
    earlier = _earlier_catalog(storage, source.dataset, packed)
    rule = source.group_by or (earlier and earlier.group_by) or group_by
    if rule is None and source.dataset == "folder" and earlier and any(row.person is not None for row in earlier.rows):
        raise ValueError(
            f"catalog and plan of {storage.uri} are damaged or gone, and with them the rule that gave its clips their"
            " persons and split groups: name it again with GROUP_BY=<rule> (none: new files have none)"
        )
    catalog = build_catalog(
        source.dataset,
        folder,
        metadata,
        source.limit,
        exclude=outputs,
        follow_links=source.follow_links,
        group_by=rule,
        keep=packed,
    )
    for problem in catalog.problems[:_SHOWN_PROBLEMS]:
        log.warning("metadata: %s", problem)
    if (more := len(catalog.problems) - _SHOWN_PROBLEMS) > 0:
        log.warning("metadata: … and %d more problems: python -m ingest catalog lists all", more)
    if not catalog.rows:
        raise ValueError(f"no clips: neither metadata nor media of {source.dataset} found in {source.source}")
    if not packed or earlier is None:
        return catalog, set()
    # A packed clip stays in its shard, and so in the catalog, marked, even when its source is gone.
    here = {row.key for row in catalog.rows if row.source is not None}
    kept = [row for row in earlier.rows if row.key in packed - here]
    gone = {row.key for row in kept}
    note = NOT_TAKEN if catalog.left_out else GONE
    marked = [replace(row, notes=(*_own_notes(row), note)) for row in kept]
    rows = [row for row in catalog.rows if row.key not in gone] + marked
    return replace(catalog, rows=sorted(rows, key=lambda row: row.key)), gone


def _earlier_catalog(storage: Storage, dataset: str, packed: set[str]) -> Catalog | None:
    """The catalog of the command before; None without one.

    Where it is gone or damaged, its packed clips are known from the records of their ingest.
    """
    if storage.exists(dataroot.catalog(dataset)):
        try:
            return read_catalog(storage, dataset)
        except ValueError as error:
            set_aside(storage, dataroot.catalog(dataset), str(error).partition(": make ")[0], "it is made again")
    rows = recovered.catalog_rows(storage, dataset, packed) if packed else []
    return Catalog(dataset=dataset, rows=rows, problems=[]) if rows else None


def _fingerprints(
    storage: Storage, source: Source, folder: Path, catalog: Catalog, gone: set[str]
) -> dict[str, Fingerprint]:
    """Source → fingerprint. Only files with another size or time than before are read."""
    paths = {row.source for row in catalog.rows if row.source is not None and row.key not in gone}
    known = read_fingerprints(storage, source.dataset)
    with Progress() as progress:
        prints = fingerprint(
            folder,
            paths,
            known,
            rehash=source.rehash,
            follow_links=source.follow_links,
            on_progress=progress,
        )
    if prints != known:
        write_fingerprints(storage, source.dataset, prints)
    return prints


def _follow_renamed(
    catalog: Catalog, gone: set[str], known: Mapping[str, str | None], prints: Mapping[str, Fingerprint]
) -> tuple[Catalog, set[str]]:
    """Give packed clips of a plain folder, whose files have other names now, their files back.

    Args:
        catalog: Catalog with the rows of packed clips whose files are gone.
        gone: Keys of those.
        known: Key → content that was ingested.
        prints: Source → fingerprint.

    Returns:
        The catalog, in which a new name of a packed file is no input of its own, and the keys that are still gone.
    """
    # In data sets with metadata the key is no matter of the file's name.
    moved: dict[str, CatalogRow] = {}
    if catalog.dataset == "folder" and gone:
        lost = [Input(row=row, content=known.get(row.key)) for row in catalog.rows if row.key in gone]
        found = [
            Input(row=row, content=prints[row.source].sha256)
            for row in catalog.rows
            if row.source is not None and row.key not in gone and row.key not in known
        ]
        moved = renamed(lost, found)
    back = {row.key: replace(row, notes=_own_notes(row)) for row in moved.values()}
    rows = [back.get(row.key, row) for row in catalog.rows if row.key not in moved]
    still = gone - back.keys()
    # A file that was renamed before it was changed is a new input, of the name that the packed one had last.
    if catalog.dataset == "folder":
        here = {row.source for row in rows if row.key not in still}
        rows = [
            replace(row, notes=(*_own_notes(row), REPLACED)) if row.key in still and row.source in here else row
            for row in rows
        ]
    if back:
        log.warning("%d packed clips have files of other names now; they keep their keys", len(back))
    if still:
        where = "not among the clips that LIMIT takes" if catalog.left_out else "no longer in SOURCE"
        log.warning("%d packed clips are %s; they stay in their shards", len(still), where)
    return replace(catalog, rows=rows), still


def _own_notes(row: CatalogRow) -> tuple[str, ...]:
    """Notes of a row, without those on where its file is."""
    return tuple(note for note in row.notes if note not in (GONE, NOT_TAKEN, REPLACED))


def _with_lengths(catalog: Catalog, rows: Sequence[CatalogRow], prints: Mapping[str, Fingerprint]) -> Catalog:
    """The catalog, with what contradicts the metadata in the lengths of its sources."""
    problems = check_lengths(rows, {path: entry.extent for path, entry in prints.items() if entry.extent is not None})
    for problem in problems:
        log.warning("%s", problem)
    return replace(catalog, problems=[*catalog.problems, *problems])


def note_same_recordings(storage: Storage, catalog: Catalog) -> None:
    """List in the catalog which of its clips show the recording of another clip, in any data set of DATA."""
    keys = {row.key for row in catalog.rows}
    related = related_groups(storage)
    problems = Problems()
    for match in related.matches:
        if keys & {match.first, match.second}:
            first, second = related.described(match)
            message = f"is the same recording as {second} ({match.by} differs in {match.rate:.0%}): one split for both"
            problems.append(Problem(file=first, message=message))
    if problems:
        log.warning("%d clips are copies of others, encoded anew (first: %s)", len(problems), problems[0])
        write_catalog(storage, replace(catalog, problems=[*catalog.problems, *problems]))
