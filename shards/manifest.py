"""`DATASET.json`: what the data set is. Replaced last, so that a reader sees the old data set or the new one.

Everything else is found through it: a shard or an index that it does not name does not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from talkinghead import dataroot
from talkinghead.derived import ENCODING, FIRST_ENCODING, NETWORKS
from talkinghead.files.storage import Storage
from talkinghead.provenance import pretty_json
from talkinghead.schema import SCHEMA_VERSION, check_version

Kind = Literal["annotation", "latents"]
"""What a version holds: a face annotation, or latents and embeddings of the frames (see `find_latents`)."""

_MEND = "move it away and run make shards ANN=<version> to write it again"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard as it was committed."""

    name: str
    """Relative to DATA."""
    sha256: str
    size: int
    """Bytes."""
    samples: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class AnnotationEntry:
    """One annotation version: its index and its shards, with the numbers of the media shards."""

    version: str
    index: str
    """Index table, relative to DATA."""
    index_sha256: str
    shards: list[ShardEntry]
    samples: int
    """Rows of the index."""
    kept: int
    splits: dict[str, int]
    """Split → kept samples."""
    kind: Kind = "annotation"
    """Only annotations are opened by readers that do not name a version; files from before there were others have no
    such field."""
    details: dict[str, Any] = field(default_factory=dict)
    """Engine, model sha256, parameters, filter thresholds: whatever says how it was made."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"version {self.version} is of kind {self.kind!r}, this code knows {', '.join(get_args(Kind))}: use a"
                " newer talkinghead"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """The content of `DATASET.json`. It holds no times, so that a rerun gives the same bytes."""

    datasets: list[str]
    counts: dict[str, int]
    """`samples` and `frames` in the shards; `kept` and `frames_kept` of the version that was finished last."""
    licences: dict[str, int]
    """Licence → samples."""
    tool_versions: dict[str, str]
    plan_hash: str
    media: list[ShardEntry]
    """Media shards in order of their numbers."""
    annotations: list[AnnotationEntry]
    """First those of kind `annotation` in the order in which they were made; the last of them is what a reader opens
    that does not ask for one. Then the others, by name."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        names = [check_version(entry.version) for entry in self.annotations]
        if len(set(names)) != len(names):
            raise ValueError(f"an annotation version stands twice: {', '.join(names)}")

    def annotation(self, version: str | None = None) -> AnnotationEntry:
        """The entry of a version, of the newest face annotation for None.

        Raises:
            ValueError: No such version; says which there are.
        """
        if version is None:
            if not (faces := self.of_kind("annotation")):
                raise ValueError("the data set has no annotations yet: run make shards")
            return faces[-1]
        for entry in self.annotations:
            if entry.version == version:
                return entry
        there = ", ".join(entry.version for entry in self.annotations) or "none at all"
        how = "make latents" if version.startswith("latents-") else f"make reannotate ANN={version}"
        raise ValueError(f"there is no annotation version {version!r}, only {there}: run {how}")

    def of_kind(self, kind: Kind) -> list[AnnotationEntry]:
        """The entries of one kind, in their order."""
        return [entry for entry in self.annotations if entry.kind == kind]

    def to_json(self) -> bytes:
        """The file's content."""
        return pretty_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes | str, name: str = dataroot.DATASET_JSON) -> DatasetManifest:
        """Parse the file; raises `ValueError` when it is damaged or of another schema version."""
        try:
            value = json.loads(data)
            schema = value["schema_version"]
            if schema == SCHEMA_VERSION:
                value["media"] = [ShardEntry(**entry) for entry in value["media"]]
                value["annotations"] = [
                    AnnotationEntry(**{**entry, "shards": [ShardEntry(**shard) for shard in entry["shards"]]})
                    for entry in value["annotations"]
                ]
                return cls(**value)
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{name} is damaged ({error}): {_MEND}") from error
        raise ValueError(
            f"{name} has schema {schema}, this code reads {SCHEMA_VERSION}: "
            + ("use a newer talkinghead" if schema > SCHEMA_VERSION else _MEND)
        )


def read_manifest(storage: Storage) -> DatasetManifest:
    """Open the data set.

    Raises:
        FileNotFoundError: There is no finished data set there.
        ValueError: It is damaged, or of another schema version.
    """
    name = storage.describe(dataroot.DATASET_JSON)
    try:
        data = storage.read(dataroot.DATASET_JSON)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no {name}: run make shards DATA={storage.uri} first") from error
    return DatasetManifest.from_json(data, name)


def find_manifest(storage: Storage) -> DatasetManifest | None:
    """The data set, None where there is no finished one. Raises `ValueError` like `read_manifest`."""
    return read_manifest(storage) if storage.exists(dataroot.DATASET_JSON) else None


def write_manifest(storage: Storage, manifest: DatasetManifest) -> None:
    """Replace `DATASET.json`. Everything that it names must be committed."""
    storage.write(dataroot.DATASET_JSON, manifest.to_json())


def find_latents(
    manifest: DatasetManifest, provenance: Mapping[str, Mapping[str, Any]], width: int, height: int
) -> str | None:
    """The version whose columns `latents` and `embedding` are those of these networks.

    Networks are told apart by the hash of their weights; where they were read from does not matter.

    Args:
        manifest: What the data set is.
        provenance: Network (`vae`, `image_encoder`) → `sha256`, as `ImageNetworks.provenance` gives it.
        width: Width of the images that were encoded, pixels.
        height: Their height, pixels.

    Returns:
        Its name, for `ShardReader(extra=(name,))`; None when there is none. Of several the last in `DATASET.json`.
    """
    wanted = (ENCODING, width, height, *(provenance[name]["sha256"] for name in NETWORKS))
    for entry in reversed(manifest.of_kind("latents")):
        about = entry.details
        hashes = (about[name]["sha256"] for name in NETWORKS)
        if (about.get("encoding", FIRST_ENCODING), about["width"], about["height"], *hashes) == wanted:
            return entry.version
    return None
