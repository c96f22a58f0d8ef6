"""Derived columns: what is computed from packed samples and stored next to them, without touching their media.

A derived column is one `DerivedColumn` in one file of `annotate/`, listed in `annotate/columns.py`: which arrays it
makes of a sample, what it reads for that, and how a worker opens it. One generic job, report and reader serve them all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from talkinghead.column import Arrays, Column, blank_rows, encode_column, fits_shape, is_blank
from talkinghead.config import shown
from talkinghead.provenance import canonical_json, hash_bytes, pretty_json
from talkinghead.schema import ClipInfo, check_name

ANNOTATION = "annotation"
"""Name under which a column pins the annotation version that it was made from, and kind of such versions."""
MEDIA_NEEDS = ("mp4", "wav", "json")
"""Needs that are members of a media shard."""

Provenance = Mapping[str, Mapping[str, Any]]
"""Setting that names a file or folder → its `sha256`, and what else is worth knowing, such as `name`."""

_COLUMN_NAME = re.compile(r"[a-z][a-z0-9_]{0,17}")  # its versions, `<name>-<12 digits>`, have at most 31 characters
MOST_LABELS, LABEL_LENGTH = 64, 200
"""Largest number of labels of a clip, and of characters of one."""


# --- what a column reads and makes ------------------------------------------------------------------------------------


class ColumnSample(Protocol):
    """One packed sample, as a column or fit sees it. Only what the column says that it needs can be read."""

    @property
    def key(self) -> str:
        """Key of the sample."""
        ...

    @property
    def speaker(self) -> str:
        """Name of the speaker: the person, or where the data set names none, the split group."""
        ...

    @property
    def num_frames(self) -> int:
        """Number of frames F."""
        ...

    @property
    def info(self) -> ClipInfo:
        """Facts about the clip: person, source, labels of the data set, … (the `json` member)."""
        ...

    def video(self) -> Iterator[np.ndarray]:
        """Every frame in order, RGB uint8 `[H, W, 3]`."""
        ...

    def audio(self) -> np.ndarray:
        """The whole sound, float32 `[F · 640]` at 16 kHz in -1 … 1."""
        ...

    def column(self, name: str) -> np.ndarray:
        """An annotation column, or an array of a derived column that is needed, `[rows, …]`, NaN where there is none.

        Raises:
            ColumnError: The sample has none, because making it failed.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What a column makes of one sample."""

    arrays: Arrays = field(default_factory=dict)
    """Name → `[rows, …]`: floats or integers as the column declares them. Rows of frames without a face are NaN, or the
    blank of integers."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Scores of the clip; None or NaN: could not be measured."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the clip, by which readers select: name → value."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """More for the `<column>.json` member; a JSON object."""


class ColumnError(ValueError):
    """A column made of one clip what cannot be stored, or cannot be made of it.

    Args:
        cause: Short word for the kind of fault, by which failures are counted: `shape`, `type`, `nan`, `face`, `range`,
            `names`, `needs`.
        message: What is wrong, for people.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause

    def __reduce__(self) -> tuple[type[ColumnError], tuple[str, str]]:
        return (ColumnError, (self.cause, str(self)))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A global fit as it was stored."""

    sha256: str
    """Hash of its file, which names it."""
    arrays: Arrays


# --- the declaration of a column --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StoredNames:
    """Names that stand in DATA for a column; those of `latents` are older than derived columns."""

    job: str
    """Beginning of the job's names: `derive-` and the version. `encode-` for latents."""
    provenance: str
    """Name of the job in provenance keys."""
    key_field: str = "derive_key"
    """Field of the json member that holds the provenance key."""
    failed: str = "derive_failed"
    """Reason, in the index, of a sample whose column could not be made."""


@dataclass(frozen=True, kw_only=True)
class DerivedColumn:
    """A derived column: one instance in a file of `annotate/`, listed in `annotate/columns.py`."""

    name: str
    """Lower-case letters, digits and `_`, at most 18."""
    version: int
    """Version of the code; raise it when the same input and settings give other bytes."""
    arrays: tuple[Column, ...]
    """What is stored. Their names differ from those of all other columns."""
    scores: tuple[str, ...] = ()
    """Names of the scores, by which readers can filter."""
    needs: tuple[str, ...]
    """What it reads: `mp4`, `wav`, `json`, annotation columns (`mesh`, `valid`, …), names of other derived columns. Who
    needs `valid` has no value where it is 0."""
    fits: tuple[str, ...] = ()
    """Names of the global fits that it needs."""
    settings: type
    """Frozen dataclass, whose fields are options of `make derive`. Files and folders are texts with their paths."""
    provenance: Callable[[Any], Provenance]
    """Settings → provenance of the settings that name files; raises `ValueError` where one cannot be read or does not
    fit. It is asked again in every worker, which refuses other files than those of the plan."""
    open: Callable[[Any, Mapping[str, Fit], str], Callable[[ColumnSample], Derived]]
    """(settings, fits, device) → function of a sample. Called once in a worker process: loads weights."""
    libraries: tuple[str, ...] = ("numpy",)
    """Distributions whose release can change the bytes."""
    settled: Callable[[Any], Any] = lambda settings: settings
    """Settings → settings in which nothing is left open: what depends on the machine that plans is decided once, for
    all workers. It is asked after `provenance`. A setting `device` says which kind of device a worker computes on."""
    resources: tuple[str, ...] = ()
    """Settings that say where it runs, and change no byte. `gpu_share` is the share of a GPU that a worker takes."""
    built_in: tuple[str, ...] = ()
    """Values of settings with paths that name something built in."""
    frame_bytes: Callable[[Any], float] | None = None
    """Settings → bytes that a frame takes in a shard; None: from the shapes of the arrays."""
    frame_seconds: Callable[[Any], float] = lambda settings: 1.0
    """Settings → seconds that a frame takes on a slow core; a unit that takes longer is stopped."""
    gives_labels: bool = False
    """Whether it gives labels: a version in which no clip has one is warned of."""
    names: StoredNames | None = None
    """Names in DATA; None: made from the column's name."""
    former: tuple[DerivedColumn, ...] = ()
    """Earlier versions of the code that can still be made: a version that was begun with one goes on with it."""

    def __post_init__(self) -> None:
        if not _COLUMN_NAME.fullmatch(self.name) or self.name == ANNOTATION:
            raise ValueError(f"column {self.name!r} must be named with at most 18 of a-z 0-9 _")

    def of_version(self, version: int) -> DerivedColumn | None:
        """The column as this version of its code declares it; None where that one cannot be made any more."""
        return next((column for column in (self, *self.former) if column.version == version), None)

    @property
    def stored_names(self) -> StoredNames:
        """Names in DATA."""
        return self.names or StoredNames(job="derive-", provenance=f"derive-{self.name}")

    def parameters(self, settings: Any, provenance: Provenance) -> dict[str, Any]:
        """The settings that shape the result, without files (their hashes count) and resources, as JSON values."""
        given = asdict(settings)
        shaping = {name: value for name, value in given.items() if name not in (*provenance, *self.resources)}
        # As they come back from a plan or a manifest: with lists for tuples.
        return json.loads(canonical_json(shaping))

    def size_of_frame(self, settings: Any) -> float:
        """Bytes that a frame takes in a shard, without the little that a clip takes."""
        if self.frame_bytes is not None:
            return self.frame_bytes(settings)
        return float(sum((column.row_bytes() or 0) * column.rows for column in self.arrays if column.rows != "clip"))


@dataclass(frozen=True, kw_only=True)
class ColumnVersion:
    """What a version of a column was made of: content of its plan and of its entry in `DATASET.json`."""

    column: str
    column_version: int
    parameters: dict[str, Any]
    """The settings that shape the result."""
    provenance: dict[str, dict[str, Any]]
    """Setting → what its file was."""
    pins: dict[str, str] = field(default_factory=dict)
    """`annotation` or name of another column → the version of it that was read."""
    fits: dict[str, str] = field(default_factory=dict)
    """Name of a global fit → SHA-256 of its file."""
    arrays: list[dict[str, Any]] = field(default_factory=list)
    """Forms of the arrays (`Column.to_json`)."""
    scores: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """Names of the labels that samples have; known when the version is finished."""

    def __post_init__(self) -> None:
        check_name(self.column, "column")
        for setting, about in self.provenance.items():
            if not isinstance(about.get("sha256"), str):
                raise ValueError(f"the column {self.column} does not say which {shown(setting)} it was made with")

    @property
    def name(self) -> str:
        """Default name of the version: the column's, and 12 hexadecimal digits of what shapes the result."""
        # From the last name to the first: latents have always been named so, and a version that was read back from a
        # file, which sorts its fields, has the same name.
        hashes = [self.provenance[name]["sha256"] for name in sorted(self.provenance, reverse=True)]
        parameters = [self.parameters[name] for name in sorted(self.parameters, reverse=True)]
        parts: list[Any] = [self.column_version, *hashes, *parameters]
        if self.pins or self.fits:
            parts.append({"pins": self.pins, "fits": self.fits})
        return f"{self.column}-{hash_bytes(canonical_json(parts))[:12]}"

    def is_same(self, other: ColumnVersion) -> bool:
        """Whether both were made of the same: places of files do not matter, their content does."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[Any, ...]:
        hashes = {name: about.get("sha256") for name, about in self.provenance.items()}
        return (self.column, self.column_version, self.parameters, hashes, self.pins, self.fits)


def version_of(
    column: DerivedColumn, settings: Any, provenance: Provenance, pins: Mapping[str, str], fits: Mapping[str, str]
) -> ColumnVersion:
    """What a version of a column is made of.

    Args:
        column: The column.
        settings: Its settings.
        provenance: Provenance of the files that they name.
        pins: `annotation` or name of another column → version of it.
        fits: Name of a global fit → SHA-256 of its file.
    """
    return ColumnVersion(
        column=column.name,
        column_version=column.version,
        parameters=column.parameters(settings, provenance),
        provenance={name: dict(about) for name, about in provenance.items()},
        pins=dict(pins),
        fits=dict(fits),
        arrays=[array.to_json() for array in column.arrays],
        scores=list(column.scores),
    )


# --- from what a column made to the members of a shard ----------------------------------------------------------------


def derived_members(
    column: DerivedColumn, derived: Derived, num_frames: int, valid: np.ndarray | None, about: Mapping[str, Any]
) -> dict[str, bytes]:
    """What a column made of a sample, as tar members, after checking it.

    Args:
        column: The column.
        derived: What it made.
        num_frames: Number of frames F of the sample.
        valid: Frames with a face, `[F]` bool; None: the column does not look at faces.
        about: How it was made; the content of `<column>.json`, next to `derived.about`.

    Returns:
        Suffix → content, in tar order.

    Raises:
        ColumnError: An array is missing or unknown, has another type or shape, or holds NaN where there should be
            values or values where there should be none.
    """
    if derived.arrays.keys() != {array.name for array in column.arrays}:
        raise ColumnError("names", f"{column.name} made the arrays {', '.join(sorted(derived.arrays)) or 'none'}")
    _check_texts(column, derived)
    try:
        members = {f"{column.name}.json": pretty_json({**derived.about, **about})}
    except (TypeError, ValueError, RecursionError) as error:
        raise ColumnError("type", f"what {column.name} says about itself is no JSON: {error}") from error
    for array in column.arrays:
        values = np.asarray(derived.arrays[array.name])
        _check_form(array, values, num_frames)
        _check_values(array, values, None if array.rows == "clip" or valid is None else np.repeat(valid, array.rows))
        try:
            members[array.member] = encode_column(array, values)
        except ValueError as error:
            raise ColumnError("range", str(error)) from error
    return dict(sorted(members.items()))


def label_code(text: str) -> int:
    """Number of a label's text, 31 bits of its SHA-256: the same in every data set, and as an int32 never negative."""
    return int(hash_bytes(text.encode())[:8], 16) & 0x7FFFFFFF


def check_label(name: str, value: str) -> None:
    """Raise `ValueError` unless an index can hold a label."""
    check_name(name, "label")
    if not value or len(value) > LABEL_LENGTH or not value.isprintable():
        raise ValueError(f"the label {name} must have 1 to {LABEL_LENGTH} printable characters")


def blank_arrays_of(
    column: DerivedColumn, num_frames: int, sizes: Mapping[str, tuple[int, ...]] | None = None
) -> Arrays:
    """Arrays of a clip without a face: all NaN, or the blanks of integers.

    Args:
        column: The column.
        num_frames: Number of frames of the clip.
        sizes: Array → shape of its rows, where the settings decide it.
    """
    sizes = sizes or {}
    return {
        array.name: blank_rows(array, array.num_rows(num_frames), sizes.get(array.name) or array.row_shape)
        for array in column.arrays
    }


def _check_texts(column: DerivedColumn, derived: Derived) -> None:
    """Raise `ColumnError` unless scores and labels have names that an index can hold."""
    if unknown := derived.scores.keys() - set(column.scores):
        raise ColumnError("names", f"{column.name} made the unknown score {min(unknown)!r}")
    for name, score in derived.scores.items():
        if score is not None and not isinstance(score, int | float | np.integer | np.floating):
            raise ColumnError("type", f"the score {name} is {shown(score)}, no number")
        if score is not None and np.isinf(score):
            raise ColumnError("range", f"the score {name} is {score}")
    if len(derived.labels) > MOST_LABELS:
        raise ColumnError("names", f"{column.name} made {len(derived.labels)} labels, may make {MOST_LABELS}")
    for name, value in derived.labels.items():
        try:
            check_label(name, value)
        except ValueError as error:
            raise ColumnError("names", str(error)) from error


def _check_form(array: Column, values: np.ndarray, num_frames: int) -> None:
    """Raise `ColumnError` unless an array has the type and the shape that its column declares."""
    wanted = "f" if array.step is not None or array.stored.kind == "f" else array.stored.kind
    if values.dtype.kind != wanted and not (wanted in "iu" and values.dtype.kind in "iu"):
        raise ColumnError("type", f"{array.name} is {values.dtype}, which is not stored as {array.stored}")
    rows = array.num_rows(num_frames)
    if values.ndim < 1 or len(values) != rows or not fits_shape(array, values.shape[1:]):
        shape = ", ".join("?" if size is None else str(size) for size in array.shape)
        raise ColumnError("shape", f"{array.name} has shape {list(values.shape)}, must be [{rows}, {shape}]")


def _check_values(array: Column, values: np.ndarray, seen: np.ndarray | None) -> None:
    """Raise `ColumnError` unless an array has values where there is a face, and none elsewhere.

    Args:
        array: The column.
        values: Its rows.
        seen: Rows with a face, bool; None: all rows count.
    """
    is_number = array.step is None and array.stored.kind != "f"
    if seen is not None and not (is_number and array.blank is None) and not is_blank(array, values[~seen]).all():
        raise ColumnError("face", f"{array.name} has values in frames without a face")
    counted = values if seen is None else values[seen]
    missing = np.isnan(counted) if values.dtype.kind == "f" else np.zeros(counted.shape, bool)
    if is_number and array.blank is not None:
        missing = counted == array.blank
    if missing.any() and not array.optional:
        where = "" if seen is None else " that have a face"
        raise ColumnError("nan", f"{array.name} has no value in {int(missing.sum())} places{where}")
    if array.step is None and array.stored.kind in "iu":
        limits = np.iinfo(array.stored)
        if values.size and not (limits.min <= values.min() and values.max() <= limits.max):
            raise ColumnError("range", f"{array.name} holds numbers that {array.stored} cannot hold")
    elif array.step is None:
        with np.errstate(over="ignore"):
            stored = counted.astype(array.stored)
        if np.isinf(stored).any():
            raise ColumnError("range", f"{array.name} holds numbers that {array.stored} cannot hold")
