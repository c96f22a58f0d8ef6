"""Media as the input of a unit: where each sample's lie, for those who plan, and reading them, for a worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orchestration import plans
from orchestration.units.unit import Unit
from talkinghead.files.storage import Storage
from talkinghead.sampletar import read_members
from talkinghead.schema import ClipInfo, Member


@dataclass(frozen=True, kw_only=True)
class MediaSample:
    """Where a sample's media lie: in the tar of the unit that ingested it, or in a media shard."""

    key: str
    num_frames: int
    file: str
    """The tar, relative to DATA."""
    members: tuple[Member, ...]
    content_sha256: str
    """SHA-256 of the file that names the content together with the key: the ingest unit's tar, wherever the media lie
    by now (annotate), or the media shard (latents)."""

    def payload(self) -> dict[str, Any]:
        """What a unit must say of its input, for `read_clip`."""
        return {"file": self.file, "members": [asdict(member) for member in self.members]}


def ingested_media(storage: Storage) -> list[MediaSample]:
    """Every ingested sample: in its shard when it is packed, else in its unit's tar."""
    packed = plans.packed_samples(storage)
    samples = []
    for key, item in plans.ingested_samples(storage).items():
        file, place = packed.get(key, (item.record.file, item.sample))
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
    """A unit's input as it was read."""

    info: ClipInfo
    mp4: bytes

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, RGB uint8 `[H, W, 3]`.

        Raises:
            UnreadableMediaError: A packet is damaged: trying again does not help.
        """
        from av.error import FFmpegError

        from talkinghead.media.clip import decode_clip
        from talkinghead.media.errors import UnreadableMediaError

        try:
            yield from decode_clip(self.mp4)
        except FFmpegError as error:
            message = f"{self.info.key}.mp4 is damaged: {error.strerror or error}"
            raise UnreadableMediaError("undecodable", message) from error

    def check_length(self, num_frames: int) -> None:
        """Raise `ValueError` unless so many frames are what the clip should have."""
        if num_frames != self.info.num_frames:
            raise ValueError(f"{self.info.key}.mp4 has {num_frames} frames, its json says {self.info.num_frames}")


def read_clip(storage: Storage, unit: Unit) -> Clip:
    """The clip that the payload of a unit names.

    Raises:
        ValueError: Another clip lies there.
    """
    file = unit.payload["file"]
    members = [Member(**member) for member in unit.payload["members"]]
    media = read_members(storage.read_range, file, unit.key, members, "json", "mp4")
    info = ClipInfo.from_json(bytes(media["json"]))
    if info.key != unit.key:
        raise ValueError(f"{storage.describe(file)} holds {info.key} where {unit.key} should be")
    return Clip(info, bytes(media["mp4"]))
