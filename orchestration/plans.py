"""Plans: the name under which each job commits, and the units that belong to it now.

A plan is a Parquet table: a row for each unit with its key and provenance key, and what else the job must know of it
later; settings and other facts about the whole plan stand in the header of its schema. So later jobs need nothing but
DATA. A unit that was done under another provenance key is not done: the plan decides which of several records of one
key counts.

Plans may be a stranger's, like all of DATA: they hold names, numbers and settings, and never say which code is to run.
Releases before tables wrote JSON. Such a plan is read as it is, and becomes a table when it is written again.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from annotate.columns import COLUMNS
from orchestration.units.damage import set_aside
from orchestration.units.unit import Unit
from talkinghead import dataroot
from talkinghead.config import from_json, shown
from talkinghead.derived import ColumnVersion, StoredNames
from talkinghead.files.foreign import parse_json, refuse_large
from talkinghead.files.storage import Storage
from talkinghead.latents import latents_made_of
from talkinghead.provenance import canonical_json
from talkinghead.schema import KEY_PATTERN, media_shard_name
from talkinghead.tables import read_table

PLAN_BYTES = 256 << 20
"""Largest plan that is written or read: that of a million clips."""
_METADATA = b"talkinghead"  # name of the header in the schema's metadata

# --- names ------------------------------------------------------------------------------------------------------------

# These names are part of DATA: they stand in its paths and records, and never change.

INGEST_JOB = "ingest"
INGEST_PLAN_PREFIX = "ingest-"
ANNOTATE_PREFIX = "annotate-"
FIT_PREFIX = "fit-"
PACK_PREFIX = "pack-"
PACK_MEDIA_JOB = f"{PACK_PREFIX}media"
COLUMN_PREFIXES = tuple(sorted({"derive-"} | {column.stored_names.job for column in COLUMNS.values()}))
"""Beginnings of the names of jobs that make derived columns."""
SHARD_PLAN = "shards"
"""Name of the plan that says which sample goes into which shard."""


def ingest_plan_name(dataset: str) -> str:
    """`ingest-<dataset>`: each data set of DATA has an ingest plan of its own."""
    return f"{INGEST_PLAN_PREFIX}{dataset}"


def annotate_job(version: str) -> str:
    """`annotate-<version>`: each annotation version has a ledger of its own."""
    return f"{ANNOTATE_PREFIX}{version}"


def stored_names(column: str) -> StoredNames:
    """Names in DATA of a derived column, also of one that this code does not have."""
    known = COLUMNS.get(column)
    return known.stored_names if known else StoredNames(job="derive-", provenance=f"derive-{column}")


def column_job(column: str, version: str) -> str:
    """`derive-<version>` (`encode-<version>` for latents): each version of a derived column has its own ledger."""
    return f"{stored_names(column).job}{version}"


def pack_annotation_job(version: str) -> str:
    """`pack-<version>`: each version of columns, annotation or derived, has a ledger of its own."""
    return f"{PACK_PREFIX}{version}"


def shard_key(shard: int) -> str:
    """Key of the unit that packs a shard, `clips-000042`; media and column shards have the same keys."""
    return media_shard_name(shard).removesuffix(".tar")


# --- what plans hold --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan of one job; the classes below say what each kind of job plans."""

    units: dict[str, str]
    """Key → provenance key."""

    table: ClassVar[dict[str, pa.DataType]] = {"key": pa.string(), "pkey": pa.string()}
    """Columns of the table, and their types."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Columns that tables of earlier releases do not have."""

    def columns(self) -> dict[str, Sequence[Any]]:
        """Values of the table's columns."""
        return {"key": list(self.units), "pkey": list(self.units.values())}

    def about(self) -> dict[str, Any]:
        """Facts about the whole plan; a JSON object."""
        return {}

    @classmethod
    def of_table(cls, columns: Mapping[str, list[Any]], about: Mapping[str, Any]) -> Self:
        """Inverse of `columns` and `about`; raises `ValueError` for what is no such plan."""
        return from_json(cls, {"units": dict(zip(columns["key"], columns["pkey"], strict=True)), **about})

    @classmethod
    def of_old_json(cls, value: Mapping[str, Any]) -> Self:
        """Plan from the JSON of releases before tables, which may hold more. Raises like `of_table`."""
        return from_json(cls, {field.name: value[field.name] for field in fields(cls) if field.name in value})

    def __post_init__(self) -> None:
        for key, pkey in self.units.items():
            if not (KEY_PATTERN.fullmatch(key) and KEY_PATTERN.fullmatch(pkey)):
                raise ValueError(f"it plans {shown(key)} with the provenance key {shown(pkey)}")


@dataclass(frozen=True, kw_only=True)
class IngestPlan(Plan):
    """Clips of one data set that have a source."""

    contents: dict[str, str | None]
    """Key → SHA-256 of the source; None: it could not be read."""
    settings: dict[str, Any]
    """`IngestSettings`."""
    sound_delays: dict[str, int] = field(default_factory=dict)
    """SHA-256 of a source → frames by which its sound is late, which ingest undoes (`orchestration.sound_delays`)."""
    group_by: str | None = None
    """Rule by which the paths of a plain folder give split groups: the catalog has it, too, and may be damaged."""

    table: ClassVar = {**Plan.table, "content": pa.string()}

    def columns(self) -> dict[str, Sequence[Any]]:
        """Values of the table's columns."""
        return super().columns() | {"content": [self.contents.get(key) for key in self.units]}

    def about(self) -> dict[str, Any]:
        """Facts about the whole plan; a JSON object."""
        about = {"sound_delays": self.sound_delays, "group_by": self.group_by}
        return {"settings": self.settings} | {name: value for name, value in about.items() if value}

    @classmethod
    def of_table(cls, columns: Mapping[str, list[Any]], about: Mapping[str, Any]) -> Self:
        """Inverse of `columns` and `about`; raises `ValueError` for what is no such plan."""
        contents = dict(zip(columns["key"], columns["content"], strict=True))
        return super().of_table(columns, {"contents": contents, **about})


@dataclass(frozen=True, kw_only=True)
class AnnotatePlan(Plan):
    """Samples of one annotation version."""

    settings: dict[str, Any]
    """`AnnotateSettings`."""
    model: str
    """Name of the face model."""
    model_sha256: str
    order: int
    """Number of annotation versions that were planned before this one."""

    def about(self) -> dict[str, Any]:
        """Facts about the whole plan; a JSON object."""
        return {name: getattr(self, name) for name in ("settings", "model", "model_sha256", "order")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.settings.get("engine"), str) or self.order < 0:
            raise ValueError("its settings name no engine, or its order is below 0")


@dataclass(frozen=True, kw_only=True)
class ColumnPlan(Plan):
    """Samples of one version of a derived column."""

    made_of: ColumnVersion
    segments: dict[str, str] = field(default_factory=dict)
    """Key → name of the segment in which the unit is committed (`orchestration.units.segment`). Plans of earlier
    releases have none: there each unit was committed on its own."""

    table: ClassVar = {**Plan.table, "segment": pa.string()}
    later: ClassVar = frozenset({"segment"})

    def columns(self) -> dict[str, Sequence[Any]]:
        """Values of the table's columns."""
        return super().columns() | {"segment": [self.segments.get(key, "") for key in self.units]}

    @classmethod
    def of_table(cls, columns: Mapping[str, list[Any]], about: Mapping[str, Any]) -> Self:
        """Inverse of `columns` and `about`; raises `ValueError` for what is no such plan."""
        names = columns.get("segment", [])
        segments = {key: name for key, name in zip(columns["key"], names, strict=False) if name}
        return super().of_table(columns, {"segments": segments, **about})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.segments.values():
            if not KEY_PATTERN.fullmatch(name):
                raise ValueError(f"it plans the segment {shown(name)}")

    def about(self) -> dict[str, Any]:
        """Facts about the whole plan; a JSON object."""
        return {"made_of": asdict(self.made_of)}

    @classmethod
    def of_old_json(cls, value: Mapping[str, Any]) -> Self:
        """Plan of latents from the JSON of releases before tables. Raises like `of_table`."""
        made_of = latents_made_of(value)
        return from_json(cls, {"units": value.get("units"), "made_of": asdict(made_of)})


@dataclass(frozen=True, kw_only=True)
class FitPlan(Plan):
    """Parts of the clips that a global fit is made of."""

    fit: str
    key: str
    """Provenance key of the fit."""

    def about(self) -> dict[str, Any]:
        """Facts about the whole plan; a JSON object."""
        return {"fit": self.fit, "key": self.key}


@dataclass(frozen=True, kw_only=True)
class ShardPlan(Plan):
    """Samples of every shard. Its units are the jobs' that pack; they are planned anew for each version."""

    units: dict[str, str] = field(default_factory=dict)
    shards: list[list[str]]
    """Sample keys of each shard, in order."""
    settings: dict[str, Any]
    """`ShardSettings`."""

    table: ClassVar = {"key": pa.string(), "shard": pa.int32()}

    def columns(self) -> dict[str, Sequence[Any]]:
        """Values of the table's columns."""
        pairs = [(key, number) for number, keys in enumerate(self.shards) for key in keys]
        return {"key": [key for key, _ in pairs], "shard": [number for _, number in pairs]}

    def about(self) -> dict[str, Any]:
        """Facts about the whole plan; a JSON object."""
        return {"settings": self.settings, "num_shards": len(self.shards)}

    @classmethod
    def of_table(cls, columns: Mapping[str, list[Any]], about: Mapping[str, Any]) -> Self:
        """Inverse of `columns` and `about`; raises `ValueError` for what is no such plan."""
        about = dict(about)
        count = about.pop("num_shards", None)
        # No more than rows: an empty shard is never planned, but one may have lost all its samples.
        if type(count) is not int or not 0 <= count <= 10**6:
            raise ValueError(f"it has {shown(count)} shards")
        shards: list[list[str]] = [[] for _ in range(count)]
        for key, number in zip(columns["key"], columns["shard"], strict=True):
            if not 0 <= number < count:
                raise ValueError(f"it plans {shown(key)} for shard {number} of {count}")
            shards[number].append(key)
        return from_json(cls, {"shards": shards, **about})

    def __post_init__(self) -> None:
        for keys in self.shards:
            for key in keys:
                if not KEY_PATTERN.fullmatch(key):
                    raise ValueError(f"it plans {shown(key)}")


def _kind(name: str) -> type[Plan]:
    """Kind of the plan with this name."""
    if name == SHARD_PLAN:
        return ShardPlan
    if name.startswith(INGEST_PLAN_PREFIX):
        return IngestPlan
    if name.startswith(ANNOTATE_PREFIX):
        return AnnotatePlan
    return FitPlan if name.startswith(FIT_PREFIX) else ColumnPlan


# --- reading and writing ----------------------------------------------------------------------------------------------


def write_plan(storage: Storage, name: str, plan: Plan) -> None:
    """Write a plan as a table, unless it already has this content.

    Args:
        storage: DATA, the data set's folder or bucket.
        name: Name of the plan.
        plan: Its content, of the kind that belongs to the name.

    Raises:
        ValueError: It would be too large to be read again.
    """
    assert type(plan) is _kind(name), name
    path = dataroot.plan(name)
    columns = plan.columns()
    schema = pa.schema(list(plan.table.items()), {_METADATA: canonical_json(plan.about())})
    arrays = [pa.array(columns[name], kind) for name, kind in plan.table.items()]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd", use_dictionary=False)
    data = sink.getvalue()
    refuse_large(storage.describe(path), len(data), PLAN_BYTES, "plan (make several DATA of the clips)")
    if not storage.exists(path) or storage.read(path, PLAN_BYTES, "plan") != data:
        storage.write(path, data)
    # A table outweighs the JSON of an older release, which is no longer needed.
    if storage.exists(dataroot.old_plan(name)):
        storage.delete(dataroot.old_plan(name))


def find_plan(storage: Storage, name: str) -> Plan | None:
    """The plan with this name, of the class for its kind; None where nothing was planned.

    Raises:
        ValueError: The file is no plan.
    """
    kind = _kind(name)
    for path, parse in ((dataroot.plan(name), _parse), (dataroot.old_plan(name), _parse_old)):
        if storage.exists(path):
            file = storage.describe(path)
            try:
                return parse(kind, storage.read(path, PLAN_BYTES, "plan"))
            except ValueError as error:
                again = again_with(name, storage.uri)
                why = str(error).rstrip(".")
                raise DamagedPlanError(f"{file} is no plan of ours: {why}. {again} makes it again", path) from error
    return None


class DamagedPlanError(ValueError):
    """Error about a plan that cannot be read; the message names the command that makes it again."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path
        """Path of the plan relative to DATA."""


def again_with(name: str, data: str) -> str:
    """The command that makes a plan, and makes it again where it is damaged.

    Args:
        name: Name of the plan.
        data: DATA as the user names it.
    """
    kind = _kind(name)
    if kind is IngestPlan:
        return f"make ingest DATASET={name.removeprefix(INGEST_PLAN_PREFIX)} SOURCE=<its folder> DATA={data}"
    if kind is AnnotatePlan:
        return f"make annotate ANN={name.removeprefix(ANNOTATE_PREFIX)} DATA={data}"
    if kind is ShardPlan:
        return f"make shards DATA={data}"
    if kind is FitPlan:
        return f"make basis FITS={name.removeprefix(FIT_PREFIX).rpartition('-')[0]} DATA={data}"
    version = name.partition("-")[2]
    return f"make derive COLUMNS={version.rpartition('-')[0] or version} DATA={data}"


def set_aside_damaged(storage: Storage, name: str) -> bool:
    """Set a plan aside that cannot be read, so that the command that goes on makes it again; returns whether it was.

    Only for the writer of DATA.
    """
    try:
        find_plan(storage, name)
    except DamagedPlanError as error:
        set_aside(storage, error.path, str(error).partition(". make ")[0], "it is made again")
        return True
    return False


def _parse(kind: type[Plan], data: bytes) -> Plan:
    def check(schema: pa.Schema) -> None:
        found = dict(zip(schema.names, schema.types, strict=True))
        if {name: kind.table[name] for name in kind.later - found.keys()} | found != kind.table:
            raise ValueError(f"it has the columns {shown(found)}")

    table = read_table(data, "it", check)
    if any(table.column(name).null_count for name in table.column_names if name != "content"):
        raise ValueError("a row lacks a value")
    about = parse_json((table.schema.metadata or {}).get(_METADATA, b"null"), "its header")
    if not isinstance(about, dict):
        raise ValueError("it has no header")
    return kind.of_table({name: table.column(name).to_pylist() for name in table.column_names}, about)


def _parse_old(kind: type[Plan], data: bytes) -> Plan:
    value = parse_json(data, "it")
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return kind.of_old_json(value)


P = TypeVar("P", bound=Plan)


def find_ingest(storage: Storage, dataset: str) -> IngestPlan | None:
    """Plan of a data set's clips; None where none was ingested."""
    return _typed(IngestPlan, find_plan(storage, ingest_plan_name(dataset)))


def find_annotate(storage: Storage, version: str) -> AnnotatePlan | None:
    """Plan of an annotation version; None where there is none."""
    return _typed(AnnotatePlan, find_plan(storage, annotate_job(version)))


def find_column_plan(storage: Storage, column: str, version: str) -> ColumnPlan | None:
    """Plan of a version of a derived column; None where there is none."""
    return _typed(ColumnPlan, find_plan(storage, column_job(column, version)))


def column_plan_named(storage: Storage, version: str) -> ColumnPlan | None:
    """Plan of whichever derived column has a version of this name; None where none has."""
    for prefix in COLUMN_PREFIXES:
        if (plan := _typed(ColumnPlan, find_plan(storage, f"{prefix}{version}"))) is not None:
            return plan
    return None


def find_shards(storage: Storage) -> ShardPlan | None:
    """Plan of the shards; None before the first is planned."""
    return _typed(ShardPlan, find_plan(storage, SHARD_PLAN))


def _typed(kind: type[P], plan: Plan | None) -> P | None:
    assert plan is None or isinstance(plan, kind)
    return plan


def plan_names(storage: Storage, *prefixes: str) -> list[str]:
    """Names of the plans that start with one of the prefixes, sorted."""
    names = {
        file.path.removeprefix("plans/").removesuffix(suffix)
        for suffix in (".parquet", ".json")
        for file in storage.list("plans", suffix)
    }
    return sorted(name for name in names if name.startswith(prefixes) and KEY_PATTERN.fullmatch(name))


@dataclass(frozen=True, kw_only=True)
class PackedUnits:
    """Units whose output is in shards, by their keys."""

    keys: set[str] = field(default_factory=set)
    """Units of which at least one sample is packed: what they were made of never changes."""
    freed: set[str] = field(default_factory=set)
    """Those of which all samples are in shards that are there: the file of their output is not needed any more."""


def keep_packed(units: Iterable[Unit], before: Mapping[str, str], packed: PackedUnits) -> list[Unit]:
    """Units of the new plan, of which packed ones keep their provenance key: newer libraries do not redo them.

    Args:
        units: Units as the job would make them now.
        before: Key → provenance key, from the plan before.
        packed: Units whose output is in a shard.
    """
    return [
        replace(unit, pkey=before.get(unit.key, unit.pkey), is_packed=True, is_freed=unit.key in packed.freed)
        if unit.key in packed.keys
        else unit
        for unit in units
    ]


def pairs(units: Iterable[Unit]) -> dict[str, str]:
    """Key → provenance key of units, as a plan holds them."""
    return {unit.key: unit.pkey for unit in units}
