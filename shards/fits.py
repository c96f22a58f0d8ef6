"""Global fits over the packed clips: their parts, the work on one, and the merge of all.

A cluster and a single process do the very same steps, so that both make the same bytes: parts from the index alone
(`plan_parts`), sums of each (`fit_part`), merges in an order that the number of parts decides (`merge_parts`). Files of
fits: `shards/fit_files.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shards.fit_files import FitSource
from shards.manifest import read_manifest
from shards.order import spread
from shards.reader import Sample, ShardReader
from shards.reader_chain import ReaderChain
from shards.selection import Selection
from shards.speech_choice import with_speech
from talkinghead.annotation import COLUMN
from talkinghead.column import Arrays
from talkinghead.derived import MEDIA_NEEDS, ColumnError, Fit
from talkinghead.files.storage import Storage
from talkinghead.global_fit import GlobalFit
from talkinghead.runtime.progress import ProgressCallback
from talkinghead.schema import ClipInfo

Clips = ShardReader | ReaderChain
"""Samples of one data set, or of several one after the other."""

FRAMES_OF_A_PART = 100_000
"""Frames that a part of speakers has, more or less; about a minute of work."""

_AT_ONCE = 100  # frames that are decoded at once


# --- the clips of a fit and their parts -------------------------------------------------------------------------------


def reader_for(
    fit: GlobalFit,
    storage: Storage,
    *,
    annotation: str | None = None,
    join: Sequence[str] = (),
    selection: Selection | None = None,
    begun: bool = False,
) -> ShardReader:
    """Open the clips of a fit: the kept training clips that have what it needs, with speech where it needs the sound.

    Args:
        fit: The fit.
        storage: Data set.
        annotation: Annotation version; None: the newest.
        join: Derived columns to join (`column`, or `column@version`). Others that the fit needs are joined in their
            newest versions; the reader's `joined` says which.
        selection: Further choice of the clips; it may use scores and labels of columns in `join`.
        begun: Whether `join` is what a training that goes on began with; see `shards.speech_choice.with_speech`.

    Raises:
        FileNotFoundError: There is no data set.
        ValueError: It lacks a version, column, score or person; the message tells how to make it.
    """
    selection = selection or Selection()
    columns = [need for need in fit.needs if need in COLUMN]
    derived = [need for need in fit.needs if need not in COLUMN and need not in MEDIA_NEEDS]
    manifest = read_manifest(storage)
    # Of derived columns that it needs, a clip must have all arrays, in the version that is joined.
    if derived:
        join = [*join, *(name for name in derived if name not in {manifest.derived(joined).kind for joined in join})]
        columns += [
            array for name in join if (entry := manifest.derived(name)).kind in derived for array in entry.arrays
        ]
    if "wav" in fit.needs:
        selection = with_speech(selection, manifest, join, begun=begun)
    return ShardReader(storage, version=annotation, columns=tuple(columns), join=tuple(join), **selection.arguments())


def source_of(
    reader: ShardReader, settings: Any, selection: Selection | None = None, fits: Mapping[str, Fit] | None = None
) -> FitSource:
    """What a fit over the clips of a reader is made of.

    Args:
        reader: Reader of `reader_for`.
        settings: Settings of the fit.
        selection: Selection with which the reader was opened.
        fits: The fits that it needs.
    """
    return FitSource(
        settings=settings,
        annotation=reader.version,
        index=reader.manifest.annotation(reader.version).index,
        selection=selection or Selection(),
        pins=dict(reader.joined),
        fits={name: fit.sha256 for name, fit in (fits or {}).items()},
    )


def plan_parts(fit: GlobalFit, reader: Clips) -> list[list[int]]:
    """Sample numbers of each part of a fit, in order: a function of the index and the fit's declaration alone.

    Clips are divided by shard; or by speaker, so that all clips of a speaker are in one part, with the speakers in the
    order of their names and each one's clips in the order of the reader.
    """
    chosen = range(len(reader)) if fit.most_clips is None else spread(len(reader), fit.most_clips)
    if not chosen:
        return []
    if fit.parts == "shards":
        shards = reader.shards
        return [list(part) for _, part in itertools.groupby(chosen, lambda sample: int(shards[sample]))]
    # Speaker after speaker; each is in the part in whose share of the frames its middle lies.
    names = reader.speakers
    by_name = sorted(chosen, key=lambda sample: (names[sample], sample))
    frames = reader.num_frames
    total = int(frames[by_name].sum())
    count = max(1, total // FRAMES_OF_A_PART)
    parts: dict[int, list[int]] = {}
    before = 0
    for _, samples in itertools.groupby(by_name, lambda sample: names[sample]):
        speaker = list(samples)
        own = int(frames[speaker].sum())
        parts.setdefault((2 * before + own) * count // (2 * total), []).extend(speaker)
        before += own
    return list(parts.values())


def frames_of(reader: Clips, parts: Sequence[Sequence[int]]) -> int:
    """Number of frames of the clips of all parts."""
    lengths = reader.num_frames
    return sum(int(lengths[list(part)].sum()) for part in parts)


def keys_of(reader: Clips, parts: Sequence[Sequence[int]]) -> list[str]:
    """Keys of the clips of all parts, in order."""
    return [reader.keys[number] for part in parts for number in part]


class ReaderSample:
    """Sample of a reader, as a fit sees it; see `talkinghead.derived.ColumnSample`.

    Args:
        reader: The reader.
        number: Number of the sample.
    """

    def __init__(self, reader: Clips, number: int) -> None:
        self._sample: Sample = reader[number]

    @property
    def key(self) -> str:
        """Key of the sample."""
        return self._sample.key

    @property
    def speaker(self) -> str:
        """Name of the speaker: the person, or where the data set names none, the split group."""
        return self._sample.speaker

    @property
    def num_frames(self) -> int:
        """Number of frames F."""
        return self._sample.num_frames

    @property
    def info(self) -> ClipInfo:
        """Facts about the clip."""
        return self._sample.info

    def video(self) -> Iterator[np.ndarray]:
        """Every frame in order, RGB uint8 `[H, W, 3]`."""
        for first in range(0, self.num_frames, _AT_ONCE):
            yield from self._sample.video(first, min(_AT_ONCE, self.num_frames - first))

    def audio(self) -> np.ndarray:
        """The whole sound, float32 `[F · 640]` at 16 kHz in -1 … 1."""
        return self._sample.audio()

    def column(self, name: str) -> np.ndarray:
        """A column `[rows, …]`, NaN where there is none; `ColumnError` where the sample has none."""
        try:
            return self._sample.annotation(name)
        except ValueError as error:
            raise ColumnError("needs", str(error)) from error


# --- making a fit -----------------------------------------------------------------------------------------------------


def fit_part(
    fit: GlobalFit,
    settings: Any,
    fits: Mapping[str, Fit],
    reader: Clips,
    part: Sequence[int],
    num_frames: int,
    on_sample: ProgressCallback | None = None,
) -> dict[str, np.ndarray]:
    """Sums over the clips of one part.

    Args:
        fit: The fit.
        settings: Its settings.
        fits: The fits that it needs.
        reader: Reader of its clips.
        part: Sample numbers of `plan_parts`.
        num_frames: Frames of the clips of all parts (`frames_of`).
        on_sample: Called with the clips of this part that are done.
    """

    def samples() -> Iterator[ReaderSample]:
        for done, number in enumerate(part):
            if on_sample:
                on_sample(stage_of(fit), done, len(part))
            yield ReaderSample(reader, number)

    return fit.partial(samples(), settings, fits, num_frames)


def merge_parts(fit: GlobalFit, parts: Iterable[Arrays], num_frames: int) -> Arrays | None:
    """Sums over all parts, given in their order; None where there is no part.

    Equal numbers of neighbouring parts are merged first, so that what grows with the clips is copied a few times and
    not once for each part. The order of the merges is a function of the number of parts.
    """
    waiting: list[tuple[int, Arrays]] = []  # (number of parts, sums), each more parts than the next one
    for sums in parts:
        waiting.append((1, sums))
        while len(waiting) > 1 and waiting[-2][0] == waiting[-1][0]:
            _merge_last(fit, waiting, num_frames)
    while len(waiting) > 1:
        _merge_last(fit, waiting, num_frames)
    return waiting[0][1] if waiting else None


def _merge_last(fit: GlobalFit, waiting: list[tuple[int, Arrays]], num_frames: int) -> None:
    (more, two), (count, one) = waiting.pop(), waiting.pop()
    waiting.append((count + more, fit.merge(one, two, num_frames)))


def make_fit(
    fit: GlobalFit,
    settings: Any,
    fits: Mapping[str, Fit],
    reader: Clips,
    on_progress: ProgressCallback | None = None,
) -> dict[str, np.ndarray]:
    """A fit, made in this process.

    Args:
        fit: The fit.
        settings: Its settings.
        fits: The fits that it needs.
        reader: Reader of its clips (`reader_for`).
        on_progress: Called with the clips that are done.

    Raises:
        ValueError: The clips do not allow the fit.
    """
    parts = plan_parts(fit, reader)
    num_frames = frames_of(reader, parts)
    total = sum(map(len, parts))

    def each() -> Iterator[Arrays]:
        before = 0
        for part in parts:

            def tell(stage: str, done: int, _: int, before: int = before) -> None:
                if on_progress:
                    on_progress(stage, before + done, total)

            yield fit_part(fit, settings, fits, reader, part, num_frames, tell)
            before += len(part)

    sums = merge_parts(fit, each(), num_frames)
    if sums is None:
        raise ValueError(f"{reader.name} has no training clip for the fit {fit.name}: look at make report")
    return fit.finish(sums, settings, fits)


def stage_of(fit: GlobalFit) -> str:
    """Name of the work on a fit, for progress."""
    return f"fit {fit.name}"
