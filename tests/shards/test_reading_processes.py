"""Reading processes that hang, are killed, fail, and end with the process that started them."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.loader import ClipLoader, collate
from shards.reading_processes import ReaderLost, ReadingProcesses
from talkinghead.files.patience import RETRIES
from talkinghead.runtime.errors import MachineError
from tests.support.descendants import alive, readers_of, reading_servers_of
from tests.support.paths import ROOT

log = logging.getLogger(__name__)


class Numbers:
    """Slots whose reading can be made to go wrong, once or always.

    Args:
        folder: Folder for marks: what happens once has happened when its mark is there.
        faults: Slot → what happens there: `kill` or `stop` (once), `always` (killed at each try), or an error.
    """

    readers = ()

    def __init__(self, folder: Path, faults: dict[int, Any] | None = None) -> None:
        self.folder, self.faults = folder, faults or {}

    def __len__(self) -> int:
        return 20

    def key(self, slot: Any) -> str:
        return f"k-{slot % 20}"

    def __getitem__(self, slot: Any) -> dict[str, Any]:
        fault, mark = self.faults.get(slot), self.folder / f"mark-{slot}"
        if isinstance(fault, Exception):
            raise fault
        if fault in ("kill", "stop") and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        if fault == "always":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "slow":
            for _ in range(8):
                time.sleep(0.4)
                assert RETRIES.listener is not None
                RETRIES.listener()
            RETRIES.add(8, 3.2)
        if fault == "log":
            log.warning("slot %d is odd", slot)
        return {"key": self.key(slot), "slot": slot, "square": torch.tensor([slot * slot])}


def squares(loader: ClipLoader, count: int) -> list[int]:
    batches = iter(loader)
    try:
        return [number for batch in itertools.islice(batches, count) for number in batch["square"].flatten().tolist()]
    finally:
        batches.close()  # type: ignore[attr-defined]


EXPECTED = [slot * slot for slot in range(24)]


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_lost_readers_are_replaced_and_nothing_is_missing(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = Numbers(tmp_path, {9: fault})
    loader = ClipLoader(dataset, 2, num_workers=2, timeout_s=2.0)
    with caplog.at_level(logging.WARNING):
        assert squares(loader, 12) == EXPECTED
    (text,) = [record.message for record in caplog.records]
    assert ("ended by SIGKILL (out of memory?)" if fault == "kill" else "no sign for 2 s") in text
    assert "while it read k-9; new reading processes go on at microbatch " in text
    assert not readers_of()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_any_reader_and_the_server_may_be_lost(number: int, tmp_path: Path) -> None:
    """Whatever is under way: readers that wait for work, and the process that they are forks of."""
    loader = ClipLoader(Numbers(tmp_path), 2, num_workers=2, timeout_s=2.0, restarts=3)
    batches = iter(loader)
    found: list[int] = []
    for turn in range(12):
        found += next(batches)["square"].flatten().tolist()
        if turn == 3:
            os.kill(readers_of()[0], number)
        if turn == 7 and number == signal.SIGKILL:
            (server,) = reading_servers_of()
            os.kill(server, number)
    batches.close()  # type: ignore[attr-defined]
    assert found == EXPECTED


def test_one_that_is_lost_again_and_again_ends_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = ClipLoader(Numbers(tmp_path, {6: "always"}), 2, num_workers=2, restarts=2)
    with pytest.raises(MachineError, match=r"SIGKILL .*while it read k-6; .*, 3 in a row: .*make verify"):
        squares(loader, 12)
    assert len(caplog.records) == 2 and loader.state_dict() == {"microbatches": 3}
    assert not readers_of()


def test_waiting_for_a_store_is_no_silence(tmp_path: Path) -> None:
    RETRIES.take()
    loader = ClipLoader(Numbers(tmp_path, {3: "slow"}), 2, num_workers=1, timeout_s=1.2, restarts=0)
    assert squares(loader, 3) == EXPECTED[:6]
    assert RETRIES.take() == (8, 3.2)


@pytest.mark.parametrize(
    "error", [ValueError("the clip is cut off"), OSError(errno.ENOSPC, "no space"), MachineError("the store is away")]
)
def test_an_error_of_reading_is_raised_in_its_turn_and_replaces_nobody(error: Exception, tmp_path: Path) -> None:
    loader = ClipLoader(Numbers(tmp_path, {8: error}), 2, num_workers=2)
    batches = iter(loader)
    found = [number for batch in itertools.islice(batches, 4) for number in batch["square"].flatten().tolist()]
    assert found == EXPECTED[:8]
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert str(caught.value) == str(error)
    assert "in __getitem__" in str(caught.value.__cause__)
    assert not readers_of()


def test_what_readers_log_is_logged_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        squares(ClipLoader(Numbers(tmp_path, {3: "log"}), 2, num_workers=1), 3)
    assert [(record.name.rpartition(".")[2], record.message) for record in caplog.records] == [
        (__name__.rpartition(".")[2], "slot 3 is odd")
    ]


def test_a_data_set_that_cannot_be_given_away_is_one_line(tmp_path: Path) -> None:
    dataset = Numbers(tmp_path, {3: lambda: None})
    with pytest.raises(ValueError, match=r"cannot be given to reading processes .*--train.num-workers 0"):
        squares(ClipLoader(dataset, 2, num_workers=1), 3)


class Unopenable(Numbers):
    """A data set that pickles, and cannot be opened elsewhere."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise ValueError("the index is gone")


def test_an_error_of_opening_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the index is gone"):
        squares(ClipLoader(Unopenable(tmp_path), 2, num_workers=1), 3)


def test_readers_see_no_gpu_and_start_without_threads(tmp_path: Path) -> None:
    with ReadingProcesses(Environment(), collate, 2, 60.0) as processes:
        (batch,) = processes.batches(iter([[0]]))
    assert batch["threads"].tolist() == [1] and batch["gpu"].tolist() == [0] and batch["torch"].tolist() == [1]


class Environment:
    """What a reader finds around it."""

    def __getitem__(self, slot: int) -> dict[str, Any]:
        threads = len(list(Path("/proc/self/task").iterdir()))
        gpus = len(os.environ["CUDA_VISIBLE_DEVICES"])
        return {"key": "k", "threads": threads, "gpu": gpus, "torch": torch.get_num_threads()}


PROGRAM = """
import sys, time
from pathlib import Path
from shards.loader import ClipLoader
from tests.shards.test_reading_processes import Numbers
from tests.support.descendants import descendants

batches = iter(ClipLoader(Numbers(Path(sys.argv[1])), 2, num_workers=2))
next(batches)
print(*[number for number, _ in descendants()], flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that reads with two processes."""
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("stopped", [False, True])
def test_readers_end_with_whoever_started_them(parent: subprocess.Popen[str], stopped: bool) -> None:
    """Also those that are stopped."""
    assert parent.stdout is not None
    below = [int(number) for number in parent.stdout.readline().split()]
    assert len(below) == 3 and all(map(alive, below))
    if stopped:
        os.kill(below[-1], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(map(alive, below)):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_that_ask_a_training_to_end_do_not_end_its_readers(number: int, tmp_path: Path) -> None:
    batches = iter(ClipLoader(Numbers(tmp_path), 2, num_workers=2, restarts=0))
    found = next(batches)["square"].flatten().tolist()
    for pid in [*readers_of(), *reading_servers_of()]:
        os.kill(pid, number)
    for batch in itertools.islice(batches, 11):
        found += batch["square"].flatten().tolist()
    batches.close()  # type: ignore[attr-defined]
    assert found == EXPECTED


def test_a_lost_reader_is_named() -> None:
    error = ReaderLost("it is gone", [3])
    assert str(error) == "it is gone" and error.at == [3]


def test_items_that_are_read_at_once_come_in_their_order(tmp_path: Path) -> None:
    for workers in (0, 2):
        assert squares(ClipLoader(Numbers(tmp_path), 4, num_workers=workers, at_once=3), 6) == EXPECTED


def test_a_reader_with_threads_that_is_killed_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = ClipLoader(Numbers(tmp_path, {9: "kill"}), 4, num_workers=2, at_once=3)
    with caplog.at_level(logging.WARNING):
        assert squares(loader, 6) == EXPECTED
    (text,) = [record.message for record in caplog.records]
    assert "ended by SIGKILL" in text and "k-9" in text and not readers_of()
