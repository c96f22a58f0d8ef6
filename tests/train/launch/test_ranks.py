"""Ranks as child processes: what they open, and how they end, together and with their launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.listening import is_loopback, listening, parent_of, process_tree
from tests.support.paths import ROOT
from tests.support.train_commands import SITE, Command, run_train, start_train, toy, wait_for, weights_of
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
    # Steps take all ranks.
    file = folder / "run" / "metrics.jsonl"
    wait_for(lambda: (file.exists() and '"loss"' in file.read_text()) or command.process.exitcode is not None)
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
    """Not even one that notices nothing, as it is stopped."""
    command, ranks = training(tmp_path, "--max-failures", 0)
    os.kill(ranks[1 - rank], signal.SIGSTOP)
    os.kill(ranks[rank], signal.SIGKILL)
    assert command.wait() == 1 and gone(ranks)
    (line,) = command.errors
    assert f"rank {rank} was ended by SIGKILL (out of memory?)" in line and "Traceback" not in command.stderr


def test_the_ranks_start_again_after_each_one_that_was_killed_and_end_the_same(tmp_path: Path) -> None:
    """One failure is allowed, and each that comes after a newer checkpoint is the first one again."""
    options = ["--train.steps", 60, "--train.checkpoint.every", 7, "--config.dropout", 0.2, "--workers", 2]
    unbroken = run_train(tmp_path / "out0", *toy(tmp_path / "unbroken", *options))
    assert unbroken.wait() == 0, unbroken.stderr
    run = tmp_path / "run"
    command = start_train(tmp_path / "out", *toy(run, *options, "--config.step-s", 0.05, "--max-failures", 1))
    killed: list[int] = []
    for step in (14, 35):
        name = f"step-{step:08d}"
        wait_for(lambda name=name: (run / "checkpoints" / name).exists() or command.process.exitcode is not None)
        killed += ranks_of(command)
        os.kill(killed[-1], signal.SIGKILL)
        wait_for(lambda ranks=killed: gone(ranks))
    assert command.wait() == 0, command.stderr
    assert not command.errors
    told = " was ended by SIGKILL (out of memory?); the ranks start again from the checkpoint"
    assert command.stderr.count(told) == 2
    assert command.stderr.count("(1 of at most 1 times without a newer one)") == 2
    assert "going on from step" in command.stderr
    assert weights_of(run) == weights_of(tmp_path / "unbroken")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_is_stopped_ends_all(tmp_path: Path, rank: int) -> None:
    """The other one ends by itself, and the launcher kills the one that is stopped."""
    command, ranks = training(tmp_path, "--max-failures", 0, "--train.parallel.silence-s", 3)
    os.kill(ranks[rank], signal.SIGSTOP)
    assert command.wait() == 1 and gone(ranks)
    (line,) = command.errors
    assert f"rank {rank} has given no sign of life for" in line and "it is stopped" in line
    assert (tmp_path / "run" / "logs" / f"collectives-rank-{1 - rank}.json").stat().st_size > 0


def test_a_rank_whose_reading_hangs_is_named(tmp_path: Path) -> None:
    """It beats, and the other one waits in a collective; by the timeout of that it is known who waits for whom."""
    options = ["--config.last-slot", 4 * 5 + 1, "--train.parallel.timeout-s", 6, "--max-failures", 0, "--workers", 2]
    done = run_train(tmp_path / "out", *toy(tmp_path / "run", *options))
    assert done.process.exitcode == 1
    (line,) = done.errors
    assert "rank 1 has waited for the data of step 6 for" in line and "and the others for it" in line


@pytest.mark.slow
def test_memory_that_does_not_suffice_is_tried_once_more(tmp_path: Path) -> None:
    done = run_train(tmp_path / "out", *toy(tmp_path / "run", "--config.allocate", 10**15, "--workers", 2))
    assert done.process.exitcode == 1
    (line,) = done.errors
    assert "out of memory with microbatches of 2" in line
    assert done.stderr.count("the ranks start again from the beginning") == 1


def test_a_notice_is_passed_on_and_asks_to_be_started_again(tmp_path: Path) -> None:
    """SIGUSR1 and, at the end of the time, SIGTERM: to all processes, as SLURM sends them."""
    command, ranks = training(tmp_path)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        for process in (*ranks, command.process.pid):
            assert process is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
    assert command.wait() == 75 and gone(ranks)
    assert command.stderr.splitlines()[-1].startswith(f"interrupted at step {last_step(tmp_path / 'run')}; the same")


def test_a_notice_before_the_first_step_asks_for_the_same(tmp_path: Path) -> None:
    """Its ordinary effect is a death by the signal, also of a rank that is still loading its code."""
    command = start_train(tmp_path / "out", *toy(tmp_path / "run", *ENDLESS))
    wait_for(lambda: len(ranks_of(command)) == 2 or command.process.exitcode is not None)
    for process in (*ranks_of(command), command.process.pid):
        assert process is not None
        os.kill(process, signal.SIGUSR1)
    assert command.wait() == 75 and not command.errors
    assert "the same command continues" in command.stderr.splitlines()[-1]


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
