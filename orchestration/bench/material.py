"""What the bench works on: a data set built from real clips where they are, from the embedded sample elsewhere."""

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
    """Use the face model next to the repository, if it is there and the user has not named a folder."""
    if (SHARED / "models").is_dir():
        os.environ.setdefault("TALKINGHEAD_MODELS", str(SHARED / "models"))


@dataclass(frozen=True)
class Source:
    """A folder of videos."""

    folder: Path
    name: str
    """For `bench.json`."""


def find_source(given: Path | None, scratch: Path) -> Source:
    """The given folder, or the real clips next to the repository, or the embedded sample (made in `scratch`)."""
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
    """All of them, in key order."""
    chosen: list[MediaSample]
    """The first of them that have at least the wanted number of frames together."""

    @property
    def num_frames(self) -> int:
        """Frames of the chosen samples."""
        return sum(sample.num_frames for sample in self.chosen)

    def member(self, sample: MediaSample, suffix: str) -> bytes:
        """One media member of a sample."""
        return bytes(read_members(self.storage.read_range, sample.file, sample.key, sample.members, suffix)[suffix])


def read_material(storage: Storage, frames: int) -> Material:
    """The samples of a data set.

    Raises:
        ValueError: It has none.
    """
    samples = sorted(ingested_media(storage), key=lambda sample: sample.key)
    if not samples:
        raise ValueError(f"the bench's videos gave no samples: see make quarantine DATA={storage.uri}")
    chosen: list[MediaSample] = []
    for sample in samples:
        if sum(one.num_frames for one in chosen) < frames:
            chosen.append(sample)
    return Material(storage, samples, chosen)
