"""Files of global fits in DATA: what a fit was made of, finding one again, reading and writing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shards.manifest import DatasetManifest, FitEntry
from shards.selection import Selection
from talkinghead import dataroot
from talkinghead.derived import Fit
from talkinghead.files.storage import Storage
from talkinghead.global_fit import GlobalFit
from talkinghead.npz import MOST_BYTES, decode_npz, encode_npz
from talkinghead.provenance import canonical_json, hash_bytes, library_versions, provenance_key


class FitFileError(ValueError):
    """Error about the file of a fit that is missing or damaged; the message names it."""


@dataclass(frozen=True, kw_only=True)
class FitSource:
    """Everything that decides what a fit comes out as, next to its code."""

    settings: Any
    """Settings of the fit: its own dataclass."""
    annotation: str
    """Annotation version of the clips."""
    index: str
    """Path of its index; the name holds a hash of the content."""
    selection: Selection = field(default_factory=Selection)
    """Choice of the clips, next to split, kept and what the fit needs."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Name of a derived column that is joined → the version of it."""
    fits: Mapping[str, str] = field(default_factory=dict)
    """Name of another fit → SHA-256 of its file."""

    def to_json(self) -> dict[str, Any]:
        """Fields of a `FitEntry`."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


def fit_key(fit: GlobalFit, source: FitSource) -> str:
    """Provenance key: the same key, the same sums and the same file."""
    return provenance_key(
        f"fit-{fit.name}",
        fit.version,
        parameters=_plain(source.settings),
        inputs=source.to_json(),
        libraries=library_versions("numpy"),
    )


def find_fit(
    storage: Storage,
    manifest: DatasetManifest,
    fit: GlobalFit,
    settings: Any,
    index: str,
    selection: Selection | None = None,
    pins: Mapping[str, str] | None = None,
    *,
    needed: Mapping[str, Fit] | None = None,
    keys: Sequence[str] | None = None,
) -> Fit | None:
    """Read the newest fit of these settings, clips and code out of DATA; None where there is none.

    Args:
        storage: Data set.
        manifest: Its manifest.
        fit: The fit.
        settings: Its settings.
        index: Path of the annotation's index.
        selection: Choice of the clips.
        pins: Name of a derived column → version of it.
        needed: The fits that it must have been made with; None: whichever they were.
        keys: Keys of the clips that it must have been made of (`keys_of`); None: whichever it was. A derived column
            whose failures were mended has the same version, and may lead to other clips.

    Raises:
        FitFileError: The file that the manifest names is missing or damaged.
    """
    hashes = None if needed is None else {name: made.sha256 for name, made in needed.items()}
    wanted = canonical_json([settings, index, selection or Selection(), pins or {}])
    for entry in reversed(manifest.fits):
        known = canonical_json([entry.settings, entry.index, entry.selection, entry.pins])
        if (entry.name, entry.version) != (fit.name, fit.version) or known != wanted:
            continue
        if hashes is not None and entry.fits != hashes:
            continue
        arrays, about = _read(storage, entry.name, entry.sha256)
        if keys is None or (isinstance(about, dict) and about.get("keys") == list(keys)):
            return Fit(sha256=entry.sha256, arrays=arrays)
    return None


def read_fit(storage: Storage, name: str, sha256: str) -> Fit:
    """Fit with this hash.

    Raises:
        ValueError: Its file is missing or damaged.
    """
    return Fit(sha256=sha256, arrays=_read(storage, name, sha256)[0])


def clips_of(storage: Storage, entry: FitEntry) -> list[str] | None:
    """Keys of the clips that a fit was made of; None where its file is gone or damaged."""
    try:
        about = _read(storage, entry.name, entry.sha256)[1]
    except ValueError:
        return None
    keys = about.get("keys") if isinstance(about, dict) else None
    return keys if isinstance(keys, list) else None


def _read(storage: Storage, name: str, sha256: str) -> tuple[dict[str, np.ndarray], Any]:
    path = dataroot.fit(name, sha256)
    shown = storage.describe(path)
    try:
        data = storage.read(path, MOST_BYTES, "global fit")
    except FileNotFoundError:
        raise FitFileError(f"{shown} is missing, and DATASET.json names it: run make basis again") from None
    if hash_bytes(data) != sha256:
        raise FitFileError(f"{shown} is damaged (its hash is another): run make basis again")
    return decode_npz(data, shown)


def write_fit(
    storage: Storage, fit: GlobalFit, source: FitSource, keys: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> FitEntry:
    """Write the file of a fit, which its hash names.

    Args:
        storage: Data set.
        fit: The fit.
        source: What it was made of.
        needed: The fits that it must have been made with; None: whichever they were.
        keys: Keys of the clips that it read, in order.
        arrays: The fit.

    Returns:
        Its entry in `DATASET.json`, which the caller makes.
    """
    about = {"name": fit.name, "version": fit.version, **source.to_json(), "keys": list(keys)}
    data = encode_npz(arrays, about)
    sha256 = hash_bytes(data)
    storage.write(dataroot.fit(fit.name, sha256), data)
    return FitEntry(
        name=fit.name, version=fit.version, sha256=sha256, size=len(data), clips=len(keys), **source.to_json()
    )


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON: no dataclasses and tuples."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
