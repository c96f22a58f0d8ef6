"""RUN/weights: exported weights of the steps that were validated, and which of them is the best.

A folder `step-00001000/` has what `pretrained_model/` has, so that it can be used in its place: to animate, to begin
another training with, to evaluate. `best` is a text file with the name of one of the folders.
"""

from __future__ import annotations

import difflib
import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from infer.weights.licences import DATA_LICENCES, TRAINING_FILE
from talkinghead.files.atomic import commit_folder, sweep, write_whole
from talkinghead.provenance import pretty_json
from train.config import CheckpointConfig
from train.run.metrics import read_metrics
from train.run.run_folder import RunFolder, folder_name, steps_in
from train.run.sinks import VALIDATION
from train.trainer.retention import Judged, best_step, removable_weights

log = logging.getLogger(__name__)

BEST = "best"


class KeptWeights:
    """Weights of a run that stay after their validation, and the figures by which the best step is found; on rank 0.

    Args:
        run: Folder of the run. Its `metrics.jsonl` ends at the step from which the training goes on.
        config: Which weights to keep, and by which figure the best is found.

    """

    def __init__(self, run: RunFolder, config: CheckpointConfig) -> None:
        self.run, self.config = run, config
        self._figures, self._validated = _logged(run.metrics, config.best)
        self._said = False
        # A kill may have come before the end of `keep`; what it left is finished here.
        if run.kept_weights.is_dir():
            sweep(run.kept_weights)
            self._settle()

    @property
    def figures(self) -> dict[int, float]:
        """Step → the figure that `checkpoint.best` names, of the steps whose validation is done; empty without one."""
        return {step: figure for step, figure in self._figures.items() if step in self._validated}

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures of a step, by the names that `metrics.jsonl` has for them: of its validation, or held-out."""
        if any(name.startswith(VALIDATION) for name in figures):
            self._validated.add(step)
        best = self.config.best
        if best is None:
            return
        if best in figures:
            self._figures[step] = figures[best]
        elif not self._said and any(name.split("/")[0] == best.split("/")[0] for name in figures):
            # A name that is wrong shows only now, and is no reason to end a training.
            self._said = True
            near = ", ".join(difflib.get_close_matches(best, figures, n=3, cutoff=0.0))
            log.warning("checkpoint.best is %s, and there is no such figure, but %s (see metrics.jsonl)", best, near)

    def keep(self, step: int, weights: Path) -> None:
        """Take over the weights of a step whose validation is done and noted: `weights` is moved away or removed.

        Args:
            step: Step that they are of.
            weights: Folder with them, on the same file system.

        Raises:
            OSError: RUN cannot be written.
        """
        if self.config.keep_validated == "none":
            shutil.rmtree(weights)
            return
        write_whole(weights / TRAINING_FILE, about_training(self.run, step))
        target = self.run.kept_weights / folder_name(step)
        # An earlier start got further than its newest checkpoint, and this step came again.
        self._remove(step)
        target.parent.mkdir(exist_ok=True)
        commit_folder(weights, target)
        self._settle()

    def best(self) -> int | None:
        """Step of the best weights that are kept; None without `checkpoint.best`, or without a figure."""
        return best_step(steps_in(self.run.kept_weights), self.config, self.figures)

    def _settle(self) -> None:
        """Name the best weights, and remove those that the settings do not keep."""
        # In this order: `best` never names weights that are gone.
        named, best = self.run.kept_weights / BEST, self.best()
        if best is None:
            named.unlink(missing_ok=True)
        elif not named.is_file() or named.read_text() != f"{folder_name(best)}\n":
            write_whole(named, f"{folder_name(best)}\n".encode())
            log.info("step %d is the best so far: %s %g", best, self.config.best, self.figures[best])
        for step in removable_weights(steps_in(self.run.kept_weights), self.config, Judged(figures=self.figures)):
            self._remove(step)

    def _remove(self, step: int) -> None:
        # Renamed first: a folder that is half removed must not pass for weights.
        folder = self.run.kept_weights / folder_name(step)
        if folder.is_dir():
            doomed = folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def about_training(run: RunFolder, step: int) -> bytes:
    """Content of `training.json` for weights of a step, without paths of this machine."""
    known = run.config.to_json()
    names = ("task", "recipe_name", "annotation", "weights", "libraries")
    about = {"step": step, DATA_LICENCES: run.data_sets.in_full().licences()}
    return pretty_json(about | {name: known[name] for name in names})


def _logged(metrics: Path, name: str | None) -> tuple[dict[int, float], set[int]]:
    """Values of a figure by step, and steps whose validation is done, as far as `metrics.jsonl` has them."""
    if name is None:
        return {}, set()
    found = read_metrics(metrics)
    validated = {step for curve in found.validation.values() for step in curve.steps.tolist()}
    curve = (found.training | {VALIDATION + short: curve for short, curve in found.validation.items()}).get(name)
    figures = {} if curve is None else dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))
    return figures, validated
