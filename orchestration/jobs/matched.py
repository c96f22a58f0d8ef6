"""What a person, or a list of keys, stands for in a DATA: samples, inputs, and copies of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ingest.catalog import read_catalog
from orchestration import outcomes, plans
from orchestration.jobs.removed import content_of
from orchestration.split_groups import related_groups
from shards.index import Index, read_index
from shards.manifest import read_manifest
from talkinghead import dataroot
from talkinghead.config import shown
from talkinghead.files.storage import Storage
from talkinghead.schema import DATASETS, CatalogRow

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
    copies: set[str] = field(default_factory=set)
    """Keys of those clips that were not asked for, and are of equal bytes."""
    alike: dict[str, str] = field(default_factory=dict)
    """Key of each other clip that shows the same recording as one that goes, encoded anew → data set and file."""


@dataclass(frozen=True)
class _Known:
    """What DATA knows of its inputs."""

    rows: dict[str, CatalogRow]
    contents: dict[str, str]
    """Clip key → content and interval."""
    samples: dict[str, set[str]]
    """Clip key → keys of its samples."""

    @classmethod
    def find(cls, storage: Storage, index: Index) -> _Known:
        rows: dict[str, CatalogRow] = {}
        contents: dict[str, str] = {}
        for name in catalogs_of(storage):
            plan = plans.find_ingest(storage, name)
            for row in read_catalog(storage, name).rows:
                rows[row.key] = row
                if (content := content_of(row, plan.contents.get(row.key) if plan else None)) is not None:
                    contents[row.key] = content
        samples: dict[str, set[str]] = {}
        for clip, key in zip(index.texts("clip_key"), index.texts("key"), strict=True):
            samples.setdefault(clip, set()).add(key)
        for item in outcomes.ingested_samples(storage).values():
            samples.setdefault(item.record.key, set()).add(item.sample.key)
        return cls(rows, contents, samples)


def match_person(storage: Storage, person: str) -> Matched:
    """Everything of a person or split group: packed or not, in every data set of DATA.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: Nobody of this name is in DATA.
    """
    index = read_index(storage, read_manifest(storage).annotation())
    known = _Known.find(storage, index)
    packed = index.equals("person", person) | index.equals("split_group", person)
    clips = set(index.texts("clip_key")[packed])
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
        FileNotFoundError: There is no finished data set.
        ValueError: There is no such sample or clip.
    """
    index = read_index(storage, read_manifest(storage).annotation())
    known = _Known.find(storage, index)
    asked = set(keys)
    clip_of = {sample: clip for clip, samples in known.samples.items() for sample in samples}
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
    Recordings that were encoded anew are only found: whether they go, too, is not for this code to say."""
    found.contents = {known.contents[key] for key in found.clips if key in known.contents}
    equal = {key for key, content in known.contents.items() if content in found.contents}
    found.copies = equal - found.clips
    found.clips |= equal
    for clip in found.clips:
        found.samples |= known.samples.get(clip, set())
    touched = found.clips | {clip for clip, samples in known.samples.items() if samples & found.samples}
    related = related_groups(storage)
    for match in related.matches:
        for one, other in ((match.first, match.second), (match.second, match.first)):
            if one in touched and other not in touched:
                found.alike[other] = related.sources.get(other, other)
    return found


def catalogs_of(storage: Storage) -> list[str]:
    """Data sets of DATA that have a catalog."""
    return [name for name in DATASETS if storage.exists(dataroot.catalog(name))]
