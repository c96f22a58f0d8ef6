"""Data of the trainings from speech, derived once for each run: speakers, rest poses, statistics.

They are two global fits (`annotate/fits/speakers.py`, `expression.py`). Where `make basis` has made them of the same
clips, they are read out of the data set; else they are made here, by one pass over annotations and audio of the
training clips. What they hold is written into the folder of the run together with the index that it was made from, so
that a resumed run works with the very same samples or reports that they have changed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from annotate.fits.expression import EXPRESSION, ExpressionSettings, read_basis
from annotate.fits.speakers import SPEAKERS, PoseStatistics, SpeakersSettings, read_speakers
from shards.fit_files import find_fit
from shards.fits import keys_of, make_fit, plan_parts, reader_for
from shards.manifest import read_manifest
from shards.reader import ShardReader
from shards.reader_chain import ReaderChain
from shards.speech_choice import with_speech
from talkinghead import dataroot
from talkinghead.config import from_json
from talkinghead.derived import Fit
from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import read_json
from talkinghead.files.storage import Storage
from talkinghead.global_fit import GlobalFit
from talkinghead.motion.expression import EXPRESSION_FILE
from talkinghead.motion.speakers import FILE as SPEAKERS_FILE
from talkinghead.motion.speakers import READABLE_FILE, Speakers
from talkinghead.provenance import pretty_json
from talkinghead.runtime.progress import Progress
from train.audio2lmk.clip_table import FILE as CLIPS_FILE
from train.audio2lmk.clip_table import ClipTable, write_clips
from train.clip_choice import ClipChoice, PinnedVersion, ReadVersions, check_unchanged, joined_versions
from train.data_sets import DataSets, check_together

log = logging.getLogger(__name__)

STATISTICS_FILE = "statistics.json"


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Choice of the clips."""

    data: DataSets
    """Data sets that the clips are in."""
    choice: ClipChoice = field(default_factory=ClipChoice)
    """Annotation version, derived columns and rules."""
    pose_origin: Literal["rest", "first"] = "rest"
    """Origin of the poses in the statistics: the median pose of each clip, or its first frame with a face."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of the poses of the training clips, and the data that they were made from."""

    version: str
    """Annotation version."""
    index: str
    """File of the index; its name holds the hash of its content."""
    num_clips: int
    """Number of clips with a face."""
    num_frames: int
    """Number of frames with a face."""
    pose_mean: tuple[float, ...]
    """Means of the six pose numbers, relative to `CorpusConfig.pose_origin`, in degrees and cm."""
    pose_std: tuple[float, ...]
    """Standard deviations of the six pose numbers, in degrees and cm; at least 0.001."""
    pose_step_p99: tuple[float, ...]
    """99th percentiles of the absolute change of the six pose numbers from one frame to the next, in degrees and cm."""
    joined: tuple[PinnedVersion, ...] = ()
    """Derived columns that chose the clips. Older runs have none."""
    fits: Mapping[str, str] = field(default_factory=dict)
    """Name of each global fit that was read out of the data set → SHA-256 of its file."""
    more: tuple[tuple[PinnedVersion, ...], ...] = ()
    """Of each further data set: the annotation version, then the derived columns that chose the clips."""

    @property
    def pinned(self) -> tuple[tuple[PinnedVersion, ...], ...]:
        """Of each data set: the annotation version, then the derived columns that chose the clips."""
        return ((PinnedVersion(version=self.version, index=self.index), *self.joined), *self.more)

    @property
    def read(self) -> tuple[ReadVersions, ...]:
        """What was read of each data set."""
        fits = tuple(sorted(self.fits.values()))
        return tuple(
            ReadVersions(versions=tuple(one.version for one in pinned), fits=() if number else fits, indexes=pinned)
            for number, pinned in enumerate(self.pinned)
        )


class Corpus:
    """Training clips of a run, and what is derived from them.

    Args:
        config: Choice of the clips.
        folder: Folder of the derived files; `derive` makes them, everything but `check` needs them.
    """

    def __init__(self, config: CorpusConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder

    def check(self) -> list[ShardReader]:
        """Open the training clips of each data set that `derive` reads, or of a run that goes on, has read.

        Raises:
            ValueError: A data set is missing, lacks a column or score, has no clip that can be trained on, or does not
                go together with the others.
        """
        # Newer versions may have other scores; a run that goes on does not read them.
        begun = (self.folder / STATISTICS_FILE).exists()
        pinned = self.statistics.pinned if begun else ()
        # A folder of a run with other data sets, which is refused or started anew later.
        if len(pinned) != len(self.config.data.locations):
            pinned = ((),) * len(self.config.data.locations)
        readers = [
            self._opened(Storage(location), known)
            for location, known in zip(self.config.data.locations, pinned, strict=True)
        ]
        check_together(readers)
        return readers

    def _opened(self, storage: Storage, pinned: Sequence[PinnedVersion]) -> ShardReader:
        """Open the training clips of a data set, in the versions that a run began with, if it has begun."""
        choice = self.config.choice
        annotation, join = choice.annotation, choice.join
        if begun := bool(pinned):
            annotation, *join = (known.version for known in pinned)
        try:
            reader = reader_for(
                SPEAKERS, storage, annotation=annotation, join=tuple(join), selection=choice.selection(), begun=begun
            )
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        if not len(reader):
            raise ValueError(
                f"no training clip of {storage.uri} has both a face and speech and fulfils all rules: look at make"
                " report"
            )
        return reader

    def derive(self) -> None:
        """Make the derived files; the folder must exist.

        Raises:
            ValueError: The data set lacks a column or score, or has no clip that can be trained on.
        """
        readers = self.check()
        reader = ReaderChain(readers)
        # The two fits, out of the data set or made here.
        with Progress() as progress:
            settings = SpeakersSettings(pose_origin=self.config.pose_origin)
            speakers = self._find(SPEAKERS, settings, {}, reader)
            # `make basis` makes the basis with the speakers of the default origin: their meshes are the same.
            usual = speakers if settings == SpeakersSettings() else self._find(SPEAKERS, SpeakersSettings(), {}, reader)
            expression = None
            for known in filter(None, (speakers, usual)):
                expression = expression or self._find(EXPRESSION, ExpressionSettings(), {SPEAKERS.name: known}, reader)
            if speakers is None:
                speakers = self._make(SPEAKERS, settings, {}, reader, progress)
            if expression is None:
                needed = {SPEAKERS.name: speakers}
                expression = self._make(EXPRESSION, ExpressionSettings(), needed, reader, progress)
        # Write what they hold; last the tables by which a training finds all this again.
        with _naming(readers[0].storage, SPEAKERS, speakers):
            found = read_speakers(speakers)
        with _naming(readers[0].storage, EXPRESSION, expression):
            basis = read_basis(expression)
        found.speakers.save(self.folder)
        if basis is None:
            log.warning("the annotations have no blendshapes: infer's --neutralise will not work with these weights")
        else:
            basis.save(self.folder / EXPRESSION_FILE)
        write_clips(self.folder / CLIPS_FILE, found.clips)
        stored = {
            fit.name: made.sha256 for fit, made in ((SPEAKERS, speakers), (EXPRESSION, expression)) if made.sha256
        }
        statistics = _statistics(readers, found.poses, stored)
        write_whole(self.folder / STATISTICS_FILE, pretty_json(asdict(statistics)))

    def _find(self, fit: GlobalFit, settings: Any, needed: Mapping[str, Fit], clips: ReaderChain) -> Fit | None:
        """A fit over the clips, made with the fits that it needs, out of the data set; None without. Of several data
        sets together there is none."""
        reader, *others = clips.readers
        if others:
            return None
        index, selection = reader.manifest.annotation(reader.version).index, self.config.choice.selection()
        keys = keys_of(reader, plan_parts(fit, reader))
        found = find_fit(
            reader.storage, reader.manifest, fit, settings, index, selection, reader.joined, needed=needed, keys=keys
        )
        if found is not None:
            log.info("the fit %s is read out of the data set: %s", fit.name, dataroot.fit(fit.name, found.sha256))
        return found

    def _make(
        self, fit: GlobalFit, settings: Any, needed: Mapping[str, Fit], clips: ReaderChain, progress: Progress
    ) -> Fit:
        """A fit over the clips, made here: it has no hash."""
        options = self.config.choice.options()
        if len(clips.readers) == 1:
            log.info(
                "the fit %s of these clips is not in the data set, so this run makes it for itself: make basis"
                " DATA=%s%s makes it once for all runs",
                fit.name,
                clips.name,
                f" ARGS='{options}'" if options else "",
            )
        else:
            log.info(
                "the fit %s is of the clips of %s together, and a data set holds fits of its own clips alone: this run"
                " makes it for itself, by a pass over all of them",
                fit.name,
                clips.name,
            )
        return Fit(sha256="", arrays=make_fit(fit, settings, needed, clips, progress))

    def reads(self) -> tuple[ReadVersions, ...]:
        """Versions and fits that the run reads of each data set."""
        return self.statistics.read

    def reader(self, columns: Sequence[str], split: str = "train", *, speech: bool = True) -> ReaderChain:
        """Open the clips of a split, in the annotation versions that the run began with.

        Args:
            columns: Annotation columns to read.
            split: Name of the split.
            speech: Whether only clips with speech are taken.

        Raises:
            ValueError: A data set has changed since, or lacks a column.
        """
        readers = []
        for location, pinned in zip(self.config.data.locations, self.statistics.pinned, strict=True):
            storage, (version, *join) = Storage(location), (known.version for known in pinned)
            selection = self.config.choice.selection(split)
            if speech:
                selection = with_speech(selection, read_manifest(storage), join, begun=True)
            reader = ShardReader(
                storage,
                version=version,
                split=split,
                columns=tuple(columns),
                join=tuple(join),
                **selection.arguments(),
            )
            check_unchanged(reader, pinned)
            readers.append(reader)
        return ReaderChain(readers)

    @functools.cached_property
    def speakers(self) -> Speakers:
        """Training speakers."""
        return Speakers.load(self.folder)

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Statistics of the training clips.

        Raises:
            ValueError: Their file is damaged.
        """
        path = self.folder / STATISTICS_FILE
        value = read_json(path)
        try:
            found = from_json(Statistics, value)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; take another RUN") from error
        if {len(numbers) for numbers in (found.pose_mean, found.pose_std, found.pose_step_p99)} != {6}:
            raise ValueError(f"{path} is damaged: a pose has six numbers; take another RUN")
        return found

    @functools.cached_property
    def clips(self) -> ClipTable:
        """Speaker, rest pose and loudness of each training clip.

        Raises:
            ValueError: Their file is damaged.
        """
        return ClipTable(self.folder / CLIPS_FILE, self.speakers)

    def export(self, folder: Path) -> None:
        """Copy what inference needs next to the weights: the speakers, and the expression basis where there is one."""
        for name in (SPEAKERS_FILE, READABLE_FILE, EXPRESSION_FILE):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)


def _statistics(readers: Sequence[ShardReader], poses: PoseStatistics, fits: Mapping[str, str]) -> Statistics:
    (first, *joined), *more = (
        (
            PinnedVersion(version=reader.version, index=reader.manifest.annotation(reader.version).index),
            *joined_versions(reader),
        )
        for reader in readers
    )
    return Statistics(
        version=first.version,
        index=first.index,
        num_clips=poses.num_clips,
        num_frames=poses.num_frames,
        pose_mean=tuple(poses.mean.tolist()),
        pose_std=tuple(poses.std.tolist()),
        pose_step_p99=tuple(poses.step_p99.tolist()),
        joined=tuple(joined),
        fits=fits,
        more=tuple(more),
    )


@contextlib.contextmanager
def _naming(storage: Storage, fit: GlobalFit, made: Fit) -> Iterator[None]:
    """Context in which an error about the content of a fit names its file."""
    try:
        yield
    except ValueError as error:
        if not made.sha256:
            raise
        name = storage.describe(dataroot.fit(fit.name, made.sha256))
        raise ValueError(f"{name} is damaged: {error}; remove it and run make basis again") from error
