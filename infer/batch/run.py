"""Runs a batch: row by row in one process that loads weights once, and goes on where it was stopped.

A row whose video is there, made by the same request from the same files, is skipped: so a batch that was stopped,
however, goes on when it is started again, and gives the same files. A row that fails costs itself: its error stands in
`results.csv`, and the others are done. A row that ends the process costs itself too, after the second time.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from infer.batch.attempts import MOST_DEATHS, Attempts
from infer.batch.rows import BatchRequest, Row, read_rows
from infer.output_files import settings_of
from talkinghead.files.foreign import read_json
from talkinghead.provenance import hash_file, pretty_json
from talkinghead.runtime.command_line import Incomplete
from talkinghead.runtime.errors import error_text, is_machine_error, one_line

log = logging.getLogger(__name__)

COLUMNS = ("row", "command", "output", "state", "seconds", "error")
"""Columns of the results; `state` is done, skipped or failed."""
_WEIGHTS = ("weights", "audio2mesh", "audio2pose", "adapter")  # options that name weights


def run_batch(request: BatchRequest) -> Incomplete | str:
    """Make the videos of all rows.

    Returns:
        Path of the results; as `Incomplete` where a row failed.

    Raises:
        ValueError: The batch cannot be read; no row was begun.
        OSError: A failure of the machine (a full disk), which ends the batch: it goes on when it is started again.
    """
    from infer.weights.kept import weights_kept

    request.check()
    rows = read_rows(request)
    counts = dict.fromkeys(("done", "skipped", "failed"), 0)
    first_error = ""
    attempts = Attempts(request.results_file.with_suffix(".begun"))
    if request.retry:
        for row in rows:
            attempts.forget(row)
    with Results(request.results_file) as results, weights_kept():
        for row in rows:
            log.info("row %d of %d: %s", row.number, len(rows), row.options.get("output", ""))
            started = time.monotonic()
            state, error = _attempt(row, attempts)
            counts[state] += 1
            first_error = first_error or (f"row {row.number}: {error}" if error else "")
            results.add(row, state, time.monotonic() - started, error)
    assert sum(counts.values()) == len(rows)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    log.info("%d rows: %s", len(rows), told)
    if counts["failed"]:
        return Incomplete(
            str(request.results_file),
            f"{counts['failed']} of {len(rows)} rows failed ({told}); the first, {first_error}",
        )
    return str(request.results_file)


def _attempt(row: Row, attempts: Attempts) -> tuple[Literal["done", "skipped", "failed"], str]:
    """Make the video of a row, unless it is there; its state, and the error of one that failed.

    Raises:
        OSError: A failure of the machine, which would cost all other rows, too.
        MemoryError: As that; but it counts for the row as an end of the process.
    """
    try:
        request = row.request()
        request.check()
        if is_done(row.command, request):
            return "skipped", ""
        deaths = attempts.deaths(row)
        if deaths >= MOST_DEATHS:
            raise ValueError(
                f"it ended the process {deaths} times (crashed, killed, or out of memory) and is not begun again;"
                " --retry begins it"
            )
        if deaths:
            log.warning("row %d is begun again, though the process ended at it before", row.number)
        with attempts.begun(row):
            maker(row.command)(request)
    except (ValueError, OSError) as error:
        if is_machine_error(error):
            raise
        log.warning("row %d failed: %s", row.number, error)
        return "failed", _in_a_line(error)
    except MemoryError:
        raise
    except Exception as error:
        # A defect of the code costs its row as well; its traceback stands in the log.
        log.exception("row %d failed by a defect", row.number)
        return "failed", f"{type(error).__name__}: {_in_a_line(error)}"
    return "done", ""


def _in_a_line(error: BaseException) -> str:
    return one_line(" ".join(error_text(error).split()))


def maker(command: str) -> Callable[[Any], Path]:
    """Function that makes the video of a request."""
    # Imported here, so that a wrong table is reported without loading PyTorch.
    from infer import animate
    from infer.dubbing.dub import dub

    makers: dict[str, Callable[[Any], Path]] = {
        "audio": animate.make_audio_video,
        "video": animate.make_driven_video,
        "landmarks": animate.make_landmark_video,
        "animate": animate.make_animation,
        "dub": dub,
    }
    return makers[command]


def is_done(command: str, request: Any) -> bool:
    """Whether a request's video is there and whole, made by the same request from the same files.

    Weights count as the same where no file of them is newer than the sidecar.
    """
    sidecar = request.output.with_suffix(".json")
    if not (request.output.is_file() and sidecar.is_file()):
        return False
    try:
        found = read_json(sidecar)
    except ValueError:
        return False
    if not isinstance(found, dict) or found.get("command") != command:
        return False
    # As it went through the file: tuples became lists.
    settings = json.loads(pretty_json(settings_of(request)))
    if found.get("settings") != settings or found.get("video_sha256") != hash_file(request.output):
        return False
    inputs = found.get("inputs")
    recorded = sorted(entry["sha256"] for entry in inputs.values()) if isinstance(inputs, dict) else []
    if recorded != sorted(hash_file(file) for file in input_files(request)):
        return False
    made = sidecar.stat().st_mtime
    return all(file.stat().st_mtime <= made for place in weight_places(request) for file in _all_files(place))


def input_files(request: Any) -> list[Path]:
    """Files of the user that a request reads, weights left out; missing ones too."""
    found = []
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if isinstance(value, Path) and field.name not in ("output", *_WEIGHTS):
            found.append(value)
        elif isinstance(value, str) and ":" in value and field.name in ("pose", "mouth", "eyes"):
            found.append(Path(value.partition(":")[2]))
    return found


def weight_places(request: Any) -> list[Path]:
    """Files and folders of weights that a request names."""
    values = (getattr(request, name, None) for name in _WEIGHTS)
    listed = (value if isinstance(value, tuple) else (value,) for value in values)
    return [place for place in itertools.chain.from_iterable(listed) if place is not None]


def _all_files(place: Path) -> Iterator[Path]:
    return (file for file in place.rglob("*") if file.is_file()) if place.is_dir() else iter((place,))


class Results:
    """The table of results; each row is on the disk when it is added. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Begin anew.

        Raises:
            OSError: The file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(path.open("w", encoding="utf-8", newline=""))
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, row: Row, state: str, seconds: float, error: str) -> None:
        """Add what became of a row."""
        output = row.options.get("output", "")
        self._writer.writerow((row.number, row.command, output, state, f"{seconds:.1f}", error))
        self._file.flush()
