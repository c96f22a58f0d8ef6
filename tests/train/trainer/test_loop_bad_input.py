"""What a trainer cannot do with the settings of a task: one line and exit status 2, by the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.train_commands import run_train, toy


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("toy-adversary", ["--train.microbatch", 1], "take a microbatch of at least 2 samples (--train.microbatch)"),
        ("toy-adversary", ["--config.late-head", 100], "from step 100 on, and the training has 8 steps"),
        ("toy-adversary", ["--workers", 3], "3 ranks with microbatches of 4 cannot share a global batch of 16"),
        (
            "toy-adversary",
            ["--train.parallel.compile"],
            "a training with an adversary cannot be compiled: take --train.parallel.no-compile",
        ),
        ("toy", ["--lora.match", "features"], "only layers that this task does not train, such as features"),
        ("toy", ["--lora.match", "nothing"], "finds no layer"),
        ("toy", ["--lora.match", "("], "regular expression"),
        ("toy", ["--lora.also-train", "head"], "lora.also_train is given without lora.match"),
        (
            "toy",
            ["--lora.match", "linear", "--lora.also-train", "nothing"],
            "--lora.also-train 'nothing' finds no parameter",
        ),
    ],
)
def test_it_is_one_line(tmp_path: Path, task: str, options: list[object], words: str) -> None:
    done = run_train(tmp_path / "out", *toy(tmp_path / "run", *options, task=task))
    assert done.process.exitcode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    # Settings that make no sense are said by the parser of the command line, in a box.
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert len(done.errors) <= 1
