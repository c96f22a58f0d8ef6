"""`python -m train`: its help, its result, and one clear line for each thing that goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_disk import run_with_mounts
from tests.support.train_commands import ROOT, SITE, Command, run_train, start_train, toy, wait_for


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, a validation and an overview. Not to be changed: copy it first."""
    folder = tmp_path_factory.mktemp("finished ü")
    run = folder / "run"
    done = run_train(folder / "out", *toy(run, "--train.validation.every", 8), OVERVIEW="yes")
    assert done.wait() == 0, done.stderr
    assert done.stdout == f"{run}/pretrained_model\n"
    assert (run / "index.html").stat().st_size > 1000
    return run


def one_error(command: Command, status: int = 2) -> str:
    assert command.process.exitcode == status, command.stderr
    assert "Traceback" not in command.stderr and command.stdout == ""
    (line,) = command.errors
    return line


def test_a_run_leaves_everything(finished: Path) -> None:
    names = {entry.name for entry in finished.iterdir()}
    expected = "config.json task checkpoints metrics.jsonl validation weights pretrained_model index.html logs .lock"
    assert names == set(expected.split())
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if "validation/loss" in line] == [8]
    assert (finished / "validation" / "step-00000008" / "validation.json").exists()


def test_help_at_every_level_says_everything(tmp_path: Path) -> None:
    """On stdout, and without a task's libraries where no task is asked for."""
    for index, (arguments, expected) in enumerate(
        [
            (["--help"], ["audio2mesh", "audio2pose", "list", "doctor", "validate", "overview", "Exit status"]),
            (["toy", "--help"], ["tiny", "Eight steps."]),
            (
                ["toy", "tiny", "--help"],
                ["--data", "--run", "--launch", "--min-workers", "--train.parallel.strategy", "--config.dropout"],
            ),
            (["validate", "--help"], ["--run", "--step", "held-out"]),
            (["overview", "--help"], ["--run", "index.html"]),
        ]
    ):
        done = run_train(tmp_path / str(index), *arguments)
        assert done.process.exitcode == 0 and done.stderr == ""
        for text in expected:
            assert text in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train.microbatch", 3], "microbatch 3 must divide global_batch 4"),
        (["--workers", 3], "3 ranks with microbatches of 2 cannot share"),
        (["--workers", 4], "take 1 or 2 ranks, or --train.microbatch 1"),
        (["--train.optimizer.learning-rate", "nan"], "learning_rate must be a number above 0, not nan"),
        (["--workers", 2, "--launch", "local"], "--launch local is one process"),
        (["--min-workers", 1], "--min-workers is for --launch ray"),
        (["--run", "gs://bucket/run"], "it can be a folder, or s3://…"),
        (["--run", "s3://key:secret@bucket/run"], "was given with credentials"),
        (["--run", ""], "RUN is empty"),
        (["--data", ""], "--data is empty"),
        (["--run", "/proc/1/x"], "/proc"),
        (["--launch", "ray", "--ray-address", "127.0.0.1:9"], "no Ray cluster answers at 127.0.0.1:9"),
        (["--train.parallel.device", "cuda"], "device"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, options: list[object], said: str) -> None:
    done = run_train(tmp_path / "out", *toy(tmp_path / "run", *options))
    assert done.process.exitcode == 2, done.stderr
    assert "Traceback" not in done.stderr and said in " ".join(done.stderr.replace("│", " ").split())
    assert len(done.errors) <= 1


def test_an_unknown_recipe_is_one_line(tmp_path: Path) -> None:
    line = one_error(run_train(tmp_path / "out", "audio2mesh", "large", "--data", "x", "--run", tmp_path / "run"))
    assert "there is no recipe 'large' of audio2mesh, only tiny, paper" in line


def test_a_corrected_command_works(tmp_path: Path) -> None:
    """Whatever was wrong with the first one, it leaves nothing that the second is refused for."""
    run = tmp_path / "run"
    line = one_error(run_train(tmp_path / "a", *toy(run, "--data", tmp_path / "missing")))
    assert f"there is no data set at {tmp_path / 'missing'}" in line and not run.exists()
    assert "there are no features in " in one_error(run_train(tmp_path / "b", *toy(run, "--config.features", "gone")))
    assert "width 7 must be even" in one_error(run_train(tmp_path / "c", *toy(run, "--config.width", 7)))
    assert not run.exists()
    # What only the ranks find out comes after `prepare`.
    bad = ["--config.bad-loss", *range(40), "--train.guard.abort-after", 2]
    assert "2 steps in a row" in one_error(run_train(tmp_path / "d", *toy(run, *bad)))
    assert (run / "task" / "prepared.txt").exists()
    done = run_train(tmp_path / "e", *toy(run))
    assert done.process.exitcode == 0 and "started anew" in done.stderr
    known = json.loads((run / "pretrained_model" / "training.json").read_text())
    assert known["step"] == 8 and known["data_licences"] is None, "these data are no data set"
    assert known["weights"]["features"]["name"] == "drawn" and str(tmp_path) not in str(known)


def test_what_stands_in_the_run_is_one_line(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    line = one_error(run_train(tmp_path / "a", *toy(run, "--config.width", 16, "--train.seed", 1)))
    assert "config.width: 8 -> 16; train.seed: 0 -> 1" in line
    newest = run / "checkpoints" / "step-00000008"
    (newest / "__0_0.distcp").write_bytes(b"")
    done = run_train(tmp_path / "b", *toy(run, "--train.steps", 12))
    assert done.process.exitcode == 0 and "going on from step 4" in done.stderr
    said = "checkpoint step-00000008 is damaged (__0_0.distcp is not as it was written)"
    assert said in done.stderr and (run / "checkpoints" / "damaged-step-00000008").is_dir()
    for step in (8, 12):
        (run / "checkpoints" / f"step-{step:08d}" / ".metadata").write_bytes(b"")
    line = one_error(run_train(tmp_path / "c", *toy(run, "--train.steps", 16)))
    assert f"every checkpoint in {run / 'checkpoints'} is damaged (the newest: step-00000012, .metadata" in line
    (run / "config.json").write_text('{"format": 1,')
    assert "config.json is damaged" in one_error(run_train(tmp_path / "d", *toy(run)))
    assert "there is no run" in one_error(run_train(tmp_path / "e", "overview", "--run", tmp_path / "nowhere"))
    line = one_error(run_train(tmp_path / "f", "validate", "--run", finished, "--step", 7))
    assert "weights of step 7 are neither in" in line


def test_a_second_training_in_a_run_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start_train(tmp_path / "a", *toy(run, "--config.step-s", 0.2, "--train.steps", 1000))
    wait_for(lambda: (run / "metrics.jsonl").exists())
    line = one_error(run_train(tmp_path / "b", *toy(run, "--config.step-s", 0.2, "--train.steps", 1000)))
    assert f"a training runs in {run} (process {first.process.pid} on " in line
    first.send(signal.SIGKILL)
    first.wait()


def test_a_fault_of_ours_is_one_line_and_its_traceback_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_train(tmp_path / "out", *toy(run, "--config.width", -1))
    line = one_error(done, status=1)
    assert "rank 0 failed: " in line and str(run / "logs" / "traceback-0.txt") in line
    assert "Traceback" in (run / "logs" / "traceback-0.txt").read_text()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_goes_on_when_mended(tmp_path: Path) -> None:
    mount = tmp_path / "small ü"
    mount.mkdir()
    run = mount / "run"
    words = [sys.executable, "-m", "train", *map(str, toy(run, "--config.width", 400))]
    train = " ".join(f"'{word}'" for word in words)
    code = f"""
mount -t tmpfs -o size=9m none '{mount}' || exit 77
{train}; echo "first: $?"
mount -o remount,size=100m '{mount}'
{train}; echo "second: $?"
"""
    done = run_with_mounts(code, env={"PYTHONPATH": os.pathsep.join([SITE, str(ROOT)])})
    assert "first: 1" in done.stdout and "second: 0" in done.stdout, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot write the checkpoint of step" in line and "No space left on device" in line
    assert "run the same command again when it is mended" in line and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_under_a_torchrun_of_ones_own(finished: Path, tmp_path: Path, ranks: int) -> None:
    run = tmp_path / "run ü"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]

    def start(*options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*torchrun, "-m", "--", "train", *map(str, toy(run, *options))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([SITE, str(ROOT)])},
            check=False,
        )

    done = start("--train.validation.every", 8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{run}/pretrained_model"
    assert done.stdout.count("pretrained_model") == 1
    done = start("--config.width", 16)
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
