"""Ranks as child processes: what they open, and how they end, together and with their launcher."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.listening import is_loopback, listening, parent_of, process_tree
from tests.support.paths import ROOT
from tests.support.train_commands import SITE, Command, run_train, start_train, toy, wait_for
from train.launch.meeting import loopback_interface

ENDLESS = ("--config.step-s", 0.02, "--train.steps", 100_000, "--train.checkpoint.every", 100_000, "--workers", 2)


def ranks_of(command: Command) -> list[int]:
    """Processes of the ranks, in their order."""
    assert command.process.pid is not None
    found = {}
    for process in process_tree(command.process.pid) - {command.process.pid}:
        try:
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        # A reading process is forked from its rank, and has the same two.
        if b"worker" in words and parent_of(process) == command.process.pid:
            found[next(text for text in variables if text.startswith(b"RANK="))] = process
    return [found[name] for name in sorted(found)]


def training(folder: Path, *options: object) -> tuple[Command, list[int]]:
    """A training of two ranks that has begun its steps, and the processes of the ranks."""
    command = start_train(folder / "out", *toy(folder / "run", *ENDLESS, *options))
    wait_for(lambda: (folder / "run" / "metrics.jsonl").exists() or command.process.exitcode is not None)
    ranks = ranks_of(command)
    assert len(ranks) == 2, command.stderr
    return command, ranks


def gone(processes: list[int]) -> bool:
    """Whether the processes have ended."""
    return not any(Path(f"/proc/{process}").exists() for process in processes)


def last_step(run: Path) -> int:
    """Step of the newest checkpoint."""
    return int((run / "checkpoints" / "last").read_text().removeprefix("step-"))


def test_nothing_listens_but_on_loopback(tmp_path: Path) -> None:
    """From the start to the end, with checkpoints in the background and validations."""
    options = ["--workers", 2, "--train.steps", 40, "--config.step-s", 0.02, "--train.validation.every", 40]
    command = start_train(tmp_path / "out", *toy(tmp_path / "run", *options, "--train.checkpoint.every", 10))
    assert command.process.pid is not None
    seen: dict[tuple[str, int], int] = {}
    while command.process.exitcode is None:
        seen |= listening(process_tree(command.process.pid))
        time.sleep(0.05)
    assert command.wait() == 0, command.stderr
    assert seen, "gloo listens somewhere"
    assert {place for place in seen if not is_loopback(place[0])} == set()
    # The launcher itself is no party to what the ranks tell each other.
    assert command.process.pid not in seen.values()


def test_what_listens_is_found() -> None:
    """The test above would pass with a list that misses sockets."""
    import socket

    with socket.create_server(("0.0.0.0", 0)) as four, socket.create_server(("127.0.0.1", 0)) as loopback:
        found = listening({os.getpid()})
        assert found["0.0.0.0", four.getsockname()[1]] == os.getpid() and not is_loopback("0.0.0.0")
        assert found["127.0.0.1", loopback.getsockname()[1]] == os.getpid() and is_loopback("127.0.0.1")
    assert not is_loopback("::") and is_loopback("::1") and not is_loopback("192.0.2.2")


def test_the_folder_in_which_they_meet_is_closed_and_does_not_stay(tmp_path: Path) -> None:
    command, ranks = training(tmp_path)
    variables = dict(
        part.split(b"=", 1) for part in Path(f"/proc/{ranks[0]}/environ").read_bytes().split(b"\0") if b"=" in part
    )
    folder = Path(os.fsdecode(variables[b"TALKINGHEAD_TRAIN_MEETING"]))
    assert folder.stat().st_mode & 0o777 == 0o700 and folder.stat().st_uid == os.getuid()
    assert b"MASTER_PORT" not in variables and b"TORCHELASTIC_RUN_ID" not in variables
    # Where a machine's name does not stand for loopback, gloo would listen on its address.
    assert variables[b"GLOO_SOCKET_IFNAME"].decode() == loopback_interface()
    command.send(signal.SIGTERM)
    assert command.wait() == 1 and gone(ranks) and not folder.exists()


def test_a_signal_to_all_processes_is_one_request(tmp_path: Path) -> None:
    """As cluster schedulers send it; the launcher passes its own on, so each rank gets two."""
    command, ranks = training(tmp_path)
    for process in (*ranks, command.process.pid):
        assert process is not None
        os.kill(process, signal.SIGTERM)
    assert command.wait() == 1 and gone(ranks)
    step = last_step(tmp_path / "run")
    assert command.stderr.splitlines()[-1] == f"interrupted at step {step}; the same command continues from there"
    assert command.stderr.count("writing a checkpoint, then stopping") == 1


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    command, ranks = training(tmp_path)
    # Ranks that do not come to their checkpoint.
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    command.send(signal.SIGINT)
    wait_for(lambda: all(is_pending(rank, signal.SIGINT) for rank in ranks))
    command.send(signal.SIGINT)
    assert command.wait() == 1 and gone(ranks)
    assert command.stderr.splitlines()[-1].startswith("interrupted; run the same command again")
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()


def is_pending(process: int, number: int) -> bool:
    """Whether a signal waits for a process that is stopped."""
    status = Path(f"/proc/{process}/status").read_text()
    return bool(int(status.partition("ShdPnd:")[2].split()[0], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_others_do_not_wait_for_a_rank_that_died(tmp_path: Path, rank: int) -> None:
    """Not even one that notices nothing, as under NCCL."""
    command, ranks = training(tmp_path)
    os.kill(ranks[1 - rank], signal.SIGSTOP)
    os.kill(ranks[rank], signal.SIGKILL)
    assert command.wait() == 1 and gone(ranks)
    (line,) = command.errors
    assert f"rank {rank} was ended by SIGKILL (out of memory?)" in line and "Traceback" not in command.stderr


def test_the_rank_that_fails_first_says_why(tmp_path: Path) -> None:
    bad = ["--config.bad-loss", *range(40), "--train.guard.abort-after", 2, "--workers", 2]
    done = run_train(tmp_path / "out", *toy(tmp_path / "run", *bad))
    assert done.process.exitcode == 2 and "Traceback" not in done.stderr and done.stdout == ""
    (line,) = done.errors
    assert "2 steps in a row" in line


@pytest.mark.slow
def test_a_rank_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    """It ends before it could write down why."""
    done = run_with_another_rank(tmp_path, "os._exit(3)")
    assert done.process.exitcode == 1
    (line,) = done.errors
    assert "rank 1 ended with exit status 3" in line


def test_a_rank_without_the_secret_is_refused(tmp_path: Path) -> None:
    """As one that came to the port of another before it; it even has the store."""
    done = run_with_another_rank(
        tmp_path,
        """
import tempfile
folder = tempfile.mkdtemp()
os.symlink(os.environ["TALKINGHEAD_TRAIN_MEETING"] + "/store", folder + "/store")
open(folder + "/key", "wb").write(bytes(32))
os.environ["TALKINGHEAD_TRAIN_MEETING"] = folder
""",
    )
    assert done.process.exitcode == 1
    (line,) = done.errors
    assert "an object came that no rank has signed" in line


def run_with_another_rank(folder: Path, code: str) -> Command:
    """Run a training of two ranks, in which rank 1 runs some code before anything else."""
    usual = (Path(SITE) / "sitecustomize.py").read_text()
    site = folder / "site"
    site.mkdir()
    text = f"{usual}\nimport os\nif os.environ.get('RANK') == '1':\n    exec({code!r})\n"
    (site / "sitecustomize.py").write_text(text)
    path = os.pathsep.join([str(site), str(ROOT)])
    return run_train(folder / "out", *toy(folder / "run", "--workers", 2), PYTHONPATH=path)
