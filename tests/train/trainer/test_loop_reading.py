"""Reading processes and the signals that end a training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

PROGRAM = """
import os, signal, sys
from pathlib import Path
from tests.support import toy_task
from tests.support.training import recipe, start, trainer_of
from train.trainer.port import Interrupted


class Task(toy_task.ToyTask):
    def loss(self, module, batch, **about):
        if 4 * 4 in batch["slot"].tolist():
            os.killpg(os.getpid(), signal.SIGTERM)
        return super().loss(module, batch, **about)


os.setsid()
path = Path(sys.argv[1])
chosen = recipe({"step_s": 0.02, "dropout": 0.1}, steps=40, num_workers=1)
start(path, chosen)
trainer = trainer_of(path, chosen, task=Task(chosen.config, "none", path))
try:
    trainer.fit()
except Interrupted as end:
    trainer.close()
    print(end)
"""


def test_a_signal_to_the_whole_group_does_not_take_the_readers_first(tmp_path: Path) -> None:
    """As torchrun and cluster schedulers send it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "interrupted at step 6" in done.stdout  # launched before the signal of step 5 was known
    assert (tmp_path / "run/checkpoints/step-00000006").is_dir()
