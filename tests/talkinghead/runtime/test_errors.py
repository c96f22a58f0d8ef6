"""Whose fault errors are, also of errors with an explanation around them, and their texts."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import av.error
import pytest

from talkinghead.runtime.errors import MACHINE_ERRORS, UnreachableError, error_text, is_machine_error, naming


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EROFS", "EIO", "ENOMEM", "ESTALE", "ENOTCONN", "ETIMEDOUT"])
def test_the_machine_fails(number: str) -> None:
    assert is_machine_error(OSError(getattr(errno, number), "…"))


@pytest.mark.parametrize(
    "number", ["ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "EACCES", "EPERM", "ECONNREFUSED", "EAGAIN"]
)
def test_the_request_is_wrong(number: str) -> None:
    assert getattr(errno, number) not in MACHINE_ERRORS
    assert not is_machine_error(OSError(getattr(errno, number), "…"))


def test_other_errors() -> None:
    assert is_machine_error(UnreachableError("cannot reach s3://…"))
    assert is_machine_error(pickle.loads(pickle.dumps(UnreachableError("from a worker"))))  # noqa: S301
    for error in (ValueError("x"), OSError("x"), MemoryError(), KeyboardInterrupt(), TimeoutError("x")):
        assert not is_machine_error(error)


def explained(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as cause:
            raise ValueError("the portrait cannot be read") from cause
    except ValueError as explanation:
        return explanation


def test_an_explanation_is_of_the_kind_of_its_cause() -> None:
    assert is_machine_error(explained(OSError(errno.EIO, "Input/output error")))
    assert is_machine_error(explained(explained(OSError(errno.ESTALE, "Stale file handle"))))
    assert not is_machine_error(explained(OSError(errno.ENOENT, "No such file or directory")))


def test_ffmpeg_says_eio_of_files_that_end_early() -> None:
    assert not is_machine_error(av.error.OSError(errno.EIO, "Input/output error", "x.mkv"))
    assert is_machine_error(av.error.OSError(errno.ENOSPC, "No space left on device", "x.mp4"))


def test_texts(tmp_path: Path) -> None:
    assert error_text(ValueError("--fps is 0")) == "--fps is 0"
    with pytest.raises(OSError) as missing:
        (tmp_path / "x").read_bytes()
    assert error_text(missing.value) == f"{tmp_path / 'x'}: No such file or directory"
    with pytest.raises(OSError) as read, naming("video.mp4"):
        os.read(os.open(tmp_path, os.O_RDONLY), 1)
    assert error_text(read.value) == "video.mp4: Is a directory"
    with pytest.raises(UnreachableError) as unreachable, naming("video.mp4"):
        raise UnreachableError("cannot reach s3://bucket")
    assert error_text(unreachable.value) == "cannot reach s3://bucket"
