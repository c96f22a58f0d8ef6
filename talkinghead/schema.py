"""Contents of the files between the jobs: keys, catalog rows, media members, index rows.

`ingest`, `annotate` and `shards` do not import each other; they meet here. Names and units are the contract of
`SCHEMA_VERSION`; a change that an old reader would misread raises it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import pyarrow as pa

from talkinghead.config import from_json, shown

SCHEMA_VERSION = 1

DownloadableDataset = Literal["hdtf", "celebv-hq", "vfhq"]
"""Data sets whose metadata gives the addresses of their videos."""
Dataset = Literal[DownloadableDataset, "folder"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
SPLITS = ("train", "val", "test")

# --- names ------------------------------------------------------------------------------------------------------------

# Names become file names, and the tables and JSON files of DATA may be a stranger's. So each is checked where it is
# read, and nobody who writes a file needs to think of it: keys, versions, names of data sets, columns and scores hold
# letters, digits, `_` and `-`. Persons, split groups, licences and ids of videos are free text and name no file: who
# needs a file for one takes `path_key`.

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,90}")  # 90 + the longest member suffix stays inside ustar's 100 bytes
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}")
SUFFIX_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}(\.[A-Za-z0-9]{1,8})?")
VERSION_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}")
CUT_SUFFIX = "-cut"


def check_key(key: str) -> str:
    """Return `key`; raises `ValueError` when it has a character or length that a shard cannot hold."""
    if not isinstance(key, str) or not KEY_PATTERN.fullmatch(key):
        raise ValueError(f"key {shown(key)} must be 1 to 90 characters out of A-Z a-z 0-9 _ -")
    return key


def check_name(name: str, what: str) -> str:
    """Return the name of a data set, score or reason; raises `ValueError`, which says `what` it is, for a wrong one."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"{what} {shown(name)} must be 1 to 60 characters out of A-Z a-z 0-9 _ -")
    return name


def check_suffix(suffix: str) -> str:
    """Return the suffix of a tar member, such as `mesh.npy`; raises `ValueError` when it is none."""
    if not isinstance(suffix, str) or not SUFFIX_PATTERN.fullmatch(suffix):
        raise ValueError(f"member {shown(suffix)} must be a name out of A-Z a-z 0-9 _ -, with at most one dot in it")
    return suffix


def check_relative(path: str) -> str:
    """Return the path of a file below a folder; raises `ValueError` when it leads out of it."""
    if not isinstance(path, str) or not path or path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"path {shown(path)} must be relative, without '..'")
    return path


def slug(text: str, *, most: int = 40) -> str:
    """Text as key characters: accents are dropped, other characters that a key cannot hold become one `-`."""
    # NFKD takes letters and accents apart, so that only the accents are lost.
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", ascii_text).strip("-")[:most].strip("-")


def path_key(path: str) -> str:
    """Key characters for any file path: a readable slug and twelve digits of its hash, which make it unique."""
    # surrogateescape: a Linux path may hold bytes that are no UTF-8.
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{slug(path) or 'file'}-{digest}"


def cut_key(clip_key: str, piece: int) -> str:
    """Key of the sample made of piece `piece` of a clip that was split at cuts. An unsplit clip keeps its own key."""
    return check_key(f"{clip_key}{CUT_SUFFIX}{piece:02d}")


# --- catalog ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CatalogRow:
    """One clip as the data set's own metadata describes it, before any media is read."""

    key: str
    """Clip key, a function of the metadata alone."""
    dataset: str
    source_id: str
    """Name of the video in the data set, e.g. `WDA_BobCasey1` or a YouTube id."""
    source: str | None
    """Media file (or folder of frames) relative to SOURCE; None when it was not found there."""
    url: str | None = None
    start_s: float | None = None
    """Start on the source's presentation timeline in seconds; None: from the beginning."""
    end_s: float | None = None
    """End on the same timeline in seconds, exclusive; None: to the end."""
    box: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1 (ends exclusive) in units of `box_width` x `box_height`; None: crop around the face."""
    box_width: float | None = None
    """Width of the frame that `box` refers to (1.0 when normalised); None: same aspect as the real frame."""
    box_height: float | None = None
    frame_fps: float | None = None
    """Frame rate of a folder of frames; None for video files."""
    person: str | None = None
    split_group: str
    """Group whose clips always land in the same split: the person, or the source video."""
    licence: str
    terms_url: str | None = None
    notes: tuple[str, ...] = ()
    """Defects found in the metadata and how they were handled, e.g. `resolution listed as 0`."""
    attributes: str = "{}"
    """Other labels of the data set as JSON, passed through to the sample."""
    adapter_version: int = 1

    def __post_init__(self) -> None:
        check_key(self.key)
        check_name(self.dataset, "data set")
        if self.source is not None:
            check_relative(self.source)
        if self.start_s is not None and self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"{self.key}: the interval {self.start_s}–{self.end_s} s is empty")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back into an equal row."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CatalogRow:
        """Inverse of `to_json`; also takes a row of the catalog table. Raises `ValueError` for anything else."""
        return from_json(cls, {**value, "notes": value.get("notes") or ()})


# The catalog table, field by field as the row: `assert` below holds the two together.
CATALOG_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        ("source", pa.string()),
        ("url", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("box", pa.list_(pa.float64(), 4)),
        ("box_width", pa.float64()),
        ("box_height", pa.float64()),
        ("frame_fps", pa.float64()),
        ("person", pa.string()),
        pa.field("split_group", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        ("terms_url", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("attributes", pa.string()),
        ("adapter_version", pa.int32()),
    ]
)
assert CATALOG_SCHEMA.names == [f.name for f in fields(CatalogRow)]

# --- outcomes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Reason why a clip or a piece of it is not a sample. Not an error: the input was read and judged."""

    reason: str
    """Short stable word, e.g. `no_face`; the report counts by it."""
    score: float | None = None
    """Measured value that fell short, e.g. the share of frames with a face."""
    detail: str = ""


# --- media members ----------------------------------------------------------------------------------------------------

MOST_PADDED_SOUND = 0.05
"""Largest share of a clip that its source has no sound for, where sound is needed. Sound that ends with the images is
up to 0.1 s shorter than they are; where it ends early, or is damaged, mouths move without being heard."""
MEDIA_MEMBERS = ("json", "mp4", "wav")
"""Suffixes of a sample in a media shard, in tar order."""
CLIP_INFO_BYTES = 16 << 20
"""Largest `json` member: about 9 bytes for each frame, and the labels of the data set."""


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """Provenance of one sample: the `<key>.json` member of a media shard."""

    key: str
    clip_key: str
    dataset: str
    source_id: str
    source: str
    url: str | None
    num_frames: int
    width: int
    height: int
    start_s: float
    """Presentation time in the source at which frame 0 starts, seconds."""
    end_s: float
    crop_box_px: tuple[float, float, float, float]
    """x0, y0, x1, y1 of the crop in pixels of the upright, square-pixel source frame; may exceed the frame (padded)."""
    crop_rule: Literal["box", "face", "none"]
    source_width: int
    """Width of the upright frame in pixels, after rotation and sample aspect ratio."""
    source_height: int
    source_fps: float | None
    source_codec: str
    source_rotation: int
    """Rotation in degrees that made the frame upright (0, 90, 180, 270)."""
    source_multi_face_fraction: float | None
    """Share of the face's detections in whole source frames with another face of similar size in the same frame. The
    crop may leave that one out, yet nobody knows which of the two speaks. None where the data set's box says who."""
    source_pts: list[float]
    """Presentation time in seconds of the source frame that each frame shows, `[F]`."""
    audio: Literal["present", "silent", "missing"]
    """State of the audio. `missing`: the source has no audio stream, or none of its audio lies in this clip."""
    audio_offset_samples: int
    """Number of samples of silence before the first audio of the source inside this clip."""
    audio_padded_samples: int
    """Number of samples of silence after the last audio of the source inside this clip."""
    av_duration_difference_s: float | None
    """Audio stream end minus video stream end in the source, seconds."""
    person: str | None
    split_group: str
    licence: str
    terms_url: str | None
    notes: list[str]
    attributes: dict[str, Any]
    ingest_key: str
    schema_version: int = SCHEMA_VERSION
    # Fields that were added later have defaults, see `to_json`.
    damaged_frames: list[int] = field(default_factory=list)
    """Frames that show an image which is damaged in the source, ascending: torn, grey or green blocks. They count as
    frames without a face."""
    audio_gap_samples: int = 0
    """Number of samples of silence that stand for damaged or missing audio between the first and the last sample."""
    audio_nan_samples: int = 0
    """Number of samples, at the source's own rate, that were no numbers; they became silence."""
    source_mirrored: bool = False
    """Whether the source asks to exchange left and right after the rotation; the frames are as it asks."""
    source_hdr: Literal["PQ", "HLG"] | None = None
    """Transfer function of a source of high dynamic range, which was mapped to BT.709."""
    source_interlaced: bool = False
    """Whether the source's frames are woven from two moments; they were deinterlaced."""
    source_clock_jumps: int = 0
    """Number of places in the whole source where its clock jumps."""
    source_damaged_stamps: int = 0
    """Number of packets in the whole source whose time stamps are damaged."""
    sound_shift_frames: int = 0
    """Frames by which the sound comes earlier here than in the source, whose sound was found to be late (below 0:
    early)."""

    def __post_init__(self) -> None:
        check_key(self.key)
        check_key(self.clip_key)
        check_name(self.dataset, "data set")
        check_relative(self.source)
        if min(self.num_frames, self.width, self.height) < 1:
            raise ValueError(f"{self.key} has {self.num_frames} frames of {self.width}x{self.height} pixels")
        # -1 and num_frames are the neighbours that the first and the last may not reach.
        order = [-1, *self.damaged_frames, self.num_frames]
        if any(one >= two for one, two in itertools.pairwise(order)):
            raise ValueError(f"{self.key}: damaged frames must be ascending numbers below {self.num_frames}")
        for name in ("audio_gap_samples", "audio_nan_samples", "source_clock_jumps", "source_damaged_stamps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{self.key}: {name} is {getattr(self, name)}, must be 0 or more")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back into an equal one.

        A field that was added later is left out where it has its default: clips without what it is about keep the bytes
        that they have always had.
        """
        added = {
            item.name: item.default if item.default_factory is MISSING else item.default_factory()
            for item in fields(self)
            if item.name != "schema_version" and (item.default is not MISSING or item.default_factory is not MISSING)
        }
        return {name: value for name, value in asdict(self).items() if name not in added or value != added[name]}

    @classmethod
    def from_json(cls, data: bytes | str) -> ClipInfo:
        """Parse the member; raises `ValueError` for another schema version, or anything that is no clip info."""
        if len(data) > CLIP_INFO_BYTES:
            raise ValueError(f"clip info has {len(data):,} bytes, may have {CLIP_INFO_BYTES:,}")
        try:
            value = json.loads(data)
        except RecursionError:
            raise ValueError("clip info is nested too deeply") from None
        schema = value.get("schema_version") if isinstance(value, dict) else None
        if schema != SCHEMA_VERSION:
            raise ValueError(f"clip info has schema {shown(schema)}, this code reads {SCHEMA_VERSION}")
        return from_json(cls, value)


# --- index ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Member:
    """Place of one tar member's content."""

    suffix: str
    """Suffix of the member's name: `mp4`, `wav`, `json`, `landmarks.npy`, …"""
    offset: int
    """Offset in bytes of the content in the tar."""
    size: int
    """Size of the content in bytes, without padding."""


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """One row of the index: where a sample lies, what it scored, and whether training uses it."""

    key: str
    clip_key: str
    dataset: str
    shard: int
    """Number of the media shard `clips-%06d.tar` and of its annotation shard."""
    ordinal: int
    """Position in the shard."""
    num_frames: int
    split: str
    split_group: str
    person: str | None
    licence: str
    keep: bool
    reason: str | None
    """Reason why the sample is not kept (a filter's, or `annotate_failed`); None when it is."""
    reason_score: float | None
    """Score that the filter judged; None where the reason has none."""
    media: list[Member] = field(default_factory=list)
    """Members in the media shard."""
    annotation: list[Member] = field(default_factory=list)
    """Members in the annotation shard."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """Score by name, of the whole clip."""
    labels: dict[str, str] = field(default_factory=dict)
    """Label by name, of the whole clip; without those that it does not have."""
    notes: list[str] = field(default_factory=list)
    """What was unusual about the clip's source and how it was handled, a line each; empty for older data sets."""

    @property
    def speaker(self) -> str:
        """Name of the speaker: the person, or where the data set names none, the split group."""
        return self.person or self.split_group


def media_shard_name(shard: int) -> str:
    """File name of a media shard, such as `clips-000042.tar`."""
    return f"clips-{shard:06d}.tar"


def annotation_shard_name(version: str, shard: int) -> str:
    """Path of an annotation shard under DATA, such as `ann/<version>/ann-000042.tar`."""
    return f"ann/{check_version(version)}/ann-{shard:06d}.tar"


def check_version(version: str) -> str:
    """Return the annotation version's name; raises `ValueError` when it cannot be a folder name."""
    # `media` names the media shards wherever archives are told apart by name.
    if not isinstance(version, str) or not VERSION_PATTERN.fullmatch(version) or version == "media":
        raise ValueError(
            f"annotation version {shown(version)} must be 1 to 31 characters out of A-Z a-z 0-9 _ -, not 'media'"
        )
    return version
