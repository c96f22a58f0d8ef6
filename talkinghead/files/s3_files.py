"""Files on S3 by boto3, for what pyarrow lacks: writes on a condition, ranges that are read without asking for the
file's size first, and copies of large files of which a part that fails is sent again alone (`pip install
'talkinghead[s3]'`).

A conditional write makes a file only where there is none, or replaces one only if it is still as it was read. Of any
number of writers, on any machines, one succeeds and the others learn that they did not. Stores that speak S3's protocol
may have them: `If-None-Match: *` and `If-Match: <ETag>` of PutObject
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html). On local disks `Storage.create` does
the same by a link. A URI has the options that pyarrow reads, and means the same place with the same credentials.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from talkinghead.files.foreign import refuse_large
from talkinghead.files.patience import Tries, store_patience
from talkinghead.files.uri import hide_secrets, without_credentials
from talkinghead.runtime.errors import UnreachableError

_CHANGED = 412
"""Status of an answer: the condition does not hold."""
_NO_RANGE = 416
"""Status: the file ends before the range begins."""
_CROSSED = 409
"""Status: another conditional write of the same object was under way; which of them counts is not said."""
_GONE = 404
_UNKNOWN = 501
"""Status: the store does not know the header."""
_PASSING = (408, 429)
"""Statuses of a store that is asked for too much, as all from 500 on are."""
_TIMEOUT_S = 30.0
_ATTEMPTS = 4
_PART_BYTES = 32 << 20  # S3 takes 10,000 parts of a file; boto3 makes them larger where it must
_PARTS_AT_A_TIME = 8

T = TypeVar("T")


class RefusedError(ValueError):
    """A store has no conditional writes; the message says what to do."""


@dataclass(frozen=True)
class Version:
    """Content of a file, and the name of this very version of it."""

    data: bytes
    tag: str
    """ETag of the object. Two versions with the same content have the same one."""


def boto_speaks_to(location: str) -> bool:
    """Whether a location is one of S3's, and boto3 is installed."""
    return location.startswith("s3://") and importlib.util.find_spec("boto3") is not None


class S3Files:
    """Files below a URI of S3, or of a store that speaks its protocol. Safe to use from several threads.

    Args:
        location: `s3://bucket/folder`, with the options and credentials that pyarrow knows.
        patience_s: Seconds for which requests are made again while the store is overloaded or cannot be reached; None:
            as `Storage` does.

    Raises:
        ValueError: It is no such URI, or boto3 is not installed.
    """

    def __init__(self, location: str, patience_s: float | None = None) -> None:
        self.uri = without_credentials(location)
        self._location = location
        if not location.startswith("s3://"):
            raise ValueError(f"{self.uri} has no conditional writes: only s3://… has them")
        if not boto_speaks_to(location):
            raise ValueError(f"{self.uri} is written by boto3, which is not installed: pip install 'talkinghead[s3]'")
        parts = urlsplit(location)
        self._bucket = unquote(parts.netloc.rpartition("@")[2])
        self._prefix = unquote(parts.path).strip("/")
        if not self._bucket:
            raise ValueError(f"{self.uri} names no bucket")
        self._patience_s = store_patience() if patience_s is None else patience_s
        self._guard = threading.Lock()

    def read(self, path: str, limit: int | None = None) -> Version | None:
        """Content of a file, of one version of it, whoever replaces it meanwhile; None where there is none.

        pyarrow asks for the size first, and then for so many bytes of what may be another version by then.

        Args:
            path: Path of the file.
            limit: Bytes that it may have at most; None: any number.

        Raises:
            ValueError: It is larger.
            UnreachableError: The store does not answer, or refuses.
        """

        def request(client: Any) -> Version:
            found = client.get_object(Bucket=self._bucket, Key=self._key(path))
            if limit is not None:
                refuse_large(f"{self.uri.partition('?')[0]}/{path}", found["ContentLength"], limit)
            return Version(found["Body"].read(), found["ETag"])

        try:
            return self._asked(request)
        except _Answer as answer:
            if answer.status == _GONE and answer.code != "NoSuchBucket":
                return None
            raise answer.error from None

    def read_range(self, path: str, offset: int, length: int) -> bytes | None:
        """Bytes `offset .. offset + length - 1` of a file, at least one, by one request; None where it has fewer.

        Raises:
            FileNotFoundError: There is no such file.
            UnreachableError: The store does not answer, or refuses.
        """

        def request(client: Any) -> bytes | None:
            wanted = f"bytes={offset}-{offset + length - 1}"
            found = client.get_object(Bucket=self._bucket, Key=self._key(path), Range=wanted)
            # A store may answer with fewer bytes, or not know ranges and begin to send the whole file.
            with contextlib.closing(found["Body"]) as body:
                return body.read() if found["ContentLength"] == length else None

        try:
            return self._asked(request)
        except _Answer as answer:
            if answer.status == _NO_RANGE:
                return None
            if answer.status == _GONE and answer.code != "NoSuchBucket":
                raise FileNotFoundError(f"there is no {self.uri.partition('?')[0]}/{path}") from None
            raise answer.error from None

    def create(self, path: str, data: bytes) -> str | None:
        """Make a file where there is none.

        Returns:
            Tag of the new version; None where a file was there already.

        Raises:
            RefusedError: The store has no conditional writes.
            UnreachableError: It does not answer, or refuses.
        """
        return self._put(path, data, {"IfNoneMatch": "*"})

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Replace a file if it still is the version of a tag. The new content must differ from the old one.

        Returns:
            Tag of the new version; None where the file is another one by now, or gone.

        Raises:
            RefusedError: The store has no conditional writes.
            UnreachableError: It does not answer, or refuses.
        """
        return self._put(path, data, {"IfMatch": tag})

    def check(self) -> None:
        """Try whether the store keeps to conditions, also with two writers at once; leaves nothing.

        Raises:
            RefusedError: It refuses or ignores them.
            UnreachableError: It does not answer, or refuses all writes.
        """
        path = f".probe-{uuid.uuid4().hex}"
        try:
            # Of two at once one must succeed, then a third must not: it meets a file for certain.
            with ThreadPoolExecutor(2) as pool:
                made = list(pool.map(lambda data: self.create(path, data), (b"one", b"first")))
            first = made[0] or made[1]
            kept = None in made and first is not None and self.create(path, b"second") is None
            # A tag that no version has, then the one that it has.
            kept = kept and self.replace(path, b"third", f'"{uuid.uuid4().hex}"') is None
            if not (kept and first is not None and self.replace(path, b"fourth", first) is not None):
                raise RefusedError(self._without("ignores"))
        finally:
            self.delete(path)

    def delete(self, path: str) -> None:
        """Remove a file; no error where there is none."""
        try:
            self._asked(lambda client: client.delete_object(Bucket=self._bucket, Key=self._key(path)))
        except _Answer as answer:
            raise answer.error from None

    def upload(self, path: str, source: Path) -> None:
        """Make a file from a local one, which nobody may cut meanwhile; it appears when it is complete.

        Raises:
            FileNotFoundError: There is no such local file.
            UnreachableError: The store does not answer, or refuses.
        """

        def request(client: Any) -> None:
            with source.open("rb") as stream:
                client.upload_fileobj(stream, self._bucket, self._key(path), Config=_parts())

        try:
            self._asked(request, parts=True)
        except _Answer as answer:
            raise answer.error from None

    def create_from(self, path: str, source: Path) -> bool:
        """Make a file from a local one where there is none; it appears when it is complete.

        Large ones go in parts, of which one that fails is sent again alone, and the condition is that of the last
        request (CompleteMultipartUpload).

        Returns:
            False when a file was there already. Where the store's answer to the last request was lost, that may be
            this one.

        Raises:
            FileNotFoundError: There is no such local file.
            RefusedError: The store has no conditional writes.
            UnreachableError: It does not answer, or refuses.
        """
        if source.stat().st_size <= _PART_BYTES:
            return self.create(path, source.read_bytes()) is not None
        place = {"Bucket": self._bucket, "Key": self._key(path)}
        try:
            upload = self._asked(lambda client: client.create_multipart_upload(**place))["UploadId"]
            try:
                tags = self._send_parts(place | {"UploadId": upload}, source)
                parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
                end = place | {"UploadId": upload, "MultipartUpload": {"Parts": parts}, "IfNoneMatch": "*"}
                self._asked(lambda client: client.complete_multipart_upload(**end))
            except BaseException:
                # Parts that no file is made of are stored, and paid for, until then.
                with contextlib.suppress(_Answer, UnreachableError):
                    self._asked(lambda client: client.abort_multipart_upload(**place, UploadId=upload))
                raise
        except _Answer as answer:
            if answer.status == _UNKNOWN:
                raise RefusedError(self._without("refuses")) from None
            # Gone is the upload: a try before has ended it.
            if answer.status == _CHANGED or (answer.code == "NoSuchUpload" and self.read_range(path, 0, 1) is not None):
                return False
            raise answer.error from None
        return True

    def _send_parts(self, upload: dict[str, Any], source: Path) -> list[str]:
        """Send a local file in parts, several at a time; returns their tags."""
        # Ten thousand parts are as many as an upload may have.
        size = source.stat().st_size
        step = max(_PART_BYTES, -(-size // 10_000))

        def send(number: int) -> str:
            with source.open("rb") as stream:
                data = os.pread(stream.fileno(), step, number * step)
            request = upload | {"PartNumber": number + 1, "Body": data}
            return self._asked(lambda client: client.upload_part(**request), parts=True)["ETag"]

        with ThreadPoolExecutor(_PARTS_AT_A_TIME) as pool:
            return list(pool.map(send, range(-(-size // step))))

    def download(self, path: str, target: Path) -> None:
        """Copy a file into a local one, which may be there; a folder for it must be.

        Raises:
            FileNotFoundError: There is no such file.
            UnreachableError: The store does not answer, or refuses.
        """

        def request(client: Any) -> None:
            with target.open("wb") as stream:
                client.download_fileobj(self._bucket, self._key(path), stream, Config=_parts())

        try:
            self._asked(request, parts=True)
        except _Answer as answer:
            if answer.status == _GONE and answer.code != "NoSuchBucket":
                raise FileNotFoundError(f"there is no {self.uri.partition('?')[0]}/{path}") from None
            raise answer.error from None

    def _put(self, path: str, data: bytes, condition: dict[str, str]) -> str | None:
        key = self._key(path)
        try:
            return self._asked(
                lambda client: client.put_object(Bucket=self._bucket, Key=key, Body=data, **condition)["ETag"]
            )
        except _Answer as answer:
            if answer.status == _UNKNOWN:
                raise RefusedError(self._without("refuses")) from None
            if answer.status not in (_CHANGED, _GONE) or answer.code == "NoSuchBucket":
                raise answer.error from None
            again = answer.again
        # A write that was tried again may have met itself: its first answer was lost on the way.
        there = self.read(path) if again else None
        return there.tag if there is not None and there.data == data else None

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _without(self, verb: str) -> str:
        return (
            f"the store of {self.uri} {verb} conditional writes (If-None-Match, If-Match), by which writers keep out of"
            " each other's way: take a store that has them, as Amazon S3 does, or a folder"
        )

    def _asked(self, request: Callable[[Any], T], *, parts: bool = False) -> T:
        """Answer to a request, a function of the client, which is made again while errors pass.

        Args:
            request: The request.
            parts: Whether it consists of several, of which one that fails is first sent again alone.

        Raises:
            _Answer: The store answers with another status than success.
            UnreachableError: It does not answer.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        tries = Tries(self.uri)
        with self._guard:
            client = self._client_of_parts if parts else self._client
        while True:
            try:
                found = request(client)
            except (BotoCoreError, ClientError) as error:
                text = hide_secrets(str(error), self._location)
                answer = getattr(error, "response", None) or {}  # some errors of connections have one that is None
                status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
                passes = status in (_CROSSED, *_PASSING) or (status >= 500 and status != _UNKNOWN)
                if isinstance(error, BotoCoreError):
                    passes = isinstance(error, _connection_errors())
                if passes and tries.again(self._patience_s, text):
                    continue
                failed = UnreachableError(f"cannot reach {self.uri}: {text}{tries.summary}")
                if passes or not status:
                    raise failed from None
                again = tries.number + int(answer["ResponseMetadata"].get("RetryAttempts", 0))
                raise _Answer(status, str(answer.get("Error", {}).get("Code", "")), again, failed) from None
            tries.succeeded()
            return found

    @cached_property
    def _client(self) -> Any:
        """Client that sends a request once: `_asked` sends it again, and counts that."""
        return self._make_client(attempts=1)

    @cached_property
    def _client_of_parts(self) -> Any:
        """Client that sends each part of a large file several times; what lasts longer is `_asked`'s to try again."""
        return self._make_client(attempts=_ATTEMPTS)

    def _make_client(self, attempts: int) -> Any:
        """Client of the store, with what the URI says as pyarrow understands it."""
        import boto3
        from botocore.config import Config

        parts = urlsplit(self._location)
        options = dict(parse_qsl(parts.query))
        user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
        endpoint = options.get("endpoint_override")
        if endpoint and "://" not in endpoint:
            endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
        verify: bool | str | None = options.get("tls_ca_file_path")
        if options.get("tls_verify_certificates", "true").lower() in ("false", "0"):
            verify = False
        return boto3.Session().client(
            "s3",
            region_name=options.get("region"),
            endpoint_url=endpoint,
            verify=verify,
            aws_access_key_id=unquote(user) if colon else None,
            aws_secret_access_key=unquote(password) if colon else None,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": attempts},
                max_pool_connections=4 * _PARTS_AT_A_TIME,
                connect_timeout=_TIMEOUT_S,
                read_timeout=_TIMEOUT_S,
                # As pyarrow addresses a store of one's own; and without checksums that not every store knows.
                s3={"addressing_style": "path" if endpoint else "auto"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


class _Answer(Exception):
    """Answer of a store that is no success.

    Attributes:
        status: HTTP status.
        code: The store's name for what is wrong.
        again: Number of times that the request had been made before, in vain.
        error: Error for callers who did not expect it.
    """

    def __init__(self, status: int, code: str, again: int, error: UnreachableError) -> None:
        super().__init__(status, code)
        self.status, self.code, self.again, self.error = status, code, again, error


def _parts() -> Any:
    """How large files are copied: in parts, several at a time."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=_PARTS_AT_A_TIME
    )


def _connection_errors() -> tuple[type[Exception], ...]:
    """Errors of botocore that may pass by themselves."""
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError

    return ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError
