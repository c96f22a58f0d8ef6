"""The versions that a reader opens: an annotation, and derived columns that are joined to it row by row.

Whatever is read of a sample has one place here: the member of each array with its form, each score, each label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards.index import Index, read_index
from shards.index_format import LABEL, SCORE, Archive
from shards.manifest import AnnotationEntry, DatasetManifest
from talkinghead.annotation import COLUMN
from talkinghead.column import Column
from talkinghead.config import shown
from talkinghead.derived import ANNOTATION
from talkinghead.files.storage import Storage

_MOST_SHOWN = 20  # names in a message

Fact = Literal["score", "label"]
"""What an index says of a whole clip."""


def listed(names: Iterable[str]) -> str:
    """Names for a message: sorted, and not too many."""
    found = sorted(set(names))
    more = f" and {len(found) - _MOST_SHOWN:,} more" if len(found) > _MOST_SHOWN else ""
    return (", ".join(name if name.isprintable() and len(name) < 80 else shown(name) for name in found[:_MOST_SHOWN])
            + more) or "none"  # fmt: skip


@dataclass(frozen=True)
class OpenVersion:
    """One version with its index."""

    entry: AnnotationEntry
    index: Index

    @property
    def column(self) -> str:
        """Name of the derived column, or `annotation`."""
        return self.entry.kind

    def form(self, array: str) -> Column | None:
        """Form in which an array is stored; None where nothing says so."""
        return COLUMN.get(array) if self.column == ANNOTATION else self.entry.arrays.get(array)

    def has(self, fact: Fact, name: str) -> bool:
        """Whether it has a score or label of this name."""
        if name in (self.index.score_names if fact == "score" else self.index.label_names):
            return True
        # One that could be measured for no clip is missing in the index.
        return self.column != ANNOTATION and name in _declared(self.entry, fact)

    def score(self, name: str) -> np.ndarray:
        """A score of every row, `[rows]` float64, NaN where there is none."""
        if name not in self.index.score_names:
            return np.full(len(self.index), np.nan)
        return self.index.numbers(f"{SCORE}{name}")

    def label(self, name: str, row: int) -> str | None:
        """A label of one row."""
        return self.index.text(f"{LABEL}{name}", row) if name in self.index.label_names else None

    def has_label(self, name: str, values: Sequence[str]) -> np.ndarray:
        """Rows whose label has one of these values, `[rows]` bool."""
        if name not in self.index.label_names:
            return np.zeros(len(self.index), bool)
        return self.index.equals(f"{LABEL}{name}", *values)

    def label_values(self, name: str) -> list[str]:
        """Different values of a label."""
        return self.index.distinct(f"{LABEL}{name}") if name in self.index.label_names else []


def _declared(entry: AnnotationEntry, fact: Fact) -> list[str]:
    return entry.made_of.scores if fact == "score" else entry.made_of.labels


class JoinedVersions:
    """An annotation version and the derived columns that are joined to it.

    Args:
        storage: DATA.
        manifest: Its manifest.
        version: Version whose rows are read; None: the newest face annotation.
        join: Derived columns, named as `DatasetManifest.derived` takes them.

    Raises:
        ValueError: There is no such version, or the versions do not fit together; the message tells what to do.
    """

    def __init__(
        self, storage: Storage, manifest: DatasetManifest, version: str | None = None, join: Iterable[str] = ()
    ) -> None:
        self.storage = storage
        self.manifest = manifest
        entry = manifest.annotation(version)
        self.first = OpenVersion(entry, read_index(storage, entry))
        """The version that gives rows, splits and verdicts."""
        self.opened: dict[str, OpenVersion] = {self.first.column: self.first}
        """Column (or `annotation`) → its version, in the order in which they were opened."""
        self.where: dict[str, tuple[OpenVersion, Archive]] = {}
        """Suffix of a member → version and archive that have it."""
        for archive, suffixes in self.first.index.members.items():
            self.where.update(dict.fromkeys(suffixes, (self.first, archive)))
        for name in join:
            self.join(manifest.derived(name))

    @property
    def joined(self) -> dict[str, str]:
        """Derived column → its version, of all that were joined."""
        return {column: opened.entry.version for column, opened in self.opened.items() if opened is not self.first}

    # --- joining ------------------------------------------------------------------------------------------------------

    def join(self, entry: AnnotationEntry) -> OpenVersion:
        """Open a version of a derived column, unless it is open already."""
        before = self.opened.get(entry.kind)
        if before and before.entry.version == entry.version:
            return before
        if before:
            raise ValueError(
                f"{before.entry.version} and {entry.version} are versions of the same column {entry.kind!r}: join one"
            )
        self._check_made_of(entry)
        opened = OpenVersion(entry, read_index(self.storage, entry))
        # One row number then serves for all versions, and shard k of one belongs to shard k of the others.
        for name in ("key", "shard", "ordinal"):
            if not self.first.index.table.column(name).equals(opened.index.table.column(name)):
                raise ValueError(
                    f"versions {self.first.entry.version} and {entry.version} do not hold the same samples ({name}):"
                    f" run {entry.command} to bring {entry.version} up to date"
                )
        for suffix in opened.index.members["annotation"]:
            if suffix in self.where:
                other = self.where[suffix][0].entry.version
                raise ValueError(f"versions {other} and {entry.version} both have {suffix}: join only one of them")
        self.where.update(dict.fromkeys(opened.index.members["annotation"], (opened, "annotation")))
        self.opened[entry.kind] = opened
        return opened

    def _check_made_of(self, entry: AnnotationEntry) -> None:
        """Raise `ValueError` where a version was made of others than those that are open."""
        made_of, again = entry.made_of, f"make derive COLUMNS={entry.kind} makes it anew"
        # The annotation whose frames and faces it describes.
        first = self.first.entry
        annotation = first.version if first.kind == ANNOTATION else first.made_of.pins.get(ANNOTATION)
        pinned = made_of.pins.get(ANNOTATION, annotation)
        if annotation is not None and pinned != annotation:
            raise ValueError(
                f"{entry.version} was made from the annotation {pinned}, not from {annotation}, which is read: {again},"
                f" or read version {pinned}"
            )
        for other in (opened.entry for opened in self.opened.values() if opened.column != ANNOTATION):
            theirs = other.made_of
            for fit in sorted(made_of.fits.keys() & theirs.fits.keys()):
                if made_of.fits[fit] != theirs.fits[fit]:
                    raise ValueError(
                        f"{entry.version} and {other.version} were made with different fits of {fit!r}"
                        f" ({made_of.fits[fit][:12]} and {theirs.fits[fit][:12]}), so they do not go together: {again},"
                        " or join versions with the same fit"
                    )
            for one, two in ((entry, other), (other, entry)):
                if (pinned := one.made_of.pins.get(two.kind, two.version)) != two.version:
                    raise ValueError(
                        f"{one.version} was made from {pinned}, which is not {two.version}: join"
                        f" {two.kind}@{pinned}, or make derive COLUMNS={one.kind} makes it anew"
                    )

    # --- arrays -------------------------------------------------------------------------------------------------------

    def holder(self, suffix: str) -> OpenVersion:
        """Version that has a member; `ValueError` tells how to make one that is missing."""
        if suffix not in self.where:
            name = suffix.removesuffix(".npy")
            # A column may exist in a version of its own that only needs to be named.
            holding = {e.kind for e in self.manifest.annotations if e.kind != ANNOTATION and name in e.arrays}
            there = listed(found.removesuffix(".npy") for found in self.where)
            how = (
                f"it is in the derived column {listed(holding)}, to be named in the reader's join=(…)"
                if holding
                else f"make it with make reannotate ANN=<version> DATA={self.storage.uri}, or with make derive"
                " COLUMNS=<column> where a derived column has it"
            )
            version = self.first.entry.version
            raise ValueError(f"the data set has no {name!r} in annotation version {version}, only {there}: {how}")
        return self.where[suffix][0]

    def form(self, array: str) -> Column | None:
        """Form in which an array is stored; None where nothing says so. Raises like `holder`."""
        return self.holder(f"{array}.npy").form(array)

    # --- scores and labels --------------------------------------------------------------------------------------------

    def find(self, fact: Fact, name: str, *, open_more: bool = False) -> tuple[OpenVersion, str]:
        """Version that has a score or label, and its name there.

        Args:
            fact: `score` or `label`.
            name: Its name, looked up in the annotation, then in the joined columns; or `column.name`.
            open_more: Whether to open the newest version of a column that has it where none that is open does.

        Raises:
            ValueError: None has it, or several have; the message tells what there is and how to make it.
        """
        column, _, plain = name.rpartition(".")
        holding = [
            opened for opened in self.opened.values() if opened.has(fact, plain) and column in ("", opened.column)
        ]
        if holding and (holding[0] is self.first or len(holding) == 1):
            return holding[0], plain
        entries = [opened.entry for opened in holding] or self._not_open(fact, column, plain)
        if not entries:
            raise ValueError(self._unknown(fact, name))
        if len(entries) > 1:
            versions = " and ".join(entry.version for entry in entries)
            raise ValueError(
                f"{versions} both have the {fact} {plain!r}: write {entries[0].kind}.{plain} or"
                f" {entries[1].kind}.{plain}"
            )
        if not open_more:
            raise ValueError(
                f"the {fact} {name!r} is in {entries[0].version}, to be named in the reader's"
                f" join=({entries[0].kind!r},)"
            )
        return self.join(entries[0]), plain

    def _not_open(self, fact: Fact, column: str, name: str) -> list[AnnotationEntry]:
        """Versions that are not open and have a score or label, of each column the newest."""
        return list(
            {
                entry.kind: entry
                for entry in self.manifest.annotations
                if entry.kind not in (ANNOTATION, *self.opened)
                and name in _declared(entry, fact)
                and column in ("", entry.kind)
            }.values()
        )

    def _unknown(self, fact: Fact, name: str) -> str:
        """Message about a score or label that nothing that may be opened has."""
        column, _, plain = name.rpartition(".")
        derived = [entry for entry in self.manifest.annotations if entry.kind != ANNOTATION]
        # Another version of a column that is open may have it.
        for entry in reversed(derived):
            if entry.kind in self.opened and column in ("", entry.kind) and plain in _declared(entry, fact):
                read = self.opened[entry.kind].entry.version
                return f"{read} has no {fact} {plain!r}, but {entry.version} has: join {entry.kind}@{entry.version}"
        names = list(self.first.index.score_names if fact == "score" else self.first.index.label_names)
        names += [f"{entry.kind}.{there}" for entry in derived for there in _declared(entry, fact)]
        how = "make it with make derive COLUMNS=<column>"
        if fact == "score":
            how += ", or, where an annotation has it, make reannotate ANN=<version>"
        return (
            f"annotation version {self.first.entry.version} has no {fact} {name!r}, nor has a derived column, only"
            f" {listed(names)}: {how} DATA={self.storage.uri}"
        )
