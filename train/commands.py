"""The commands of `python -m train` beside the trainings: each a function whose arguments are its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

Run = Annotated[str, tyro.conf.arg(help="Folder of the run.")]
Parent = Annotated[int | None, tyro.conf.arg(help="End when this process ends, and leave the machine to it.")]


def validate(run: Run, step: Annotated[int, tyro.conf.arg(help="Whose weights.")], parent: Parent = None) -> str:
    """Run the inference pipeline of a step's weights on held-out clips. A training does it by itself, beside itself."""
    from train.run_folder import RunFolder
    from train.validation import run_validation
    from train.worker import data_of

    folder = RunFolder.open(run)
    return str(run_validation(folder, step, data_of(folder), parent))


def overview(run: Run) -> str:
    """Write RUN/index.html: settings, curves, newest validation, where data and weights come from."""
    from train.overview import write_overview
    from train.run_folder import RunFolder

    folder = RunFolder.open(run)
    write_overview(folder.path)
    return str(folder.overview)


def worker(run: Run, parent: Parent = None) -> None:
    """Be one rank of an existing run under torchrun. The other commands start it, and say the result."""
    from train.torchrun import run_rank

    run_rank(Path(run), parent)
