"""What a person, or a list of keys, stands for in a DATA: samples, inputs, and copies of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ingest.catalog import read_catalog
from ingest.same_recording import Groups, find_matches
from ingest.signatures import Signature
from ingest.source_listing import display_path, shortened
from orchestration import outcomes, plans
from orchestration.jobs.catalogs import cataloged
from orchestration.jobs.removed import content_of
from orchestration.split_groups import SIGNATURE, related_groups
from shards.index import Index, read_index
from shards.manifest import find_manifest, read_manifest
from shards.removal_records import Piece, RemovalList
from talkinghead import dataroot
from talkinghead.config import shown
from talkinghead.files.storage import Storage
from talkinghead.sampletar import read_members
from talkinghead.schema import DATASETS, CatalogRow, ClipInfo

_SHOWN = 5


@dataclass(kw_only=True)
class Matched:
    """What a person or a list of keys stands for."""

    samples: set[str] = field(default_factory=set)
    """Keys of samples, packed or not."""
    clips: set[str] = field(default_factory=set)
    """Keys of the clips that go as a whole."""
    contents: set[str] = field(default_factory=set)
    """Content and interval of these clips, where it is known."""
    persons: set[str] = field(default_factory=set)
    pieces: list[Piece] = field(default_factory=list)
    """Those of the samples whose clips stay in part."""
    names: set[str] = field(default_factory=set)
    """Names of the sources of whole clips: in SOURCE, and with their data sets before them."""
    copies: set[str] = field(default_factory=set)
    """Keys of those clips that were not asked for, and are of equal bytes."""
    alike: dict[str, str] = field(default_factory=dict)
    """Key of each other clip that shows the recording of one that goes, encoded anew or another part → data set and
    file."""


@dataclass(frozen=True)
class _Known:
    """What DATA knows of its inputs."""

    index: Index | None
    """None: nothing is finished yet."""
    rows: dict[str, CatalogRow]
    sources: dict[str, str]
    """Clip key → SHA-256 of its source."""
    samples: dict[str, set[str]]
    """Clip key → keys of its samples."""
    ingested: dict[str, outcomes.IngestedSample]

    @classmethod
    def find(cls, storage: Storage) -> _Known:
        rows: dict[str, CatalogRow] = {}
        sources: dict[str, str] = {}
        manifest = find_manifest(storage)
        for name in cataloged(storage, manifest):
            plan = plans.find_ingest(storage, name)
            for row in read_catalog(storage, name).rows:
                rows[row.key] = row
                if plan and (content := plan.contents.get(row.key)) is not None:
                    sources[row.key] = content
        index = read_index(storage, manifest.annotation()) if manifest else None
        samples: dict[str, set[str]] = {}
        if index is not None:
            for clip, key in zip(index.texts("clip_key"), index.texts("key"), strict=True):
                samples.setdefault(clip, set()).add(key)
        ingested = outcomes.ingested_samples(storage)
        for item in ingested.values():
            samples.setdefault(item.record.key, set()).add(item.sample.key)
        if not rows and not samples:
            raise FileNotFoundError(f"no data set in {storage.uri}: nothing is ingested there")
        return cls(index, rows, sources, samples, ingested)

    def content(self, clip: str) -> str | None:
        """Content and interval of a clip; None where they are not known."""
        return content_of(self.rows[clip], self.sources.get(clip)) if clip in self.rows else None


def match_person(storage: Storage, person: str) -> Matched:
    """Everything of a person or split group: packed or not, in every data set of DATA.

    Raises:
        FileNotFoundError: Nothing is ingested.
        ValueError: Nobody of this name is in DATA.
    """
    known = _Known.find(storage)
    clips = set()
    if (index := known.index) is not None:
        clips |= set(index.texts("clip_key")[index.equals("person", person) | index.equals("split_group", person)])
    clips |= {key for key, row in known.rows.items() if person in (row.person, row.split_group)}
    if not clips:
        raise ValueError(
            f"no clip of {storage.uri} belongs to the person or split group {shown(person)}: python -m shards ls and"
            " make report show who is there"
        )
    return _with_copies(storage, known, Matched(clips=clips, persons={person}))


def match_keys(storage: Storage, keys: Iterable[str]) -> Matched:
    """The listed samples; a clip's key stands for all its samples.

    Raises:
        FileNotFoundError: Nothing is ingested.
        ValueError: There is no such sample or clip.
    """
    known = _Known.find(storage)
    asked = set(keys)
    clip_of = {sample: clip for clip, samples in known.samples.items() for sample in samples}
    # A list may be given again with more keys: what is gone already needs nothing.
    removed = RemovalList(storage)
    gone = {key for key in asked - clip_of.keys() - known.rows.keys() if removed.has("key", key)}
    if gone and not asked - gone:
        raise ValueError(f"all of these keys have been removed from {storage.uri} before: nothing is left to do")
    asked -= gone
    if unknown := sorted(asked - clip_of.keys() - known.rows.keys()):
        names = ", ".join(map(shown, unknown[:_SHOWN]))
        raise ValueError(f"{len(unknown)} of the keys are in no shard and no catalog of {storage.uri}: {names}")
    clips = asked - clip_of.keys()
    samples = asked & clip_of.keys()
    # A clip that has lost all its samples goes as a whole.
    for clip in {clip_of[key] for key in samples}:
        if known.samples[clip] <= samples:
            clips.add(clip)
    return _with_copies(storage, known, Matched(clips=clips, samples=samples))


def _with_copies(storage: Storage, known: _Known, found: Matched) -> Matched:
    """Add the samples of whole clips, and the inputs of equal bytes: one of them would take the place of a clip.
    Other parts of the same recording, and recordings that were encoded anew, are only found: whether they go, too, is
    not for this code to say."""
    contents = {key: content for key in known.rows if (content := known.content(key)) is not None}
    found.contents = {contents[key] for key in found.clips if key in contents}
    equal = {key for key, content in contents.items() if content in found.contents}
    found.copies = equal - found.clips
    found.clips |= equal
    for clip in found.clips:
        found.samples |= known.samples.get(clip, set())
    parts = {clip: samples & found.samples for clip, samples in known.samples.items() if clip not in found.clips}
    parts = {clip: samples for clip, samples in parts.items() if samples}
    found.pieces = [_piece(storage, known, clip, key) for clip in sorted(parts) for key in sorted(parts[clip])]
    for clip in found.clips & known.rows.keys():
        if (source := known.rows[clip].source) is not None:
            found.names |= {source, display_path(source), shortened(f"{known.rows[clip].dataset}:{source}")}
    found.alike = _alike(storage, known, found.clips | parts.keys())
    return found


def _piece(storage: Storage, known: _Known, clip: str, key: str) -> Piece:
    """One piece of a clip, with its place in the source as its JSON says it."""
    places = []
    if (item := known.ingested.get(key)) is not None and item.record.file:
        places.append((item.record.file, item.sample.members))
    if known.index is not None and (rows := np.flatnonzero(known.index.equals("key", key))).size:
        row = next(known.index.rows(slice(int(rows[0]), int(rows[0]) + 1)))
        places.append((read_manifest(storage).media[row.shard].name, row.media))
    for file, members in places:
        if storage.exists(file):
            content = read_members(storage.read_range, file, key, members, "json")["json"]
            info = ClipInfo.from_json(bytes(content))
            return Piece(key=key, content=known.sources.get(clip), start_s=info.start_s, end_s=info.end_s)
    return Piece(key=key)


def _alike(storage: Storage, known: _Known, touched: set[str]) -> dict[str, str]:
    """Other clips of the same recordings → data set and file: cut out of equal bytes, or encoded anew."""
    related = related_groups(storage)
    records = {item.record.key: item.record for item in known.ingested.values()}
    group_of = {key: record.details["split_group"] for key, record in records.items()}
    group_of |= {key: row.split_group for key, row in known.rows.items() if key not in group_of}
    roots = {related.groups.root(group_of[key]) for key in touched & group_of.keys()}
    near = {key for key, group in group_of.items() if related.groups.root(group) in roots} | touched
    # Within related groups every clip is compared with every other: groups are connected by single pairs of them.
    clips = Groups()
    first_of: dict[str, str] = {}
    for key in sorted(near & known.sources.keys()):
        clips.join(first_of.setdefault(known.sources[key], key), key)
    signatures = {
        key: Signature.from_json(record.details[SIGNATURE])
        for key, record in records.items()
        if key in near and record.details.get(SIGNATURE) is not None
    }
    for match in find_matches(signatures, {key: key for key in signatures}):
        clips.join(match.first, match.second)
    gone = {clips.root(key) for key in touched}
    return {key: _name(known, key) for key in sorted(near - touched) if clips.root(key) in gone}


def _name(known: _Known, key: str) -> str:
    row = known.rows.get(key)
    return key if row is None else shortened(f"{row.dataset}:{row.source or key}")


def catalogs_of(storage: Storage) -> list[str]:
    """Data sets of DATA that have a catalog."""
    return [name for name in DATASETS if storage.exists(dataroot.catalog(name))]
