"""Beginnings of rows: what ends a process counts, and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from infer.batch.attempts import Attempts
from infer.batch.rows import Row


def row(number: int, **options: str) -> Row:
    return Row(number=number, options={"audio": "speech.wav", "output": f"{number}.mp4"} | options)


def test_a_killed_process_counts(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "begun")
    for death in (1, 2):
        child = os.fork()
        if not child:
            try:
                with attempts.begun(row(1)):
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert attempts.deaths(row(1)) == death
    assert attempts.deaths(row(2)) == 0 and attempts.deaths(row(1, seed="3")) == 0
    moved = Row(number=7, options=row(1).options)
    assert attempts.deaths(moved) == 2, "a table that was sorted has the same rows"
    attempts.forget(moved)
    assert attempts.deaths(row(1)) == 0 and not (tmp_path / "begun").exists()


@pytest.mark.parametrize(
    ("error", "counts"),
    [(None, 0), (ValueError, 0), (KeyboardInterrupt, 0), (OSError, 0), (MemoryError, 1)],
)
def test_what_settles_a_row(tmp_path: Path, error: type[BaseException] | None, counts: int) -> None:
    attempts = Attempts(tmp_path / "begun")
    if error is None:
        with attempts.begun(row(1)):
            assert attempts.deaths(row(1)) == 1
    else:
        with pytest.raises(error), attempts.begun(row(1)):
            raise error
    assert attempts.deaths(row(1)) == counts


def test_other_rows_keep_theirs(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "begun")
    with pytest.raises(MemoryError), attempts.begun(row(1)):
        raise MemoryError
    with attempts.begun(row(2)):
        pass
    assert attempts.deaths(row(1)) == 1 and attempts.deaths(row(2)) == 0


@pytest.mark.parametrize("text", ["", "{}", '{"begun": "two"}', "[1]"])
def test_damaged_records_are_named(tmp_path: Path, text: str) -> None:
    attempts = Attempts(tmp_path / "begun")
    with pytest.raises(MemoryError), attempts.begun(row(1)):
        raise MemoryError
    [file] = (tmp_path / "begun").iterdir()
    file.write_text(text)
    with pytest.raises(ValueError, match=file.name):
        attempts.deaths(row(1))
