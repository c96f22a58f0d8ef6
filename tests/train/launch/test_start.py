"""The same run, however it is launched, killed and resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.support.listening import is_loopback, listening
from tests.support.train_commands import Command, run_train, start_train, toy, wait_for, weights_of

SLOW_STEPS = ("--config.step-s", 0.02, "--train.steps", 60, "--train.checkpoint.every", 7, "--config.dropout", 0.2)
"""60 steps of 40 ms: time enough to be killed in."""
SLOW_READING = ("--config.wait-s", 0.1)
"""For those that are to be asked to stop: steps of 440 ms, so that the end is far away, however late the signal."""


def waits_after(step: int) -> tuple[object, ...]:
    """For those that are to be killed: they wait after a step, and go on when resumed without it."""
    return ("--config.last-slot", 4 * step)


def finish(folder: Path, run: Path, *options: object) -> str:
    """Train to the end; the hash of what comes of it."""
    done = run_train(folder, *toy(run, *options))
    assert done.wait() == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(run / "pretrained_model")
    return weights_of(run)


def steps_done(run: Path) -> int:
    """Of the newest line."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def await_progress(command: Command) -> None:
    """Until it trains."""
    wait_for(lambda: "samples/s" in command.stderr or command.process.exitcode is not None)


def close(one: Path, two: Path) -> None:
    """Exported weights are equal but for the last bits."""
    first, second = (load_file(run / "pretrained_model" / "weights.safetensors") for run in (one, two))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken ü")
    finish(folder / "out", folder / "run", *SLOW_STEPS)
    return folder / "run"


@pytest.mark.parametrize("asynchronous", ["--train.checkpoint.asynchronous", "--train.checkpoint.no-asynchronous"])
def test_killed_again_and_again_and_resumed_it_is_the_same(unbroken: Path, tmp_path: Path, asynchronous: str) -> None:
    chance = random.Random(asynchronous)
    run = tmp_path / "a run ü"
    kills = 0
    while kills < 3:
        command = start_train(
            tmp_path / f"out{kills}", *toy(run, *SLOW_STEPS, *waits_after(15 * kills + 15), asynchronous)
        )
        await_progress(command)
        time.sleep(chance.uniform(0.0, 0.4))
        command.send(signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL
        kills += 1
    assert 0 < steps_done(run) < 60
    assert finish(tmp_path / "out", run, *SLOW_STEPS, asynchronous) == weights_of(unbroken)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on_later(unbroken: Path, tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    command = start_train(tmp_path / "out", *toy(run, *SLOW_STEPS, *SLOW_READING))
    wait_for(lambda: steps_done(run) >= 4)
    command.send(number)
    assert command.wait() == 1
    assert command.stdout == "" and not command.errors and "Traceback" not in command.stderr
    step = int((run / "checkpoints" / "last").read_text().removeprefix("step-"))
    assert f"interrupted at step {step}; the same command continues" in command.stderr
    assert finish(tmp_path / "out2", run, *SLOW_STEPS) == weights_of(unbroken)


def test_asked_to_make_room_it_ends_with_the_status_for_that(unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start_train(tmp_path / "out", *toy(run, *SLOW_STEPS, *SLOW_READING))
    wait_for(lambda: steps_done(run) >= 4)
    command.send(signal.SIGUSR1)
    assert command.wait() == 75
    step = int((run / "checkpoints" / "last").read_text().removeprefix("step-"))
    assert not command.errors and command.stderr.splitlines()[-1].startswith(f"interrupted at step {step}; ")
    assert finish(tmp_path / "out2", run, *SLOW_STEPS) == weights_of(unbroken)


@pytest.mark.parametrize("workers", [1, 2])
def test_when_the_hours_are_over_it_ends_with_a_checkpoint(unbroken: Path, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    options = [*SLOW_STEPS, *SLOW_READING, "--workers", workers]
    command = start_train(tmp_path / "out", *toy(run, *options, "--max-hours", 4 / 3600))
    assert command.wait() == 75, command.stderr
    step = int((run / "checkpoints" / "last").read_text().removeprefix("step-"))
    assert step < 60 and not command.errors and f"interrupted at step {step}; " in command.stderr
    finish(tmp_path / "out2", run, *SLOW_STEPS)
    close(run, unbroken)


def test_two_ranks_killed_go_on_as_one(unbroken: Path, tmp_path: Path) -> None:
    """The launcher dies first; its ranks must not outlive it."""
    run = tmp_path / "run ü"
    command = start_train(tmp_path / "out", *toy(run, *SLOW_STEPS, *waits_after(50), "--workers", 2))
    wait_for(lambda: (run / "checkpoints" / "step-00000007").exists())
    ranks = children_of(command)
    assert len(ranks) == 2
    command.send(signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks))
    assert 0 < steps_done(run) < 60
    finish(tmp_path / "out2", run, *SLOW_STEPS)
    close(run, unbroken)


def test_a_rank_that_dies_is_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*SLOW_STEPS, *waits_after(50), "--workers", 2, "--max-failures", 0]
    command = start_train(tmp_path / "out", *toy(run, *options))
    wait_for(lambda: steps_done(run) >= 2)
    ranks = {rank: Path(f"/proc/{rank}/environ").read_bytes().split(b"\0") for rank in children_of(command)}
    os.kill(next(rank for rank, variables in ranks.items() if b"RANK=1" in variables), signal.SIGKILL)
    assert command.wait() == 1
    assert "Traceback" not in command.stderr
    (line,) = command.errors
    assert "rank 1 was ended by SIGKILL" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "microbatches of 2: take a smaller --train.microbatch "),
        (("--train.microbatch-seconds", 3), "microbatches of 3 s: take a smaller --train.microbatch-seconds "),
    ],
)
def test_out_of_memory_names_the_microbatch(tmp_path: Path, options: tuple[object, ...], named: str) -> None:
    done = run_train(tmp_path, *toy(tmp_path / "run", "--config.allocate", 10**15, *options))
    assert done.wait() == 1
    (error,) = done.errors
    assert f"out of memory with {named}" in error


def test_two_ranks_stop_together(unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start_train(tmp_path / "out", *toy(run, *SLOW_STEPS, *SLOW_READING, "--workers", 2))
    wait_for(lambda: steps_done(run) >= 4)
    command.send(signal.SIGINT)
    assert command.wait() == 1
    step = int((run / "checkpoints" / "last").read_text().removeprefix("step-"))
    assert command.stderr.splitlines()[-1] == f"interrupted at step {step}; the same command continues from there"
    finish(tmp_path / "out2", run, *SLOW_STEPS)
    close(run, unbroken)


def test_a_torchrun_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run_train(tmp_path / "out", *toy(tmp_path / "run", "--workers", 2, "--launch", "torchrun"))
    assert done.process.exitcode == 2 and not (tmp_path / "run").exists()
    (line,) = done.errors
    assert "none has started this process" in line and "--launch processes" in line


def children_of(command: Command) -> list[int]:
    """Processes it has started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == command.process.pid:
                found.append(int(folder.name))
    return found


# --- Ray ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("two")
    finish(folder / "out", folder / "run", *SLOW_STEPS, "--workers", 2)
    return folder / "run"


@pytest.mark.slow
def test_one_rank_of_any_launcher_is_the_same_as_in_process(unbroken: Path, tmp_path: Path) -> None:
    for launcher in ("processes", "ray"):
        run = tmp_path / launcher
        assert finish(tmp_path / f"{launcher}-out", run, *SLOW_STEPS, "--launch", launcher) == weights_of(unbroken)


@pytest.mark.slow
def test_ray_starts_a_dead_worker_again_and_ends_the_same(two_ranks: Path, unbroken: Path, tmp_path: Path) -> None:
    close(two_ranks, unbroken)
    run = tmp_path / "run ü"
    command = start_train(tmp_path / "out", *toy(run, *SLOW_STEPS, "--workers", 2, "--launch", "ray"))
    wait_for(lambda: (run / "checkpoints" / "step-00000014").exists(), timeout=150)
    rank_zero = int((run / ".lock").read_text().split()[1])
    os.kill(rank_zero, signal.SIGKILL)
    assert command.wait(200) == 0, command.stderr
    assert "going on from step " in command.stderr
    assert int((run / ".lock").read_text().split()[1]) != rank_zero
    assert weights_of(run) == weights_of(two_ranks)
    assert not (run / "logs" / "ray").exists()


@pytest.mark.slow
def test_ranks_of_a_private_ray_open_no_store(tmp_path: Path) -> None:
    """What they open besides Ray's own ports, which ask for its token, is on loopback."""
    run = tmp_path / "run"
    options = [*SLOW_STEPS, "--train.steps", 100_000, "--workers", 2, "--launch", "ray"]
    command = start_train(tmp_path / "out", *toy(run, *options))
    wait_for(lambda: steps_done(run) >= 2, timeout=150)
    rank_zero = int((run / ".lock").read_text().split()[1])
    places = listening({rank_zero})
    assert len([address for address, _ in places if is_loopback(address)]) >= 3  # gloo
    for address, port in places:
        if not is_loopback(address):
            with pytest.raises(dist.DistError):
                dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=3))
    command.send(signal.SIGTERM)
    assert command.wait(150) == 1


@pytest.mark.slow
def test_ray_stops_after_a_checkpoint_and_says_what_no_try_mends(unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*SLOW_STEPS, "--train.checkpoint.every", 1000]
    command = start_train(tmp_path / "out", *toy(run, *options, "--launch", "ray"))
    wait_for(lambda: steps_done(run) >= 2, timeout=150)
    command.send(signal.SIGINT)
    assert command.wait(150) == 1
    step = int((run / "checkpoints" / "last").read_text().removeprefix("step-"))
    assert 2 <= step < 60 and f"the newest checkpoint is of step {step}; the same command continues" in command.stderr
    assert finish(tmp_path / "out2", run, *options) == weights_of(unbroken)
    bad = ["--config.bad-loss", *range(40), "--train.guard.abort-after", 2, "--launch", "ray"]
    failed = run_train(tmp_path / "out3", *toy(tmp_path / "bad", *bad))
    assert failed.wait(150) == 2 and "Traceback" not in failed.stderr
    (line,) = failed.errors
    assert "2 steps in a row" in line
