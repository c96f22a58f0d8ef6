"""Everything that stands in the files of a DATA, as it is before compression: for tests of what must not be there."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.tars import read_tar


def contents_of(root: Path) -> Iterator[tuple[str, bytes]]:
    """Path of every file, and all that it holds: its bytes, and what they mean."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            yield path.relative_to(root).as_posix(), b"\n".join([data, *_meant(path, data)])


def _meant(path: Path, data: bytes) -> Iterator[bytes]:
    if ".parquet" in path.suffixes:
        table = pq.read_table(io.BytesIO(data))
        for name, value in (table.schema.metadata or {}).items():
            yield name + b" " + value
        for row in table.to_pylist():
            for name, value in row.items():
                yield f"{name} {value}".encode("utf-8", "surrogateescape")
    elif ".tar" in path.suffixes:
        for key, members in read_tar(data):
            yield key.encode()
            for suffix, content in members.items():
                yield suffix.encode()
                yield from _meant(Path(f"x.{suffix}"), content)
    elif path.suffix == ".gz":
        yield gzip.decompress(data)
    elif path.suffix == ".npz":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield archive.read(name)
