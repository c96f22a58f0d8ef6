"""The speakers of a data set: neutral mesh, mean offset and identity number of each.

Stored as `speakers.safetensors`, which holds everything, and `speakers.json`, the same without arrays, for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from talkinghead.config import from_json, shown
from talkinghead.files.atomic import write_whole
from talkinghead.files.foreign import parse_json, read_limited
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.motion.neutral import NeutralMesh, Rule
from talkinghead.provenance import canonical_json, pretty_json

FILE = "speakers.safetensors"
READABLE_FILE = "speakers.json"
FORMAT = 1
MOST_BYTES = 2 << 30
"""Largest file of speakers that is read: that of 190,000."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """One person (or, where nobody is named, one source video)."""

    name: str
    neutral: NeutralMesh
    mean_offset: np.ndarray
    """`[468, 3]` float32, cm: mean over the frames of mesh minus neutral mesh, the best prediction without input."""
    num_frames: int
    """Number of frames with a face."""

    def __post_init__(self) -> None:
        for name, values in (("neutral mesh", self.neutral.mesh), ("mean offset", self.mean_offset)):
            if values.dtype.kind != "f" or values.shape != (NUM_VERTICES, 3) or not np.isfinite(values).all():
                raise ValueError(f"speaker {shown(self.name)}: the {name} must be finite [{NUM_VERTICES}, 3]")
        if self.num_frames < 1:
            raise ValueError(f"speaker {shown(self.name)} has {self.num_frames} frames with a face")


class Speakers(Mapping[str, Speaker]):
    """Name → speaker. A speaker's identity is its place among the sorted names, so it does not depend on clip order."""

    def __init__(self, speakers: list[Speaker]) -> None:
        """Raises `ValueError` when two have the same name, or there are none."""
        self._speakers = {speaker.name: speaker for speaker in sorted(speakers, key=lambda speaker: speaker.name)}
        if len(self._speakers) != len(speakers):
            raise ValueError("two speakers have the same name")
        if not speakers:
            raise ValueError("there are no speakers: no sample of the split has a face")
        self._identities = {name: number for number, name in enumerate(self._speakers)}

    def __getitem__(self, name: str) -> Speaker:
        return self._speakers[name]

    def __iter__(self) -> Any:
        return iter(self._speakers)

    def __len__(self) -> int:
        return len(self._speakers)

    def identity(self, name: str) -> int:
        """Identity number of a speaker, from 0.

        Raises:
            ValueError: There is no such speaker; the message names those that there are.
        """
        if name not in self._identities:
            there = ", ".join(list(self._speakers)[:8]) + (", …" if len(self) > 8 else "")
            raise ValueError(f"there is no speaker {shown(name)}; there are {there}")
        return self._identities[name]

    @property
    def mean_offset(self) -> np.ndarray:
        """Mean offset over the frames of all speakers, `[468, 3]` float32, cm."""
        frames = np.array([speaker.num_frames for speaker in self.values()], np.float64)
        offsets = np.stack([speaker.mean_offset for speaker in self.values()])
        return np.average(offsets, axis=0, weights=frames).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Names, identities, frame counts and rules, without the arrays."""
        return {
            "format": FORMAT,
            "speakers": [
                {
                    "name": speaker.name,
                    "identity": self.identity(speaker.name),
                    "num_frames": speaker.num_frames,
                    "neutral_num_frames": speaker.neutral.num_frames,
                    "neutral_rule": speaker.neutral.rule,
                }
                for speaker in self.values()
            ],
        }

    def save(self, folder: Path) -> None:
        """Write both files into a folder; each is whole or as it was before."""
        tensors = {
            "neutral_mesh": np.stack([speaker.neutral.mesh for speaker in self.values()]).astype(np.float32),
            "mean_offset": np.stack([speaker.mean_offset for speaker in self.values()]).astype(np.float32),
        }
        # The table also goes into the tensors' file, so that rows and names cannot be of different versions.
        table = self.to_json()
        write_whole(folder / FILE, save_tensors(tensors, metadata={"speakers": canonical_json(table).decode()}))
        write_whole(folder / READABLE_FILE, pretty_json(table))

    @classmethod
    def load(cls, folder: Path) -> Speakers:
        """Inverse of `save`.

        Raises:
            ValueError: The folder has no such file, or the file is damaged or of another version.
        """
        path = folder / FILE
        try:
            data = read_limited(path, MOST_BYTES, "table of speakers")
        except FileNotFoundError as error:
            raise ValueError(f"{folder} has no {FILE}: it is no folder of a trained or prepared model") from error
        try:
            tensors = load_tensors(data)
            table = from_json(_Table, parse_json(_metadata(data), "the table in it"))
            if table.format != FORMAT:
                raise ValueError(f"it has format {table.format}, this code reads {FORMAT}")
            # `save` stacks in the order of the identities.
            speakers = [_speaker(row, tensors, number) for number, row in enumerate(table.speakers)]
            if not all(tensors[name].shape[:1] == (len(speakers),) for name in _TENSORS):
                raise ValueError(f"it names {len(speakers)} speakers, its arrays have another number")
            found = cls(speakers)
            if any({row.identity, found.identity(row.name)} != {place} for place, row in enumerate(table.speakers)):
                raise ValueError("its identities are not the places of the names in order")
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no table of speakers: {error}") from error
        return found


_TENSORS = ("neutral_mesh", "mean_offset")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One speaker without arrays, as the file has it."""

    name: str
    identity: int
    num_frames: int
    neutral_num_frames: int
    neutral_rule: Rule


@dataclass(frozen=True, kw_only=True)
class _Table:
    """All speakers without arrays."""

    format: int
    speakers: list[_Row]


def _speaker(row: _Row, tensors: dict[str, np.ndarray], number: int) -> Speaker:
    neutral = NeutralMesh(
        mesh=tensors["neutral_mesh"][number], num_frames=row.neutral_num_frames, rule=row.neutral_rule
    )
    return Speaker(
        name=row.name, neutral=neutral, mean_offset=tensors["mean_offset"][number], num_frames=row.num_frames
    )


def _metadata(data: bytes) -> str:
    """The table in a safetensors file's header, as JSON: 8 bytes of length, then JSON that holds it as a text.

    Source: the format's description, github.com/huggingface/safetensors. Its library gives metadata only of a file by
    name, not of bytes.
    """
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], "its header")
    return header["__metadata__"]["speakers"]


def identity_of(speaker: str, known: Speakers | None, rows: int) -> int:
    """Row of a pose model's identity embedding for a speaker.

    A speaker that the model was not trained on takes row 0; where there are more speakers than rows, some share one.

    Args:
        speaker: Name of the speaker.
        known: Speakers that the model was trained on; None: unknown.
        rows: Number of rows of the embedding.
    """
    return known.identity(speaker) % rows if known is not None and speaker in known else 0
