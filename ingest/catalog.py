"""The catalog of a data set: one row per clip, built from its metadata and what lies in SOURCE."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.adapters import adapter_of
from ingest.adapters.metadata import Adapter
from ingest.path_groups import NO_GROUPS, grouped, path_groups
from ingest.released import is_released
from ingest.source_files import is_inside, leads_out
from ingest.source_listing import Problem, Problems, display_path, from_stored, list_source, to_stored
from talkinghead import dataroot
from talkinghead.config import from_json
from talkinghead.files.foreign import parse_json
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json
from talkinghead.schema import CATALOG_SCHEMA, CatalogRow
from talkinghead.tables import read_table

_EXTRAS = b"talkinghead.catalog"  # key in the Parquet metadata: what is no row (problems, unused videos, limit)
_CATALOG_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class _Extras:
    """What a catalog's file holds next to its rows."""

    problems: list[Problem]
    unused: tuple[str, ...]
    left_out: int
    group_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The clips of a data set, and everything that gave no clip."""

    dataset: str
    rows: list[CatalogRow]
    """Sorted by key; keys are unique. `source` is None where no downloaded file was found."""
    problems: list[Problem]
    """Metadata lines, links and folders that could not be read."""
    unused: tuple[str, ...] = ()
    """Videos in SOURCE that belong to no clip of the metadata (names as `display_path` gives them)."""
    left_out: int = 0
    """Number of rows that `limit` left out."""
    group_by: str | None = None
    """Rule by which a folder's paths gave the split groups (`path_groups`); None: each file is its own."""

    @property
    def there(self) -> int:
        """Number of rows whose video, or released clip, is in SOURCE."""
        return len(self.rows) - self.missing_source

    @property
    def released(self) -> int:
        """Number of rows whose source is a released clip, cut out already."""
        return sum(map(is_released, self.rows))

    @property
    def missing_source(self) -> int:
        """Number of rows whose video is not in SOURCE."""
        return sum(row.source is None for row in self.rows)

    @property
    def paths(self) -> list[str]:
        """The distinct sources of all rows, sorted."""
        return sorted({row.source for row in self.rows if row.source is not None})


def build_catalog(
    dataset: str,
    source: Path,
    metadata: Path | None = None,
    limit: int | None = None,
    *,
    exclude: Iterable[Path] = (),
    follow_links: bool = False,
    group_by: str | None = None,
    keep: Collection[str] = (),
) -> Catalog:
    """Read a data set's metadata and find each clip's source.

    Args:
        dataset: `hdtf`, `celebv-hq`, `vfhq` or `folder`.
        source: Folder with the downloaded videos.
        metadata: Folder (or file) with the official metadata; default: `SOURCE/metadata`, then SOURCE itself.
        limit: Keep this many rows: the first by key among those with a source, then among the others.
        exclude: Folders to leave out, e.g. DATA when it lies inside SOURCE.
        follow_links: Whether links may lead out of SOURCE, and out of the folder of the metadata. Only for a SOURCE
            that the user made themselves: what a stranger's link leads to would be published.
        group_by: Rule by which the paths of a plain folder give split groups and persons (`path_groups`).
        keep: Keys of rows that the limit does not leave out: clips that were taken before.

    Raises:
        ValueError: No such data set, folder or metadata; or the metadata are far larger than any data set's.
    """
    adapter = adapter_of(dataset)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give 1 or more, or leave it out for all clips")
    if group_by is not None and adapter.has_metadata is not None:
        raise ValueError(f"--group-by is for plain folders; {dataset} has metadata, which name its split groups")
    group_of = path_groups(group_by or NO_GROUPS)
    # List SOURCE once, read the metadata, and let the adapter look each clip's video up in the list.
    listing = list_source(source, is_unit_folder=adapter.is_unit_folder, exclude=exclude, follow_links=follow_links)
    found = _find_metadata(adapter, source, metadata, follow_links)
    parsed = adapter.read(found, listing)
    # A key names a sample for good, so two clips must never share one.
    rows: list[CatalogRow] = []
    problems = Problems()
    problems.extend(parsed.problems)
    for row in sorted(parsed.rows, key=lambda row: row.key):
        if rows and rows[-1].key == row.key:
            message = f"two clips have the key {row.key} (of {rows[-1].source_id} and {row.source_id}); one is taken"
            problems.append(Problem(file=found.name, message=message))
        else:
            rows.append(grouped(row, group_of))
    if group_by is not None and group_by != NO_GROUPS:
        problems.extend(_check_groups(rows, group_by, source))
    # The limit prefers clips that can be ingested; what is unused is judged by all rows, not by those kept.
    used = {row.source for row in rows if row.source is not None}
    kept = rows
    if limit is not None:
        first = {row.key for row in sorted(rows, key=lambda row: (row.source is None, row.key))[:limit]}
        taken = frozenset(keep)
        kept = [row for row in rows if row.key in first or (row.key in taken and row.source is not None)]
    # The folder adapter passes the listing's problems on as its own: each is listed once.
    known = set(problems)
    return Catalog(
        dataset=dataset,
        rows=kept,
        problems=[*problems, *(problem for problem in listing.problems if problem not in known)],
        unused=tuple(display_path(path) for path in listing.unused(used)),
        left_out=len(rows) - len(kept),
        group_by=group_by,
    )


def _check_groups(rows: Sequence[CatalogRow], rule: str, source: Path) -> Iterator[Problem]:
    """What a rule of split groups does not fit; raises `ValueError` where it fits no file at all."""
    without = [row.source for row in rows if row.source is not None and row.person is None]
    groups = {row.split_group for row in rows if row.person is not None}
    if without and not groups:
        raise ValueError(
            f"--group-by {rule} finds no group in the path of any file of {display_path(str(source))}, as in"
            f" {display_path(without[0])}: name another rule, or none"
        )
    if without:
        number = f"{len(without):,} of {len(rows):,} files" if without[1:] else "one file"
        message = f"--group-by {rule} finds no group for {number} (this is the first): each is a group of its own"
        yield Problem(file=display_path(without[0]), message=message)
    if len(groups) == 1 and len(rows) > 2:
        message = f"--group-by {rule} puts {len(rows) - len(without):,} files in one group, and so in one split"
        yield Problem(file=display_path(min(groups)), message=message)


def _find_metadata(adapter: Adapter, source: Path, metadata: Path | None, follow_links: bool) -> Path:
    if adapter.has_metadata is None:
        if metadata is not None:
            raise ValueError(f"the data set {adapter.dataset} has no metadata; leave --metadata out")
        return source
    places = [metadata] if metadata is not None else [source / "metadata", source]
    for place in places:
        if place.exists() and adapter.has_metadata(place):
            # A place that the user named may be a link; one that lies in SOURCE may be a stranger's.
            if metadata is None and not follow_links and not is_inside(source, place):
                raise ValueError(f"{place} {leads_out(place.resolve())}, or name the metadata with --metadata")
            return place
    looked = " or ".join(display_path(str(place)) for place in places)
    raise ValueError(
        f"no {adapter.dataset} metadata in {looked}; "
        f"put {adapter.official_files} there, or name their place with --metadata"
    )


def write_catalog(storage: Storage, catalog: Catalog) -> str:
    """Write the table; equal catalogs give equal bytes. Returns its path in the storage."""
    # Parquet holds valid Unicode only, which the name of a source need not be.
    records = [{**row.to_json(), "source": row.source and to_stored(row.source)} for row in catalog.rows]
    extras = {
        "problems": [asdict(problem) for problem in catalog.problems],
        "unused": catalog.unused,
        "left_out": catalog.left_out,
        "group_by": catalog.group_by,
    }
    # The rest of the catalog is kept as JSON in the metadata of the same file, so that both are written at once.
    schema = CATALOG_SCHEMA.with_metadata({_EXTRAS: canonical_json(extras)})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), sink, compression="zstd", version="2.6")
    path = dataroot.catalog(catalog.dataset)
    storage.write(path, sink.getvalue())
    return path


def read_catalog(storage: Storage, dataset: str) -> Catalog:
    """Inverse of `write_catalog`; raises `ValueError` when there is none, or when its schema is another."""
    adapter_of(dataset)
    path = dataroot.catalog(dataset)
    name = storage.describe(path)

    def check(schema: pa.Schema) -> None:
        # A table of another version would be misread: it is refused, and cheap to make again.
        if _EXTRAS not in (schema.metadata or {}) or not schema.equals(CATALOG_SCHEMA):
            raise ValueError(f"{name} was made by another version")

    again = f"make ingest DATASET={dataset} SOURCE=<its folder> DATA={storage.uri} makes it again"
    try:
        table = read_table(storage.read(path, _CATALOG_BYTES, "catalog"), name, check)
        rows = [
            CatalogRow.from_json({**record, "source": record["source"] and from_stored(record["source"])})
            for record in table.to_pylist()
        ]
        extras = from_json(_Extras, parse_json(table.schema.metadata[_EXTRAS], name))
    except FileNotFoundError as error:
        raise ValueError(f"no catalog at {name}: {again}") from error
    except ValueError as error:
        raise ValueError(f"{error if name in str(error) else f'{name} is damaged: {error}'}: {again}") from error
    return Catalog(
        dataset=dataset,
        rows=rows,
        problems=extras.problems,
        unused=extras.unused,
        left_out=extras.left_out,
        group_by=extras.group_by,
    )
