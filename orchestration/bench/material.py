"""Material of the bench: a data set built from real clips where there are any, from the embedded sample elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from orchestration import ROOT
from orchestration.jobs.media import MediaSample, ingested_media
from talkinghead.files.storage import Storage
from talkinghead.sampletar import read_members

SHARED = ROOT.parent / "shared"
REAL_CLIPS = SHARED / "media" / "video"


def prefer_shared_models() -> None:
    """Use the face model next to the repository, if there is one and the user has not named a folder."""
    if (SHARED / "models").is_dir():
        os.environ.setdefault("TALKINGHEAD_MODELS", str(SHARED / "models"))


@dataclass(frozen=True)
class Source:
    """A folder of videos."""

    folder: Path
    name: str
    """Name of the source in `bench.json`."""


def find_source(given: Path | None, scratch: Path) -> Source:
    """Find the videos: the given folder, or the real clips next to the repository, or else the embedded sample.

    Args:
        given: Folder that the user named; None: none.
        scratch: Folder in which the embedded sample is made.

    Raises:
        ValueError: The given folder does not exist.
    """
    if given is not None:
        if not given.is_dir():
            raise ValueError(f"{given} is no folder: --source takes a folder with videos")
        return Source(given, given.name)
    if REAL_CLIPS.is_dir():
        return Source(REAL_CLIPS, "real clips")
    from ingest.sample import make_sample

    return Source(make_sample(scratch / "sample"), "embedded sample")


@dataclass(frozen=True)
class Material:
    """A finished data set, and a few hundred frames of it for what is measured frame by frame."""

    storage: Storage
    samples: list[MediaSample]
    """All samples, in key order."""
    chosen: list[MediaSample]
    """First samples, as many as have the wanted number of frames together."""

    @property
    def num_frames(self) -> int:
        """Number of frames of the chosen samples."""
        return sum(sample.num_frames for sample in self.chosen)

    def member(self, sample: MediaSample, suffix: str) -> bytes:
        """Content of one media member of a sample, e.g. of suffix `mp4`."""
        return bytes(read_members(self.storage.read_range, sample.file, sample.key, sample.members, suffix)[suffix])


def read_material(storage: Storage, frames: int) -> Material:
    """Read the material from a data set.

    Args:
        storage: DATA of a finished data set.
        frames: Least number of frames of the chosen samples, as far as there are so many.

    Raises:
        ValueError: The data set has no samples.
    """
    samples = sorted(ingested_media(storage), key=lambda sample: sample.key)
    if not samples:
        raise ValueError(f"the bench's videos gave no samples: see make quarantine DATA={storage.uri}")
    chosen: list[MediaSample] = []
    for sample in samples:
        if sum(one.num_frames for one in chosen) < frames:
            chosen.append(sample)
    return Material(storage, samples, chosen)
