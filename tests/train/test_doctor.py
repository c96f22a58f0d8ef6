"""What the doctor says of a training is what the training then takes; it leaves nothing and says what does not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import toy_adversary, toy_task
from tests.support.small_disk import run_with_mounts
from tests.support.train_commands import ROOT, SITE, Command, run_train, start_train, toy, wait_for
from tests.support.training import recipe, start, trainer_of
from train.config import CheckpointConfig, LoraConfig, ValidationConfig
from train.doctor.examination import Disk, Examination, _disk, _disk_problems, _memory_problems
from train.doctor.footprint import Footprint, footprint
from train.doctor.measurement import Room, folder_bytes
from train.recipe import Recipe, make_task, recipes_of
from train.trainer.average import Ema
from train.trainer.checkpoint import Checkpoints, training_state
from train.trainer.learner import Learner

# --- what is counted --------------------------------------------------------------------------------------------------


def test_a_tiny_task_has_checkpoints_of_the_size_that_is_counted(tmp_path: Path) -> None:
    """Real files, with what the format adds to each tensor."""
    chosen = recipes_of("audio2mesh")["tiny"]()
    task = make_task("audio2mesh", chosen.config, "none", tmp_path / "task")
    counted = footprint(task, chosen)
    learner = Learner(task.build(), chosen.train.optimizer, chosen.train.schedule, chosen.train.steps)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig())
    checkpoints.save(1, training_state(learner, Ema(learner, chosen.train.ema)), block=True)
    checkpoints.close()
    assert counted.checkpoint_bytes == pytest.approx(folder_bytes(tmp_path / "checkpoints"), rel=0.01)
    assert counted.trained == sum(p.numel() for p in learner.parameters.values()) == 1_224_476


@pytest.mark.parametrize(
    "chosen",
    [
        recipe(),
        recipe(ema={"decay": 0.0}),
        dataclasses.replace(recipe(), lora=LoraConfig(match="linear", rank=3, also_train="head")),
        recipe(base=toy_adversary.tiny()),
    ],
    ids=["plain", "no averages", "LoRA", "adversary"],
)
def test_the_parts_are_those_of_a_real_trainer(tmp_path: Path, chosen: Recipe) -> None:
    start(tmp_path, chosen)
    trainer = trainer_of(tmp_path, chosen)
    counted = footprint(trainer.task, chosen)
    learners = [learner for learner in (trainer.learner, trainer.critic) if learner is not None]
    trained = [p for learner in learners for p in learner.parameters.values()]
    moments = [v for learner in learners for state in learner.optimizer.state.values() for v in state.values()]
    modules = [learner.module for learner in learners]
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    trainer.close()
    assert counted.weights_bytes == size_of(weights)
    assert counted.gradients_bytes == size_of(trained) and counted.trained == sum(p.numel() for p in trained)
    assert counted.moments_bytes == size_of(moments)
    assert counted.averages_bytes == size_of(list(trainer.ema.state().values()))


def size_of(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_shards_are_shared_out_and_the_checkpoint_stays() -> None:
    """Frozen features [8, 6] and [8], two blocks of [8] [8] [8, 8] [8], head [1, 8] and [1], a buffer."""
    one = recipe(parallel={"strategy": "fsdp2"})
    task = make_task("toy", one.config, "none", Path("none"))
    whole, half = (footprint(task, one, world) for world in (1, 2))
    # A first dimension of 1 lies on one rank as a whole.
    assert whole.weights_bytes == 4 * (56 + 2 * 88 + 9 + 1) and half.weights_bytes == 4 * (28 + 2 * 44 + 9 + 1)
    assert whole.gradients_bytes == 4 * (2 * 88 + 9) and half.gradients_bytes == 4 * (2 * 44 + 9)
    assert half.averages_bytes == half.gradients_bytes and half.copy_bytes == whole.copy_bytes
    # The ranks of DDP hold all of it.
    plain = recipe()
    assert footprint(task, plain, 2) == footprint(task, plain, 1) == whole
    # Of several microbatches the gradients stay whole until the last one, unless each is exchanged.
    for accumulation, count in (("whole", 2 * 88 + 9), ("sharded", 2 * 44 + 9)):
        several = recipe(microbatch=1, parallel={"strategy": "fsdp2", "accumulation": accumulation})
        counted = footprint(task, several, 2)
        assert counted.gradients_bytes == 4 * count and counted.moments_bytes == half.moments_bytes
    # Two copies, each on two ranks: a rank holds what it holds of one copy on two.
    copies = recipe(microbatch=1, parallel={"strategy": "fsdp2", "shard_within": 2})
    assert footprint(task, copies, 4) == half


# --- the command ------------------------------------------------------------------------------------------------------


def doctor(folder: Path, run: Path, *options: object, **environment: str) -> Command:
    return run_train(folder, "doctor", *toy(run, *options), **environment)


def test_a_training_that_can_start(tmp_path: Path) -> None:
    """It is measured, in a folder that is gone afterwards; RUN is not made, and a run in it stays as it is."""
    run, place = tmp_path / "run", tmp_path / "tmp"
    place.mkdir()
    kept = ("--train.validation.every", 4, "--train.checkpoint.best", "validation/loss")
    done = doctor(tmp_path / "a", run, "--workers", 2, *kept, TMPDIR=str(place))
    assert done.process.exitcode == 0, done.stderr
    assert done.stdout.endswith("the training can start, and everything fits\n") and not done.errors
    assert not run.exists() and not list(place.iterdir())
    # With the same options it then trains; examined once more, it would go on, and other settings are refused.
    assert run_train(tmp_path / "b", *toy(run, "--train.checkpoint.keep", 1)).process.exitcode == 0
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.name != ".lock"}
    done = doctor(tmp_path / "c", run, "--json", "--train.steps", 20, TMPDIR=str(place))
    assert done.process.exitcode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["done"] == 8 and found["problems"] == [] and found["measured"]["steps"] == 3
    assert found["seconds"] == pytest.approx(12 * found["measured"]["step_s"])
    assert found["disk"]["checkpoint_bytes"] == pytest.approx(folder_bytes(run / "checkpoints"), rel=0.05)
    assert found["disk"]["export_bytes"] == folder_bytes(run / "pretrained_model") - trained_json(run)
    assert before == {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.name != ".lock"}
    done = doctor(tmp_path / "d", run, "--config.width", 16)
    assert done.process.exitcode == 2 and "config.width: 8 -> 16" in done.errors[0]


def trained_json(run: Path) -> int:
    return (run / "pretrained_model" / "training.json").stat().st_size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", 4], "4 ranks with microbatches of 2 cannot share a global batch of 4: take 1 or 2 ranks"),
        (["--workers", 2, "--launch", "local"], "--launch local is one process"),
        (["--data", "missing"], "there is no data set at "),
        (["--config.features", "gone"], "there are no features in"),
        (["--lora.match", "nothing"], "nothing"),
        (["--run", "/dev/null"], "RUN /dev/null is no folder"),
        (["--train.parallel.device", "cuda"], "parallel.device is cuda"),
        (["--train.log.online", "trackio"], "log.online is trackio"),
    ],
)
def test_what_does_not_fit_is_the_error(tmp_path: Path, options: list[object], said: str) -> None:
    """The report comes first, on stdout; the one error line is its first problem, and the exit status 2."""
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = doctor(tmp_path / "out", tmp_path / "run", *options)
    assert done.process.exitcode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = done.errors
    assert said in line and line.removeprefix("error: ") in done.stdout
    assert done.stdout.endswith("the training cannot start as it is\n") and not (tmp_path / "run").exists()


def test_all_that_is_wrong_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    done = doctor(tmp_path / "out", tmp_path / "run", "--workers", 3, "--json")
    assert done.process.exitcode == 2
    found = json.loads(done.stdout)
    assert ["3 ranks" in found["problems"][0], "'mine.txt'" in found["problems"][1]] == [True, True]
    assert found["fitting_ranks"] == [1, 2] and found["needed"] is None


def test_help_and_wrong_words(tmp_path: Path) -> None:
    for index, (words, text) in enumerate(
        [
            (["--help"], "TASK RECIPE"),
            (["toy", "--help"], "Eight steps."),
            (["toy", "tiny", "--help"], "--json"),
        ]
    ):
        done = run_train(tmp_path / str(index), "doctor", *words)
        assert done.process.exitcode == 0 and text in done.stdout, done.stderr
    for index, (words, text) in enumerate([([], "name a task"), (["toyy"], "name a task"), (["toy", "huge"], "huge")]):
        done = run_train(tmp_path / f"wrong {index}", "doctor", *words)
        assert done.process.exitcode == 2 and text in done.errors[0]


def test_a_killed_or_interrupted_doctor_leaves_no_process(tmp_path: Path) -> None:
    place = tmp_path / "tmp"
    for number in (signal.SIGKILL, signal.SIGTERM):
        place.mkdir(exist_ok=True)
        arguments = toy(tmp_path / "run", "--config.step-s", 600)
        command = start_train(tmp_path / f"out {number}", "doctor", *arguments, TMPDIR=str(place))
        wait_for(lambda: list(place.glob("**/metrics.jsonl")))  # its first forward pass takes ten minutes
        children = children_of(command.process.pid)
        command.send(number)
        status = command.wait()
        wait_for(lambda children=children: not any(Path(f"/proc/{child}").exists() for child in children))
        assert status == (-9 if number == signal.SIGKILL else 1)
        if number != signal.SIGKILL:
            assert "interrupted" in command.stderr and not list(place.iterdir())
        shutil.rmtree(place, ignore_errors=True)
    assert not (tmp_path / "run").exists()


def children_of(process: int | None) -> list[str]:
    """Children of a process that compute (multiprocessing's tracker ends by itself)."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    children = [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert children
    return children


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    run = tmp_path / "disk"
    run.mkdir()
    arguments = " ".join(map(str, toy(run / "run")))
    done = run_with_mounts(
        f"mount -t tmpfs -o size=64k none '{run}' || exit 77; {sys.executable} -m train doctor {arguments}",
        env={"PYTHONPATH": os.pathsep.join([SITE, str(ROOT)]), "RAY_ADDRESS": ""},
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "of its disk are free" in line and "smaller --train.checkpoint.keep" in line


# --- what is judged ---------------------------------------------------------------------------------------------------

NEEDED = Footprint(
    parameters=0,
    trained=0,
    weights_bytes=4 * 10**9,
    gradients_bytes=4 * 10**9,
    moments_bytes=8 * 10**9,
    averages_bytes=0,
    copy_bytes=4 * 10**9,
    checkpoint_bytes=12 * 10**9,
)
FOUND = Examination(
    task="toy",
    recipe="tiny",
    run="run",
    data="none",
    steps=8,
    samples=4,
    microbatches="microbatches of 2",
    ranks=1,
    fitting_ranks=[1, 2],
    needed=NEEDED,
    disk=Disk(
        checkpoint_bytes=12 * 10**9,
        checkpoints=3,
        export_bytes=4 * 10**9,
        export_is_least=True,
        copies=3,
        free_bytes=53 * 10**9,
    ),
)


@pytest.mark.parametrize(
    ("gpu", "host", "took", "took_host", "said"),
    [
        (40, 64, 30, 20, None),
        (15, 64, None, None, "of a rank take 16 GB, and 15 GB of H are free"),
        (20, 64, 30, 20, "a rank takes 30 GB with microbatches of 2, and 20 GB of H are free: take a smaller"),
        (40, 16, 30, 20, "the ranks here take 20 GB with microbatches of 2, and 16 GB of this machine's memory"),
        (None, 64, None, 30, None),
        (None, 18, None, None, "a copy for exports 4 GB, and 18 GB of this machine's memory are free"),
        (None, 25, None, 30, "the ranks here take 30 GB with microbatches of 2"),
    ],
)
def test_memory_against_what_is_free(
    gpu: int | None, host: int, took: int | None, took_host: int | None, said: str | None
) -> None:
    room = Room(device="H", device_bytes=gpu and gpu * 10**9, host_bytes=host * 10**9)
    found = dataclasses.replace(
        FOUND, room=room, device_bytes=took and took * 10**9, host_bytes=took_host and took_host * 10**9
    )
    problems = list(_memory_problems(found, recipe().train))
    assert [said is not None] * len(problems) == [said is not None and said in problem for problem in problems]
    assert bool(problems) == (said is not None)


def test_disk_against_what_is_free() -> None:
    """Three checkpoints, pretrained_model, and three copies for validations: 52 GB."""
    assert not list(_disk_problems(FOUND))
    assert FOUND.disk is not None
    full = dataclasses.replace(FOUND, disk=dataclasses.replace(FOUND.disk, free_bytes=51 * 10**9))
    (problem,) = _disk_problems(full)
    assert "takes up to 52 GB, and 51 GB of its disk are free" in problem


@pytest.mark.parametrize(
    ("checkpoint", "done", "checkpoints", "copies"),
    [
        ({}, 0, 3, 10),  # keep 2, and the one that is being written
        ({"keep_validated": "none"}, 0, 3, 3),
        ({"keep_every": 250}, 0, 7, 10),
        ({"best": "validation/loss", "keep_validated": "best"}, 0, 7, 4),
        ({"every": 900, "keep": 9}, 0, 2, 10),  # so many are never written
        ({}, 700, 3, 3),
    ],
)
def test_disk_of_what_the_settings_keep(
    tmp_path: Path, checkpoint: dict[str, Any], done: int, checkpoints: int, copies: int
) -> None:
    train = dataclasses.replace(
        toy_task.tiny().train,
        steps=1000,
        checkpoint=CheckpointConfig(**{"every": 50} | checkpoint),
        validation=ValidationConfig(every=100),
    )
    disk = _disk(tmp_path / "run", train, NEEDED, None, done)
    assert (disk.checkpoints, disk.copies) == (checkpoints, copies)
