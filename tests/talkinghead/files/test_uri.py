"""Credentials in a URI stay out of what people see."""

from __future__ import annotations

import pytest

from talkinghead.files.storage import Storage
from talkinghead.files.uri import hide_secrets, without_credentials


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:secret@bucket/data?region=us-east-1", "s3://***@bucket/data?region=us-east-1"),
        ("s3://bucket/data", "s3://bucket/data"),
        ("s3://key:sec@ret@bucket/a%20b", "s3://***@bucket/a%20b"),
        ("abfs://c@a.net/x?client_secret=abc&tenant_id=t", "abfs://***@a.net/x?client_secret=***&tenant_id=t"),
        ("gs://anonymous@bucket", "gs://***@bucket"),
        ("file:///data/x", "file:///data/x"),
    ],
)
def test_people_see_no_credentials(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown
    storage = Storage(uri)
    assert storage.uri == shown and "secret@" not in repr(storage)
    assert storage.location == uri, "what opens the place again is kept"


def test_messages_of_libraries_name_no_credentials() -> None:
    uri = "s3://key:a%2Fb@bucket/data"
    assert hide_secrets(f"cannot\nopen {uri}: a%2Fb or a/b", uri) == "cannot open s3://***@bucket/data: *** or ***"
    with pytest.raises(ValueError, match=r"cannot open s3://\*\*\*@x: ") as caught:
        Storage("s3://key:sec/ret@x").read("a")
    assert "sec/ret" not in str(caught.value) and caught.value.__suppress_context__


def test_files_are_named_before_the_options() -> None:
    assert Storage("s3://k:s@b/data/?region=r").describe("DATASET.json") == "s3://***@b/data/DATASET.json?region=r"
