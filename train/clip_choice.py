"""Choice of the clips that a training learns from: settings that all tasks share, and what a run pins of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from shards.reader import ShardReader
from shards.removal_records import RemovalList
from shards.selection import Selection, bounds, values
from talkinghead.files.storage import Storage

_OPTION = "--config."


@dataclass(frozen=True, kw_only=True)
class ClipChoice:
    """Settings that choose clips. They hold for validation clips, too, but for `person` and `split_group`: a held-out
    clip is another person's."""

    renamed: ClassVar[dict[str, str]] = {"persons": "person"}
    """Old name of a setting, in config.json of older runs → its name."""

    annotation: str | None = None
    """Annotation version; None: the newest when the run begins."""
    join: tuple[str, ...] = ()
    """Derived columns, COLUMN or COLUMN@VERSION, whose scores and labels choose clips. Without a version, and for
    scores and labels of columns that are not named here, the newest one when the run begins."""
    at_least: tuple[str, ...] = ()
    """Lower bounds of scores, NAME=VALUE, where columns have the same score COLUMN.NAME=VALUE: clips below one, or
    without the score, are left out."""
    at_most: tuple[str, ...] = ()
    """Upper bounds of scores, NAME=VALUE."""
    licence: tuple[str, ...] = ()
    """Licences whose clips are taken; empty: all."""
    person: tuple[str, ...] = ()
    """Persons (or split groups, where the data set names no persons) to train on; empty: all."""
    split_group: tuple[str, ...] = ()
    """Split groups to train on; empty: all."""
    label: tuple[str, ...] = ()
    """Labels of which a clip must have one, NAME=VALUE; of several names, one of each."""

    def __post_init__(self) -> None:
        self.selection()
        if not all(self.join):
            raise ValueError(f"{_OPTION}join has an empty name: write COLUMN or COLUMN@VERSION")

    def selection(self, split: str = "train") -> Selection:
        """Rules for the clips of a split.

        Raises:
            ValueError: A bound or label is no NAME=VALUE.
        """
        training = split == "train"
        return Selection(
            at_least=bounds(self.at_least, f"{_OPTION}at_least"),
            at_most=bounds(self.at_most, f"{_OPTION}at_most"),
            licence=self.licence,
            person=self.person if training else (),
            split_group=self.split_group if training else (),
            label=values(self.label, f"{_OPTION}label"),
        )

    def options(self) -> str:
        """The settings that are not the default, as options of `make basis`; empty where all are."""
        given = {field.name: getattr(self, field.name) for field in fields(ClipChoice)}
        texts = {name: value if isinstance(value, str) else " ".join(value) for name, value in given.items() if value}
        return " ".join(f"--{name.replace('_', '-')} {text}" for name, text in texts.items())

    def arguments(self, split: str = "train") -> dict[str, Any]:
        """Arguments of `ShardReader` for the clips of a split, but for versions and columns."""
        return {"split": split, **self.selection(split).arguments()}


@dataclass(frozen=True, kw_only=True)
class PinnedVersion:
    """Version of a derived column that a run has joined."""

    version: str
    index: str
    """File of its index; the name holds a hash of the content."""


def joined_versions(reader: ShardReader, *, without: str | None = None) -> tuple[PinnedVersion, ...]:
    """Derived columns that a reader has joined, also those that only a rule needed, to be pinned.

    Args:
        reader: The reader.
        without: Version that is pinned elsewhere.
    """
    return tuple(
        PinnedVersion(version=version, index=reader.manifest.annotation(version).index)
        for version in reader.joined.values()
        if version != without
    )


def check_unchanged(reader: ShardReader, pinned: Iterable[PinnedVersion]) -> None:
    """Raise `ValueError` unless the indexes are those of the start: other clips would make another training."""
    for before in pinned:
        if (now := reader.manifest.annotation(before.version).index) != before.index:
            # Where samples were removed it is no fault, and there is nothing to put back.
            why = "samples were removed from it (make remove), " if RemovalList(reader.storage) else ""
            raise ValueError(
                f"{reader.storage.uri} has changed since this run began ({why}index {now} instead of {before.index}),"
                " so it cannot go on as it was: start another RUN"
            )


@dataclass(frozen=True, kw_only=True)
class ReadVersions:
    """What a run reads of a data set, next to media."""

    versions: tuple[str, ...] = ()
    """Annotation versions and versions of derived columns."""
    fits: tuple[str, ...] = ()
    """SHA-256 of the global fits that it was begun with."""
    indexes: tuple[PinnedVersion, ...] = field(default=(), compare=False)
    """The versions' indexes, over which the order of the training is."""


def check_no_removal(data: str) -> None:
    """Raise `ValueError` while samples are taken out of a data set: a training that begins now would read them."""
    from shards.removal_records import find_pending

    storage = Storage(data)
    pending = find_pending(storage)
    if pending is not None and pending.job == "remove":
        raise ValueError(
            f"samples are being removed from {storage.uri}, or were when a command was killed: wait for it, or run make"
            f" gc DATA={storage.uri}, which finishes it; then train"
        )


def note_run(data: str, run: str, read: ReadVersions) -> None:
    """Note in DATA what a run reads, so that nobody removes it; see `shards.pins`."""
    from shards.pins import pin_run

    if read.versions:
        indexes = (pinned.index for pinned in read.indexes)
        pin_run(Storage(data), run, versions=read.versions, fits=read.fits, indexes=indexes)
