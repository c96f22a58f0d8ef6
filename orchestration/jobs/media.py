"""Samples as the input of a unit: where media and columns of each lie (to plan), and reading them (in a worker)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from orchestration import outcomes
from orchestration.plans import PACK_MEDIA_JOB
from orchestration.units.frame_reports import report_frames
from orchestration.units.unit import Unit
from shards.layout import WAV_HEADER, check_wav_header
from talkinghead.annotation import COLUMN
from talkinghead.column import Column, decode_column
from talkinghead.derived import MEDIA_NEEDS, ColumnError, DerivedColumn
from talkinghead.files.storage import Storage
from talkinghead.sampletar import read_members
from talkinghead.schema import ClipInfo, Member
from talkinghead.timebase import samples_in


@dataclass(frozen=True, kw_only=True)
class MediaSample:
    """Place of a sample's media: in the tar of the unit that ingested it, or in a media shard."""

    key: str
    num_frames: int
    file: str
    """Path of the tar, relative to DATA."""
    members: tuple[Member, ...]
    """Place of each member in the tar."""
    content_sha256: str
    """SHA-256 of the file by which provenance keys identify the content: the ingest unit's tar, wherever the media lie
    by now (annotate), or the media shard (derived columns)."""

    def payload(self) -> dict[str, Any]:
        """Part of a unit's payload from which `read_clip` finds the media."""
        return {"file": self.file, "members": [asdict(member) for member in self.members]}


class IngestedMedia:
    """Every ingested sample, with the records that say where its media lie, each read once.

    Args:
        storage: DATA, the data set's folder or bucket.

    Raises:
        ValueError: A plan or a record is none of ours.
    """

    def __init__(self, storage: Storage) -> None:
        self.unreadable: outcomes.Unreadable = {}
        self.ingested = outcomes.ingested_samples(storage, self.unreadable)
        self.shards = outcomes.pack_records(storage, PACK_MEDIA_JOB)


def ingested_media(storage: Storage, known: IngestedMedia | None = None) -> list[MediaSample]:
    """Media of every ingested sample: in a shard when it is packed, else in its unit's tar.

    Args:
        storage: DATA, the data set's folder or bucket.
        known: The samples; None: their records are read.

    Raises:
        ValueError: The record of a clip cannot be read, or there is no sample.
    """
    known = known or IngestedMedia(storage)
    unreadable, ingested = known.unreadable, known.ingested
    # Packed media first: the units' tars may be deleted once everything is packed. A shard may be lost instead.
    packed = outcomes.packed_samples(storage, known.shards)
    lost = outcomes.lost_shards(storage, known.shards.values())
    if unreadable:
        path, what = next(iter(unreadable.items()))
        raise ValueError(f"{what}: ingest its clip again with {outcomes.ingest_again(storage, path)}")
    if unknown := packed.keys() - ingested.keys():
        what = f"nothing says any more how {min(unknown)} was ingested"
        raise ValueError(f"{what}: ingest its clip again with {outcomes.ingest_again(storage, min(unknown))}")
    if not ingested:
        raise ValueError(f"{storage.uri} has no sample: {outcomes.why_none(storage)}")
    samples = []
    for key, item in ingested.items():
        file, place = packed[key] if key in packed and packed[key][0] not in lost else (item.record.file, item.sample)
        assert file and item.record.file_sha256
        samples.append(
            MediaSample(
                key=key,
                num_frames=item.sample.num_frames,
                file=file,
                members=tuple(place.members),
                content_sha256=item.record.file_sha256,
            )
        )
    return samples


@dataclass(frozen=True)
class Clip:
    """Media of one sample, read into memory."""

    info: ClipInfo
    """Its json member."""
    members: Mapping[str, memoryview]
    """Suffix → content, still encoded."""

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, RGB uint8 `[H, W, 3]`.

        Raises:
            UnreadableMediaError: A packet is damaged; trying again does not help.
        """
        # Here only: PyAV is for workers, and this module is also imported to plan.
        from av.error import FFmpegError

        from talkinghead.media.clip import decode_clip
        from talkinghead.media.errors import UnreadableMediaError

        try:
            yield from decode_clip(bytes(self.members["mp4"]))
        except FFmpegError as error:
            message = f"{self.info.key}.mp4 is damaged: {error.strerror or error}"
            raise UnreadableMediaError("undecodable", message) from error

    def sound(self) -> np.ndarray:
        """The whole sound, float32 `[F · 640]` at 16 kHz in -1 … 1; `ValueError` when the member holds another."""
        wav = self.members["wav"]
        check_wav_header(bytes(wav[:WAV_HEADER]), self.info.num_frames)
        samples = np.frombuffer(wav[WAV_HEADER:], "<i2")
        if len(samples) != samples_in(self.info.num_frames):
            raise ValueError(f"{self.info.key}.wav has {len(samples)} samples for {self.info.num_frames} frames")
        return samples.astype(np.float32) / np.float32(32768)

    def check_length(self, num_frames: int) -> None:
        """Raise `ValueError` unless the clip should have so many frames."""
        if num_frames != self.info.num_frames:
            raise ValueError(f"{self.info.key}.mp4 has {num_frames} frames, its json says {self.info.num_frames}")


def read_clip(storage: Storage, unit: Unit, *suffixes: str) -> Clip:
    """Read the clip that a unit's payload names.

    Args:
        storage: DATA, the data set's folder or bucket.
        unit: Unit whose payload holds `MediaSample.payload`.
        suffixes: Members to read next to the json.

    Raises:
        ValueError: The place holds another clip.
    """
    file = unit.payload["file"]
    members = [Member(**member) for member in unit.payload["members"]]
    wanted = ("json", *(suffix for suffix in suffixes if suffix != "json"))
    media = read_members(storage.read_range, file, unit.key, members, *wanted)
    # Offsets out of a stale record could hit another sample: its own json tells.
    info = ClipInfo.from_json(bytes(media["json"]))
    if info.key != unit.key:
        raise ValueError(f"{storage.describe(file)} holds {info.key} where {unit.key} should be")
    return Clip(info, media)


class StoredSample:
    """A packed sample, of which a column reads what it says that it needs; see `ColumnSample`."""

    def __init__(self, storage: Storage, unit: Unit, column: DerivedColumn) -> None:
        self.key = unit.key
        self.speaker: str = unit.payload["speaker"]
        self.num_frames: int = unit.payload["num_frames"]
        self._storage, self._unit, self._column = storage, unit, column

    @property
    def info(self) -> ClipInfo:
        """Facts about the clip."""
        self._check_need("json")
        return self._clip.info

    def video(self) -> Iterator[np.ndarray]:
        """Every frame in order, RGB uint8 `[H, W, 3]`."""
        self._check_need("mp4")
        count = 0
        for frame in self._clip.frames():
            count += 1
            report_frames(count)
            yield frame
        self._clip.check_length(count)

    def audio(self) -> np.ndarray:
        """The whole sound, float32 `[F · 640]` at 16 kHz."""
        self._check_need("wav")
        return self._clip.sound()

    def column(self, name: str) -> np.ndarray:
        """An annotation column, or an array of a derived column that is needed, `[rows, …]`."""
        if name not in self._arrays:
            if name in self._unmade:
                raise ColumnError("needs", f"{self.key} has no {name}: making it failed (make quarantine)")
            raise ColumnError("needs", f"{self._column.name} reads {name} but does not say that it needs it")
        return self._arrays[name]

    @property
    def _unmade(self) -> set[str]:
        """Arrays of needed columns that the sample could have."""
        return {form["name"] for place in self._unit.payload["columns"] for form in place["forms"]}

    @cached_property
    def _clip(self) -> Clip:
        needed = [suffix for suffix in MEDIA_NEEDS if suffix in self._column.needs]
        clip = read_clip(self._storage, self._unit, *needed)
        if clip.info.num_frames != self.num_frames:
            raise ValueError(f"{self.key} has {clip.info.num_frames} frames, the index says {self.num_frames}")
        return clip

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for place in self._unit.payload["columns"]:
            members = [Member(**member) for member in place["members"]]
            forms = dict(COLUMN) | {form["name"]: Column.from_json(form) for form in place["forms"]}
            # A sample whose column could not be made has no members of it.
            contents = read_members(self._storage.read_range, place["file"], self.key, members) if members else {}
            for suffix, content in contents.items():
                form = forms[suffix.removesuffix(".npy")]
                values = decode_column(form, content)
                if len(values) != form.num_rows(self.num_frames):
                    raise ValueError(f"{place['file']}: {self.key}.{suffix} has {len(values)} rows")
                found[form.name] = values
        return found

    def _check_need(self, suffix: str) -> None:
        if suffix not in self._column.needs:
            raise ColumnError("needs", f"{self._column.name} reads {suffix} but does not say that it needs it")
