"""Errors of a real client of S3, against a server that is told how to fail."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow.fs as pafs
import pytest

from talkinghead.files.remote import open_remote, passes, unanswered
from tests.support.object_store import LocalS3
from tests.support.store_faults import answering

ASK: dict[str, Callable[[pafs.FileSystem, str], object]] = {
    "look": lambda remote, file: remote.get_file_info(file),
    "read": lambda remote, file: remote.open_input_file(file).read(),
    "write": lambda remote, file: remote.open_output_stream(file).close(),
}


def asked(uri: str, how: str) -> Exception:
    """Error of a request."""
    remote, root = open_remote(uri)
    with pytest.raises(OSError) as caught:
        ASK[how](remote, f"{root}/file")
    return caught.value


@pytest.mark.parametrize("how", ASK)
@pytest.mark.parametrize(
    ("status", "passing"),
    [
        ("503 Slow Down", True),
        ("500 Internal Error", True),
        ("429 Too Many Requests", True),
        ("403 Access Denied", False),
        ("401 Unauthorized", False),
        ("400 Expired Token", False),
    ],
)
def test_each_request_is_made_once_and_its_error_is_understood(
    s3: LocalS3, status: str, passing: bool, how: str
) -> None:
    requests: list[str] = []

    def answer(request: dict, application: object) -> str:
        requests.append(request["REQUEST_METHOD"])
        return status

    with answering(s3, answer):
        error = asked(s3.uri("folder"), how)
    assert len(requests) == 1
    assert passes(error) == passing and not unanswered(error)


def test_no_answer_may_pass_and_may_be_a_wrong_address(s3: LocalS3) -> None:
    for place in ("127.0.0.1:1", "nowhere.invalid:80"):
        error = asked(s3.uri("folder").replace(f"{s3.host}:{s3.port}", place), "look")
        assert passes(error) and unanswered(error)


def test_a_missing_file_is_told_apart(s3: LocalS3) -> None:
    error = asked(s3.uri("folder"), "read")
    assert isinstance(error, FileNotFoundError) and not passes(error) and not unanswered(error)


def test_the_same_place_with_the_same_options(s3: LocalS3) -> None:
    """Also with credentials in the URI, and with an option that only pyarrow's own opening knows."""
    for uri in (s3.uri("place"), s3.uri_with_credentials("place"), s3.uri("place") + "&tls_verify_certificates=false"):
        remote, root = open_remote(uri)
        with remote.open_output_stream(f"{root}/file") as stream:
            stream.write(uri.encode())
        assert pafs.FileSystem.from_uri(s3.uri("place"))[0].open_input_file(f"{root}/file").read() == uri.encode()
