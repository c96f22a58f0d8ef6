"""A packed data set in a local S3 server, and the requests that are made for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from talkinghead.files.storage import Storage
from tests.support.object_store import Application, LocalS3
from tests.support.store_faults import answering


def upload(source: Storage, server: LocalS3, folder: str) -> Storage:
    """Copy a data set into a store."""
    assert source.local_root is not None
    target = Storage(server.uri_with_credentials(folder))
    for file in sorted(source.local_root.rglob("*")):
        if file.is_file():
            target.write(str(file.relative_to(source.local_root)), file.read_bytes())
    return target


@contextmanager
def counted(server: LocalS3) -> Iterator[list[tuple[str, str]]]:
    """Context with a growing list of the requests for shards: method, and name of the shard's file."""
    requests: list[tuple[str, str]] = []

    def note(request: dict[str, Any], application: Application) -> None:
        name = Path(request["PATH_INFO"]).name
        if name.endswith(".tar"):
            requests.append((request["REQUEST_METHOD"], name))

    with answering(server, note):
        yield requests
