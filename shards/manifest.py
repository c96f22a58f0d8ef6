"""`DATASET.json`, the manifest of a data set.

It is replaced last, so that a reader gets the whole old data set or the whole new one. Everything else is found
through it: a shard or an index that it does not name does not belong to the data set.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shards.shard_names import plain_name
from talkinghead import dataroot
from talkinghead.column import Column
from talkinghead.config import from_json, shown
from talkinghead.derived import ANNOTATION, ColumnVersion
from talkinghead.files.foreign import parse_json
from talkinghead.files.storage import Storage
from talkinghead.latents import ARRAYS, LATENTS, latents_made_of
from talkinghead.provenance import pretty_json
from talkinghead.schema import (
    SCHEMA_VERSION,
    annotation_shard_name,
    check_name,
    check_version,
    media_shard_name,
)

MOST_BYTES = 32 << 20
"""Largest `DATASET.json`: that of some hundred thousand shards. Its objects take up to 25 times as much memory."""

_MEND = "move it away and run make shards ANN=<version> to write it again"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard as it was committed."""

    name: str
    """Path relative to DATA."""
    sha256: str
    size: int
    """Size in bytes."""
    samples: int
    """Number of samples."""
    frames: int
    """Number of frames of all samples."""
    removed: int = 0
    """Number of further samples in the file, which `make remove` took out of every index: no reader finds them, and
    `make gc` rewrites the shard without them."""

    def __post_init__(self) -> None:
        if min(self.size, self.samples, self.frames, self.removed) < 0:
            raise ValueError(f"{self.name} has {self.size} bytes, {self.samples} samples, {self.frames} frames")


@dataclass(frozen=True, kw_only=True)
class AnnotationEntry:
    """One annotation version: its index and its shards, numbered like the media shards."""

    version: str
    index: str
    """Path of the index table relative to DATA."""
    index_sha256: str
    shards: list[ShardEntry]
    """Annotation shards; number k holds the annotations of media shard k."""
    samples: int
    """Number of samples: rows of the index."""
    kept: int
    """Number of samples that the filters kept."""
    splits: dict[str, int]
    """Split → number of kept samples."""
    kind: str = ANNOTATION
    """Contents of the version: `annotation`, or the name of a derived column. A reader that names no version opens only
    annotations. Old files lack this field."""
    details: dict[str, Any] = field(default_factory=dict)
    """How the version was made: of an annotation engine, SHA-256 of the model, parameters, filter thresholds; of a
    derived column `made_of`."""

    def __post_init__(self) -> None:
        check_version(self.version)
        if not dataroot.is_index(self.index):
            raise ValueError(f"{shown(self.index)} is no name of an index")
        check_name(self.kind, "kind of version")
        if self.kind != ANNOTATION:
            self.arrays  # noqa: B018  raises unless the details describe a column
        for number, shard in enumerate(self.shards):
            _check_name(shard, annotation_shard_name(self.version, number))

    @property
    def command(self) -> str:
        """The command that makes the version, or brings it up to date; files are named without their folders."""
        if self.kind == ANNOTATION:
            return f"make reannotate ANN={self.version}"
        made_of = self.made_of
        settings = {name: about.get("name", "FILE") for name, about in made_of.provenance.items()} | made_of.parameters
        options = [
            f"--{self.kind}.{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in settings.items()
            if value not in (None, "", [])
        ]
        if version := made_of.pins.get(ANNOTATION):
            options.append(f"--annotation {version}")
        if self.kind == LATENTS and made_of.column_version == 1:  # goes on by its name
            options.append(f"--version {self.version}")
        arguments = f" ARGS='{' '.join(options)}'" if options else ""
        return f"make derive COLUMNS={self.kind}{arguments if arguments.isprintable() else ''}"

    @functools.cached_property
    def made_of(self) -> ColumnVersion:
        """What a version of a derived column was made of; raises `ValueError` for an annotation."""
        if self.kind == ANNOTATION:
            raise ValueError(f"{self.version} is a face annotation, no derived column")
        # Releases before derived columns had latents only, and did not name them.
        found = from_json(ColumnVersion, self.details) if "column" in self.details else latents_made_of(self.details)
        if found.column != self.kind:
            raise ValueError(f"{self.version} is of the column {shown(self.kind)} and of {shown(found.column)}")
        return found

    @functools.cached_property
    def arrays(self) -> dict[str, Column]:
        """Name → form of each array of a derived column; raises `ValueError` for an annotation."""
        found = [Column.from_json(form) for form in self.made_of.arrays]
        names = [column.name for column in found]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.version} describes an array twice: {shown(sorted(names))}")
        return dict(zip(names, found, strict=True))


@dataclass(frozen=True, kw_only=True)
class FitEntry:
    """One global fit: its file, and what it was made of."""

    name: str
    version: int
    """Version of the fit's code."""
    sha256: str
    size: int
    """Size of the file in bytes."""
    settings: dict[str, Any]
    selection: dict[str, Any]
    """Choice of the clips (`shards.selection.Selection`)."""
    annotation: str
    """Annotation version of the clips."""
    index: str
    """Path of its index; the name holds a hash of the content."""
    pins: dict[str, str] = field(default_factory=dict)
    """Name of a derived column → the version of it that was read."""
    fits: dict[str, str] = field(default_factory=dict)
    """Name of another fit → SHA-256 of its file."""
    clips: int
    """Number of clips that it was made of; their keys are in the file."""

    def __post_init__(self) -> None:
        check_name(self.name, "fit")
        check_version(self.annotation)
        if not re.fullmatch("[0-9a-f]{64}", self.sha256) or not dataroot.is_index(self.index):
            raise ValueError(f"the entry of the fit {self.name} names no file of ours")
        if min(self.size, self.clips) < 0:
            raise ValueError(f"the fit {self.name} has {self.size} bytes, of {self.clips} clips")

    @property
    def path(self) -> str:
        """Path of the file relative to DATA."""
        return dataroot.fit(self.name, self.sha256)


def _check_name(shard: ShardEntry, name: str) -> None:
    if plain_name(shard.name) != name:
        raise ValueError(f"shard {shown(shard.name)} is listed in the place of {name}")


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """Content of `DATASET.json`. It holds no times, so that repeating a job gives the same bytes."""

    datasets: list[str]
    """Names of the source data sets."""
    counts: dict[str, int]
    """`samples` and `frames` in the shards; `kept` and `frames_kept` of the version that was finished last."""
    licences: dict[str, int]
    """Licence → number of samples."""
    tool_versions: dict[str, str]
    plan_hash: str
    """SHA-256 of the plan (`shards.plan.plan_hash`)."""
    media: list[ShardEntry]
    """Media shards in order of their numbers."""
    annotations: list[AnnotationEntry]
    """Versions: first those of kind `annotation`, then derived columns, each in the order in which they were first
    made. A reader that names no version opens the last of its kind."""
    fits: list[FitEntry] = field(default_factory=list)
    """Global fits, the newest last."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for dataset in self.datasets:
            check_name(dataset, "data set")
        for number, shard in enumerate(self.media):
            _check_name(shard, media_shard_name(number))
        names = [entry.version for entry in self.annotations]
        if len(set(names)) != len(names):
            raise ValueError(f"an annotation version occurs twice: {', '.join(names)}")
        paths = [fit.path for fit in self.fits]
        if len(set(paths)) != len(paths):
            raise ValueError("a fit occurs twice")

    def annotation(self, version: str | None = None) -> AnnotationEntry:
        """Entry of a version; None: of the newest face annotation.

        Raises:
            ValueError: There is no such version; the message lists those that exist.
        """
        if version is None:
            if not (faces := self.of_kind("annotation")):
                raise ValueError("the data set has no annotations yet: run make shards")
            # Versions of faces are in the order in which they were made.
            return faces[-1]
        for entry in self.annotations:
            if entry.version == version:
                return entry
        there = ", ".join(entry.version for entry in self.annotations) or "none at all"
        column = version.rpartition("-")[0]
        how = f"make derive COLUMNS={column}" if column else f"make reannotate ANN={version}"
        raise ValueError(f"there is no version {version!r}, only {there}: run {how}")

    def derived(self, name: str) -> AnnotationEntry:
        """Entry of a derived column.

        Args:
            name: `column`, which stands for its newest version, `column@version`, or a version.

        Raises:
            ValueError: There is no such version; the message tells how to make it.
        """
        column, _, version = name.partition("@")
        entries = self.of_kind(column) if column != ANNOTATION else []
        if not version and entries:
            return entries[-1]
        for entry in self.annotations:
            wanted = entry.version == version and entry.kind == column if version else entry.version == column
            if wanted and entry.kind != ANNOTATION:
                return entry
        there = ", ".join(entry.version for entry in self.annotations if entry.kind != ANNOTATION) or "none at all"
        missing = column if version else column.rpartition("-")[0] or column
        raise ValueError(f"there is no derived column {name!r}, only {there}: run make derive COLUMNS={missing}")

    def of_kind(self, kind: str) -> list[AnnotationEntry]:
        """Entries of one kind, in their order."""
        return [entry for entry in self.annotations if entry.kind == kind]

    def to_json(self) -> bytes:
        """Content of the file."""
        value = asdict(self)
        # Only where there are any: releases before removals refuse a field that they do not know.
        for shard in (*value["media"], *(shard for entry in value["annotations"] for shard in entry["shards"])):
            if not shard["removed"]:
                del shard["removed"]
        return pretty_json(value)

    @classmethod
    def from_json(cls, data: bytes | str, name: str = dataroot.DATASET_JSON) -> DatasetManifest:
        """Manifest from the content of its file, which `name` names in messages.

        Raises:
            ValueError: The file is damaged, or of another schema version.
        """
        try:
            # The schema first: another one may have other fields, which would look like damage.
            value = parse_json(data, "it")
            schema = value.get("schema_version") if isinstance(value, dict) else None
            if schema == SCHEMA_VERSION:
                return from_json(cls, value)
        except ValueError as error:
            raise ValueError(f"{name} is damaged, or of a newer talkinghead ({error}): {_MEND}") from error
        newer = type(schema) is int and schema > SCHEMA_VERSION
        raise ValueError(
            f"{name} has schema {shown(schema)}, this code reads {SCHEMA_VERSION}: "
            + ("use a newer talkinghead" if newer else f"it is damaged, or of an older talkinghead: {_MEND}")
        )


def read_manifest(storage: Storage) -> DatasetManifest:
    """Manifest of the data set in a storage.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: `DATASET.json` is damaged, or of another schema version.
    """
    name = storage.describe(dataroot.DATASET_JSON)
    try:
        data = storage.read(dataroot.DATASET_JSON, MOST_BYTES, "manifest")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no {name}: run make shards DATA={storage.uri} first") from error
    return DatasetManifest.from_json(data, name)


def find_manifest(storage: Storage) -> DatasetManifest | None:
    """Manifest of the data set in a storage; None where there is no finished one. Raises like `read_manifest`."""
    # Asked first: a missing file is no error here, but one that cannot be read is.
    return read_manifest(storage) if storage.exists(dataroot.DATASET_JSON) else None


def write_manifest(storage: Storage, manifest: DatasetManifest) -> None:
    """Replace `DATASET.json`. Everything that it names must be committed."""
    storage.write(dataroot.DATASET_JSON, manifest.to_json())


def find_column(
    manifest: DatasetManifest,
    column: str,
    parameters: Mapping[str, Any],
    provenance: Mapping[str, Mapping[str, Any]],
    column_version: int | None = None,
) -> str | None:
    """Name of the version of a derived column that was made with these parameters from these files.

    Files, such as weights, are told apart by their hash; where they were read from does not matter.

    Args:
        manifest: Manifest of the data set.
        column: Name of the column.
        parameters: Settings that shape the result.
        provenance: Setting that names a file → dict with its `sha256`.
        column_version: Version of the column's code; None: any.

    Returns:
        The version, of several the newest; None when there is none.
    """
    wanted = {name: about["sha256"] for name, about in provenance.items()}
    for entry in reversed(manifest.of_kind(column)):
        made_of = entry.made_of
        hashes = {name: about.get("sha256") for name, about in made_of.provenance.items()}
        same_code = column_version in (None, made_of.column_version)
        if same_code and made_of.parameters == dict(parameters) and hashes == wanted:
            return entry.version
    return None


def find_latents(
    manifest: DatasetManifest, provenance: Mapping[str, Mapping[str, Any]], width: int, height: int
) -> str | None:
    """Name of the newest version of latents that can be read and was computed with these networks at this size, in any
    precision; None when there is none. `provenance` is that of `ImageNetworks.provenance`."""
    wanted = {name: about["sha256"] for name, about in provenance.items()}
    for entry in reversed(manifest.of_kind(LATENTS)):
        made_of = entry.made_of
        size = tuple(made_of.parameters.get(name) for name in ("width", "height"))
        hashes = {name: about.get("sha256") for name, about in made_of.provenance.items()}
        if made_of.column_version in ARRAYS and size == (width, height) and hashes == wanted:
            return entry.version
    return None
