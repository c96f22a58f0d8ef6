"""A unit of the derive job in a worker: open the column once, make it of one sample, and check the result.

While one sample is computed, a thread reads the next one and decodes its first frames, so that a GPU does not wait.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from annotate.columns import COLUMNS
from orchestration.jobs.media import StoredSample
from orchestration.units.frame_reports import report_frames
from orchestration.units.unit import JobStoppedError, Output, Unit
from shards.fit_files import read_fit
from talkinghead.config import from_json
from talkinghead.derived import (
    MEDIA_NEEDS,
    ColumnSample,
    ColumnVersion,
    Derived,
    DerivedColumn,
    Provenance,
    derived_members,
)
from talkinghead.files.storage import Storage
from talkinghead.provenance import canonical_json, library_versions
from talkinghead.runtime import read_ahead as runtime


def run(storage: Storage, unit: Unit) -> Output:
    """Make the column of one sample."""
    from orchestration.jobs.worker import pin_threads

    # The column with the files of the plan, opened once for all units of this process; and the sample.
    pin_threads()
    column, make = _opened(storage, unit.payload)
    sample = _ahead.pop((unit.job, unit.key, unit.pkey), None) or _Sample(storage, unit, column)
    with sample.reading():
        derived = make(sample)
    # Checked and stored, with the faces that it should have looked at, and how it was made.
    valid = sample.column("valid") if "valid" in column.needs else None
    about: dict[str, Any] = {
        column.stored_names.key_field: unit.pkey,
        "libraries": library_versions(*column.libraries),
    }
    described = {}
    if column.names is None:
        made_of = unit.payload["made_of"]
        described = {"made_of": {name: made_of[name] for name in made_of if name not in ("arrays", "labels")}}
    contents = derived_members(column, derived, sample.num_frames, valid, {**about, **described})
    scores = {name: _number(derived.scores.get(name)) for name in column.scores}
    return Output(
        contents=[(unit.key, sample.num_frames, contents)],
        scores={unit.key: scores},
        labels={unit.key: dict(derived.labels)},
        details=about,
    )


class _Sample(StoredSample):
    """A packed sample that a thread may read, and decode in part, before the column asks for it."""

    def __init__(self, storage: Storage, unit: Unit, column: DerivedColumn) -> None:
        super().__init__(storage, unit, column)
        self._thread = contextlib.ExitStack()
        self._items: Iterator[np.ndarray | None] | None = None

    def begin(self) -> None:
        """Begin to read in a thread."""
        self._items = self._thread.enter_context(runtime.read_ahead(self._all(), _READY))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Context in which the sample is used; at its end no thread of it is left. Raises what the thread has met."""
        with self._thread:
            if self._items is not None:
                next(self._items)  # now media and arrays are in memory
            yield

    def close(self) -> None:
        """End the thread of a sample that is not used."""
        self._thread.close()

    def video(self) -> Iterator[np.ndarray]:
        """Every frame in order, RGB uint8 `[H, W, 3]`."""
        frames, self._items = self._items, None
        if frames is None or "mp4" not in self._column.needs:
            yield from super().video()
            return
        count = 0
        for count, frame in enumerate(frames, 1):
            report_frames(count)
            assert frame is not None
            yield frame
        self._clip.check_length(count)

    def _all(self) -> Iterator[np.ndarray | None]:
        """None, once what the column needs is in memory; then the frames, if it needs them."""
        media = self._clip if set(self._column.needs) & set(MEDIA_NEEDS) else None
        _ = self._arrays
        yield None
        if media is not None and "mp4" in self._column.needs:
            yield from media.frames()


_READY = 32  # frames of the next sample that are held ready
_ahead: dict[tuple[str, str, str], _Sample] = {}
"""Job, key and provenance key of a unit → sample that is read for it; of the next unit, and of the present one until it
is computed."""


def read_ahead(storage: Storage, unit: Unit) -> None:
    """Begin to read the sample of the unit that is computed next."""
    while len(_ahead) > 1:  # the first is that of a unit that was never computed
        _ahead.pop(next(iter(_ahead))).close()
    column, _ = _opened(storage, unit.payload)
    sample = _ahead[unit.job, unit.key, unit.pkey] = _Sample(storage, unit, column)
    sample.begin()


def _number(value: float | None) -> float | None:
    """A score as records hold it: NaN is none."""
    return None if value is None or math.isnan(value) else float(value)


Make = Callable[[ColumnSample], Derived]
_last: dict[bytes, tuple[DerivedColumn, Make]] = {}
"""What this process opened last: units of one version come one after the other."""


def _opened(storage: Storage, payload: Mapping[str, Any]) -> tuple[DerivedColumn, Make]:
    """The column of a unit's payload, opened with the files and fits of the plan.

    Raises:
        JobStoppedError: This machine does not find the files, or finds others.
    """
    key = canonical_json([storage.uri, *(payload[name] for name in ("column", "settings", "made_of"))])
    if key not in _last:
        _last.clear()
        _last[key] = _open(storage, payload)
    return _last[key]


def _open(storage: Storage, payload: Mapping[str, Any]) -> tuple[DerivedColumn, Make]:
    made_of = from_json(ColumnVersion, payload["made_of"])
    column = COLUMNS[payload["column"]].of_version(made_of.column_version)
    if column is None:
        raise JobStoppedError(f"this machine's release cannot make {made_of.name}: give every node the same release")
    try:
        settings = from_json(column.settings, payload["settings"])
        _check_files(column.provenance(settings), made_of)
        fits = {name: read_fit(storage, name, sha256) for name, sha256 in made_of.fits.items()}
        return column, column.open(settings, fits, _device(settings))
    except (ValueError, OSError) as error:
        raise JobStoppedError(f"a worker cannot open what {column.name} reads: {error}") from error
    except (MemoryError, RuntimeError) as error:
        raise JobStoppedError(
            f"what {column.name} reads does not fit a worker's memory (--memory-gb gives more): {error}"
        ) from error


def _check_files(found: Provenance, made_of: ColumnVersion) -> None:
    """Raise `JobStoppedError` unless this machine's files are those of the plan."""
    for name, about in found.items():
        planned = made_of.provenance[name]["sha256"]
        if about["sha256"] != planned:
            raise JobStoppedError(
                f"this machine has the {name} {about['sha256'][:12]}…, the plan was made with {planned[:12]}…: give"
                " every node the same files in the same place, and the same versions of the libraries"
            )


def _device(settings: Any) -> str:
    """Device for a column: the kind that its settings name, else the CPU.

    Raises:
        ValueError: This machine has none of it.
    """
    device = getattr(settings, "device", "cpu")
    if device == "cuda":
        import torch

        # Ray shows a worker only the GPUs that its task was given, so "cuda" is the right one.
        if not torch.cuda.is_available():
            raise ValueError(
                "it was planned for GPUs (device cuda), and there is none here: plan with device cpu, or give every"
                " node of the cluster a GPU that PyTorch finds"
            )
    return device
