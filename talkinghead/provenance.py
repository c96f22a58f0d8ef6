"""Provenance keys: the same key means the same output, so the work can be skipped.

A key is the hash of {job, job version, parameters, model file sha256, library versions, input content hashes}.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

KEY_LENGTH = 16  # hexadecimal digits, 64 bits
_BLOCK = 1 << 20  # bytes read at once


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces; dataclasses become objects. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain, allow_nan=False).encode()


def pretty_json(value: Any) -> bytes:
    """JSON for people: sorted keys, indented, newline at the end. NaN is refused."""
    return (json.dumps(value, sort_keys=True, indent=2, default=_plain, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """A value that `json` does not know, as one that it does."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no canonical form")


def hash_bytes(data: bytes | memoryview) -> str:
    """SHA-256 as hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def hash_stream(stream: BinaryIO) -> str:
    """SHA-256 of the rest of a binary stream."""
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hash_stream(stream)


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 of a file's content; of several, such as the parts of a network's weights, over their hashes in order."""
    # One file keeps its plain hash, which anyone can check with sha256sum.
    hashes = [hash_file(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hash_bytes("".join(hashes).encode())


def library_versions(*distributions: str) -> dict[str, str]:
    """Installed version of each distribution."""
    return {name: _version(name) for name in distributions}


@functools.cache
def _version(distribution: str) -> str:
    """Version of a distribution, which costs a search through the installation: workers ask for each of their units."""
    return importlib.metadata.version(distribution)


def provenance_key(
    job: str,
    version: int,
    *,
    parameters: Any,
    inputs: Any,
    models: dict[str, str] | None = None,
    libraries: dict[str, str] | None = None,
) -> str:
    """The provenance key of one unit of work (16 hexadecimal digits).

    Args:
        job: Name of the job (`ingest`, `annotate`, …).
        version: Version of the job's code; raise it when its output changes.
        parameters: Settings that shape the output (dataclass or JSON value).
        inputs: Content hashes of the inputs, and those parts of their description that the output repeats; never times.
        models: Model name → sha256 of its file.
        libraries: Distribution → version, for those whose version can change the output.
    """
    parts = {
        "job": job,
        "version": version,
        "parameters": parameters,
        "inputs": inputs,
        "models": models or {},
        "libraries": libraries or {},
    }
    return hash_bytes(canonical_json(parts))[:KEY_LENGTH]
