"""Clips of a run, pinned when it begins: which annotations and which latents it reads."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.manifest import find_latents, read_manifest
from shards.reader import ShardReader
from talkinghead.config import from_json
from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import read_json
from talkinghead.files.storage import Storage
from talkinghead.latents import latent_columns
from talkinghead.provenance import pretty_json
from train.clip_choice import PinnedVersion, ReadVersions, check_unchanged, joined_versions
from train.lmk2video.config import Lmk2VideoConfig
from train.task import Provenance

log = logging.getLogger(__name__)

FILE = "clips.json"
_COLUMNS = ("landmarks", "valid")


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """Annotations and latents that a run reads from its first step to its last."""

    version: str
    """Annotation version."""
    index: str
    """File of its index; the name holds a hash of the content."""
    latents: str | None
    """Annotation version with latents and embeddings; None: images are encoded in every step."""
    latents_index: str | None
    """File of the index of the latents."""
    joined: tuple[PinnedVersion, ...] = ()
    """Further derived columns, which chose the clips. Older runs have none."""

    @property
    def versions(self) -> tuple[PinnedVersion, ...]:
        """All of these."""
        latents = [(self.latents, self.latents_index)] if self.latents and self.latents_index else []
        first = (PinnedVersion(version=v, index=index) for v, index in [(self.version, self.index), *latents])
        return (*first, *self.joined)


class ClipSource:
    """Training clips of a data set, for one training.

    Args:
        config: Settings that choose the clips.
        data: Folder or URI of the data set.
        folder: Folder into which `pin` writes what was found.
        number: Number of the data set among those of the training.
    """

    def __init__(self, config: Lmk2VideoConfig, data: str, folder: Path, number: int = 0) -> None:
        self.config = config
        self.storage = Storage(data)
        self.file = folder / (f"clips-{number}.json" if number else FILE)

    def find(self, encoders: Mapping[str, Provenance], num_frames: int = 1, *, latents_too: bool = True) -> Pinned:
        """Find annotations and latents to train on.

        Args:
            encoders: VAE and image encoder; latents of others do not fit.
            num_frames: Frames of a window; shorter clips are not trained on.
            latents_too: Whether latents are taken where there are any.

        Raises:
            ValueError: There is no data set, it lacks a column or required latents, or it has no clip that is long
                enough to train on.
        """
        config = self.config
        annotation, join = config.annotation, config.join
        # Newer versions may have other scores; a run that goes on does not read them.
        if self.file.exists():
            annotation, join = self.pinned.version, tuple(joined.version for joined in self.pinned.joined)
        # The clips: the split, the persons and the filters must leave some, and one must be long enough for a window.
        try:
            reader = self._open(annotation, join)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        if not len(reader):
            whose = f" of {', '.join(config.person)}" if config.person else ""
            raise ValueError(
                f"the train split of {reader.storage.uri} has no clip{whose} that the filters and this training's"
                " rules keep: look at the splits and the rejected clips in make report"
            )
        if (longest := int(reader.num_frames.max())) < num_frames:
            raise ValueError(
                f"no training clip of {reader.storage.uri} has {num_frames} frames (the longest has {longest}): take"
                " shorter windows"
            )
        # Latents of exactly these weights at exactly this size, if they are wanted.
        latents = None
        if config.use_latents != "no" and latents_too:
            latents = find_latents(reader.manifest, encoders, config.width, config.height)
            if latents is None and config.use_latents == "require":
                raise ValueError(
                    f"{reader.storage.uri} has no latents of these weights at {config.width}x{config.height}: run"
                    f" make latents DATA={reader.storage.uri}, or leave use_latents at auto"
                )
            if latents is not None:
                self._check_covered(reader, latents)
        # The names of the index files pin the content: they hold its hash.
        entry = reader.manifest.annotation(reader.version)
        return Pinned(
            version=entry.version,
            index=entry.index,
            latents=latents,
            latents_index=None if latents is None else reader.manifest.annotation(latents).index,
            joined=joined_versions(reader, without=latents),
        )

    def _check_covered(self, reader: ShardReader, latents: str) -> None:
        """Warn of clips that have no latents, and so are missing in the training; refuse if all are."""
        joined = tuple(reader.joined.values())
        covered = len(self._open(reader.version, joined, latents))
        if not covered:
            raise ValueError(
                f"no training clip of {reader.storage.uri} has latents in {latents}: look at make quarantine, or set"
                " use_latents to no"
            )
        if covered < len(reader):
            log.warning(
                "only %d of %d training clips have latents in %s, and only they are trained on: look at make"
                " quarantine, or set use_latents to no",
                covered,
                len(reader),
                latents,
            )

    def pin(self, found: Pinned) -> None:
        """Write down what `find` has found; the folder must exist."""
        write_whole(self.file, pretty_json(asdict(found)))
        text = "images are encoded in every step" if found.latents is None else f"latents are read: {found.latents}"
        log.info("annotations %s; %s", found.version, text)

    @functools.cached_property
    def pinned(self) -> Pinned:
        """Annotations and latents that were pinned when the run began.

        Raises:
            ValueError: Their file is damaged.
        """
        value = read_json(self.file)
        try:
            return from_json(Pinned, value)
        except ValueError as error:
            raise ValueError(f"{self.file} is damaged: {error}; take another RUN") from error

    def reader(self) -> ShardReader:
        """Open the training clips as they were pinned.

        Raises:
            ValueError: The data set has changed since the run began.
        """
        reader = self.open_found(self.pinned)
        check_unchanged(reader, self.pinned.versions)
        return reader

    def open_found(self, found: Pinned) -> ShardReader:
        """Open the training clips that were found."""
        return self._open(found.version, tuple(joined.version for joined in found.joined), found.latents)

    def validation_reader(self, split: str, columns: tuple[str, ...]) -> ShardReader:
        """Open the clips of a split for validation, in the versions that the run began with, even if there are newer
        ones by now; of the training split only persons that are trained on.

        Args:
            split: Name of the split.
            columns: Annotation columns to read.
        """
        return ShardReader(
            self.storage,
            version=self.pinned.version,
            columns=columns,
            join=tuple(joined.version for joined in self.pinned.joined),
            decoder=self.config.decoder,
            **self.config.arguments(split),
        )

    def held_out_reader(self) -> ShardReader:
        """Open the held-out clips, to be read as the training reads its own; those without latents are left out where
        it reads latents."""
        pinned = self.pinned
        return self._open(pinned.version, tuple(joined.version for joined in pinned.joined), pinned.latents, "val")

    def reads(self) -> ReadVersions:
        """Versions that the run reads."""
        pinned = self.pinned.versions
        return ReadVersions(versions=tuple(version.version for version in pinned), indexes=pinned)

    def _open(
        self, version: str | None, join: tuple[str, ...], latents: str | None = None, split: str = "train"
    ) -> ShardReader:
        # With latents, the reader leaves out clips that have none.
        more = () if latents is None else latent_columns(read_manifest(self.storage).annotation(latents).arrays)
        return ShardReader(
            self.storage,
            version=version,
            columns=(*_COLUMNS, *more),
            join=join if latents is None else (*join, latents),
            decoder=self.config.decoder,
            **self.config.arguments(split),
        )
