"""The versions of a data set: what there is, how large it is, what it was made of, and who needs it.

A version is a face annotation, a version of a derived column, or a global fit.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from shards.manifest import AnnotationEntry, DatasetManifest, FitEntry, read_manifest
from shards.pins import Pin, read_pins
from talkinghead.config import shown
from talkinghead.derived import ANNOTATION
from talkinghead.files.storage import Storage

FIT = "fit"
"""Kind, in a list of versions, of a global fit."""
UNLISTED = "unlisted"
"""Kind of a version of which shards lie in DATA, but which `DATASET.json` does not name: it is half made, or lacks
shards that came later."""
HASH_DIGITS = 12
"""Digits of a fit's hash in its name, and of other hashes in a table."""

_LONGEST_TEXT = 80
_SHARD = re.compile(r"ann/([A-Za-z0-9][A-Za-z0-9_-]{0,30})/ann-[0-9]{6}(?:\.r[0-9]{1,6})?\.tar")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a data set, for people who look for room on the disk."""

    name: str
    """Name of the version; of a fit, `<fit>@<12 digits of its hash>`."""
    kind: str
    """`annotation`, the name of a derived column, `fit`, or `unlisted`."""
    samples: int | None
    """Samples in its shards; clips that a fit was made of; None for an unlisted version."""
    kept: int | None
    """Samples that readers get; None for a fit or an unlisted version."""
    frames: int | None
    """Frames in its shards; None for a fit or an unlisted version."""
    bytes: int
    """Bytes of its shards and its index, or of the fit's file."""
    made_of: dict[str, Any]
    """How it was made, as `DATASET.json` says it."""
    needed_by: list[str]
    """Names of the versions and fits that were made from it."""
    pins: list[Pin]
    """Runs that read it."""

    @property
    def bytes_per_frame(self) -> float | None:
        """Bytes that a frame takes; None where there are no frames."""
        return self.bytes / self.frames if self.frames else None

    def to_json(self) -> dict[str, Any]:
        """The version as a JSON object."""
        value = asdict(self)
        del value["pins"]
        runs = [{"host": pin.host, "run": pin.run, "gone": pin.is_gone} for pin in self.pins]
        return {**value, "bytes_per_frame": self.bytes_per_frame, "runs": runs}


def versions(storage: Storage) -> list[Version]:
    """Everything that was made from the media of a data set, in the order of `DATASET.json`; last what that does not
    name.

    Raises:
        FileNotFoundError: There is no finished data set.
        ValueError: `DATASET.json` or a pin is damaged.
    """
    manifest, pins = read_manifest(storage), read_pins(storage)
    found = [
        Version(
            name=entry.version,
            kind=entry.kind,
            samples=sum(shard.samples for shard in entry.shards),
            kept=entry.kept,
            frames=sum(shard.frames for shard in entry.shards),
            bytes=sum(shard.size for shard in entry.shards) + (storage.size(entry.index) or 0),
            made_of=entry.details if entry.kind == ANNOTATION else asdict(entry.made_of),
            needed_by=needing(manifest, entry),
            pins=[pin for pin in pins if entry.version in pin.versions],
        )
        for entry in manifest.annotations
    ]
    for fit in manifest.fits:
        about = asdict(fit)
        found.append(
            Version(
                name=fit_name(fit),
                kind=FIT,
                samples=fit.clips,
                kept=None,
                frames=None,
                bytes=fit.size,
                made_of={name: about[name] for name in about.keys() - {"name", "size", "clips"}},
                needed_by=needing(manifest, fit),
                pins=[pin for pin in pins if fit.sha256 in pin.fits],
            )
        )
    return found + _unlisted(storage, {item.name for item in found}, pins)


def _unlisted(storage: Storage, known: set[str], pins: list[Pin]) -> list[Version]:
    """Versions of which only shards are there, by name."""
    sizes: dict[str, int] = {}
    for file in storage.list("ann", ".tar"):
        if (match := _SHARD.fullmatch(file.path)) and match[1] not in known:
            sizes[match[1]] = sizes.get(match[1], 0) + file.size
    return [
        Version(
            name=name,
            kind=UNLISTED,
            samples=None,
            kept=None,
            frames=None,
            bytes=size,
            made_of={},
            needed_by=[],
            pins=[pin for pin in pins if name in pin.versions],
        )
        for name, size in sorted(sizes.items())
    ]


def fit_name(fit: FitEntry) -> str:
    """Name of a fit: `<fit>@<12 digits of its hash>`."""
    return f"{fit.name}@{fit.sha256[:HASH_DIGITS]}"


def needing(manifest: DatasetManifest, entry: AnnotationEntry | FitEntry) -> list[str]:
    """Names of the versions and fits that were made from a version or fit."""
    columns = [(other.version, other.made_of) for other in manifest.annotations if other.kind != ANNOTATION]
    if isinstance(entry, FitEntry):
        needing = [name for name, made_of in columns if entry.sha256 in made_of.fits.values()]
        return needing + [fit_name(other) for other in manifest.fits if entry.sha256 in other.fits.values()]
    needing = [name for name, made_of in columns if entry.version in made_of.pins.values()]
    return needing + [
        fit_name(other) for other in manifest.fits if entry.version in (other.annotation, *other.pins.values())
    ]


def table(found: list[Version]) -> str:
    """Versions as lines for people: the numbers, and below each what it was made of and who needs it.

    Names and texts may be a stranger's: all of them are printable.
    """
    widths = [max([8, *(len(item.name) for item in found)]), max([4, *(len(item.kind) for item in found)])]
    lines = [_numbers(widths, "version", "kind", "samples", "kept", "size", "a frame")]
    for item in found:
        samples, kept = ("" if number is None else f"{number:,}" for number in (item.samples, item.kept))
        frame = item.bytes_per_frame
        size, a_frame = _size(item.bytes), "" if frame is None else _size(frame)
        lines.append(_numbers(widths, item.name, item.kind, samples, kept, size, a_frame))
        runs = [f"{_text(pin.run)} on {_text(pin.host)}{' (gone)' if pin.is_gone else ''}" for pin in item.pins]
        for title, texts in (("made of", _made_of(item)), ("needed by", item.needed_by), ("runs", runs)):
            if texts:
                lines.append(f"    {title:10}{', '.join(texts)}")
    return "\n".join(lines)


def _numbers(widths: list[int], name: str, kind: str, *numbers: str) -> str:
    return "  ".join([f"{name:{widths[0]}}", f"{kind:{widths[1]}}", *(f"{number:>9}" for number in numbers)]).rstrip()


def _made_of(item: Version) -> list[str]:
    """Words for what a version was made of."""
    about = item.made_of
    if item.kind == UNLISTED:
        return ["not in DATASET.json: half made, or without the newest shards (make derive goes on, drop removes it)"]
    if item.kind == ANNOTATION:
        model = f"{_text(about.get('model', 'unknown'))} {_digits(about.get('model_sha256'))}".rstrip()
        return [f"engine {_text(about.get('engine', 'unknown'))}", f"model {model}"]
    if item.kind == FIT:
        words = [f"annotation {about['annotation']}"]
        choice = {name: value for name, value in about["selection"].items() if value not in ({}, [], None)}
        settings = {**about["settings"], **choice}
    else:
        words, settings = [], about["parameters"]
    words += [f"{_text(name)}={_text(value)}" for name, value in settings.items()]
    for name, file in about.get("provenance", {}).items():
        named = f" {_text(file['name'])}" if "name" in file else ""
        words.append(f"{_text(name)}{named} {_digits(file.get('sha256'))}")
    words += [f"{_text(name)} {_text(version)}" for name, version in about["pins"].items()]
    return words + [f"{_text(name)}@{_digits(sha256)}" for name, sha256 in about["fits"].items()]


def _digits(sha256: Any) -> str:
    """First digits of a hash."""
    return _text(sha256[:HASH_DIGITS]) if isinstance(sha256, str) else ""


def _text(value: Any) -> str:
    """A text on one line, printable and not too long."""
    text = str(value) if isinstance(value, str | int | float) else shown(value)
    return text if text.isprintable() and 0 < len(text) <= _LONGEST_TEXT else shown(value)


def _size(number: float) -> str:
    """Bytes in the unit that people read best."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1000 and len(units) > 1:
        number /= 1024
        del units[0]
    return f"{number:.0f} {units[0]}" if number >= 100 or units[0] == "B" else f"{number:.3g} {units[0]}"
