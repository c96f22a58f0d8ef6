"""Remote file systems by URI (s3://, gs://, …): opened without retries of their own, and what their errors mean."""

from __future__ import annotations

import re
from typing import Any

import pyarrow.fs as pafs

from talkinghead.files.uri import with_whole_writes

_NOT_KEPT = ("smart_defaults", "tls_verify_certificates")
"""Options of a URI that a file system made by its arguments does not have."""
_STATUS = re.compile(r"\(HTTP status (\d{3})\)")
_AWS_ERROR = re.compile(r"\bAWS Error ([A-Z_]+)\b")
_CONNECTION = "NETWORK_CONNECTION"
"""The AWS SDK's name for an address that cannot be found, a refused or broken connection, and no answer in time."""
_PASSING = frozenset(
    {_CONNECTION, "INTERNAL_FAILURE", "REQUEST_TIMEOUT", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "THROTTLING"}
)
"""The AWS SDK's names (aws/core/client/CoreErrors.h) of errors that pass by themselves. Refused credentials
(ACCESS_DENIED and others) are not among them: they stay refused."""


def open_remote(uri: str) -> tuple[pafs.FileSystem, str]:
    """File system of a URI, and the root's path in it.

    Of S3, unless an option of the URI forbids it, each request is made once: how often a store is asked again is for
    `talkinghead.files.patience` to say. PyArrow alone makes some 30 requests in 6 seconds and gives up, when a store
    that is asked for too much would need the opposite.

    Raises:
        OSError: The region of a bucket cannot be found out.
        pyarrow.ArrowInvalid: It is no URI.
        pyarrow.ArrowNotImplementedError: There is no such file system.
    """
    filesystem, root = pafs.FileSystem.from_uri(with_whole_writes(uri))
    if isinstance(filesystem, pafs.S3FileSystem) and not any(f"{option}=" in uri for option in _NOT_KEPT):
        once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
        filesystem = pafs.S3FileSystem(**_settings(filesystem), retry_strategy=once)
    return filesystem, root


def _settings(filesystem: pafs.S3FileSystem) -> dict[str, Any]:
    """Arguments that make an equal file system: a URI has no option for retries, and pickling has the arguments."""
    _, (settings,) = filesystem.__reduce__()
    return settings


def passes(error: BaseException) -> bool:
    """Whether a remote file system's error may pass by itself: the store is overloaded, fails, or does not answer."""
    text = str(error)
    # The number first: where an answer has no body, the SDK has no name for it.
    if status := _STATUS.search(text):
        return int(status[1]) >= 500 or int(status[1]) in (408, 429)
    name = _AWS_ERROR.search(text)
    return name is not None and name[1] in _PASSING


def unanswered(error: BaseException) -> bool:
    """Whether nothing came back at all, which a wrong address does for ever."""
    name = _AWS_ERROR.search(str(error))
    return name is not None and name[1] == _CONNECTION
