"""The training loop: steps, accumulation, clipping, averaging, guards, and when to log, validate and checkpoint.

It knows nothing about faces, files or launchers. Everything random is keyed, so that the state of a training is its
tensors and the number of steps done: a run that was killed and resumed ends with the same bits as an unbroken one.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.config import TrainConfig
from train.run.metrics import Tracker, check_online
from train.run.run_folder import RunFolder
from train.run.validation import Validations
from train.task import Batch, Losses, Task
from train.trainer.backward import Backward, SkipGuard
from train.trainer.checkpoint import Checkpoints, training_state
from train.trainer.parallel import bare, choose_device, gradient_norm, over_ranks, parallelise
from train.trainer.port import Interrupted, Port, StopRequest, unsignalled
from train.trainer.throughput import Throughput
from train.trainer.update import (
    Ema,
    Exporter,
    clip_gradient,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    trainable_parameters,
)

log = logging.getLogger(__name__)

ASK_EVERY_S = 1.0
"""From one question to the launcher, whether the run will be cut short, to the next; every other step where steps take
longer."""


class Trainer:
    """One rank of a training. All ranks make one and call the same methods.

    Args:
        task: What is trained.
        config: How.
        run: The folder that it fills, and from whose newest checkpoint it goes on.
        port: The rank's place, and its launcher.

    Attributes:
        step: Steps that are done.

    Raises:
        ValueError: The ranks cannot share the batch, the device or a package is missing, or nothing is to be trained.
    """

    def __init__(self, task: Task, config: TrainConfig, run: RunFolder, port: Port) -> None:
        self.task, self.config, self.port = task, config, port
        self.step = 0
        # Whatever can be refused without the model.
        self.accumulation = config.accumulation(port.world)
        self.device = choose_device(config.parallel, port.local_rank)
        check_online(config.log)
        # The model: a copy for the export first, since wrapping and sharding change it.
        built = _built(task)
        self.exporter = Exporter(built, port.rank)
        self.module = parallelise(built, config.parallel, self.device, port.world)
        # What a step needs, over the wrapped module.
        self.parameters = trainable_parameters(bare(self.module))
        self.optimizer = make_optimizer(self.module, config.optimizer)
        self.ema = Ema(self.parameters, config.ema)
        self.backward = Backward(task, self.module, config, self.device, port.world)
        self.guard = SkipGuard(config.guard)
        self.clock = Throughput(self.device)
        # Go on from the newest checkpoint; everything after this needs to know the step.
        self.checkpoints = Checkpoints(
            run.checkpoints, config.checkpoint, port.rank, port.world, config.parallel.timeout_s
        )
        self._resume()
        # The data: one microbatch of every rank at a time, `accumulation` of them a step: the same slots for any world.
        self.loader = task.loader(
            global_batch=config.microbatch * port.world,
            seed=config.seed,
            rank=port.rank,
            world=port.world,
            num_workers=config.num_workers,
        )
        self.loader.pin_memory = self.device.type == "cuda"
        self.loader.load_state_dict({"slots": self.step * config.global_batch})
        # What is written about it: figures on rank 0, and validations that an earlier start left undone.
        self.tracker: Tracker | None = None
        if port.rank == 0:
            self.tracker = Tracker(run.metrics, run.tensorboard, config.log, self.step, run.path.name)
        self.validations = Validations(run, config.validation, port.rank, self._log_validation)
        self.validations.resume(self.step)
        # What changes from step to step, and is in no checkpoint.
        self._stop = StopRequest()
        self._ask, self._asked_at = True, 0.0
        self._reading: Iterator[Batch] = iter(())
        self._sums: Counter[str] = Counter()  # over the samples since the last line, skipped steps left out
        self._counted = 0
        self._figures: dict[str, float] = {}

    def fit(self) -> None:
        """Train to the last step; its checkpoint is whole and its validation submitted when this returns.

        Raises:
            Interrupted: SIGTERM or SIGINT came; a checkpoint of the step is whole.
            NotFinite: Too many steps in a row had a loss or gradient that is not finite.
            OSError: A checkpoint or an export cannot be written.
        """
        if self.step >= self.config.steps:
            log.info("step %d of %d: there is nothing left to train", self.step, self.config.steps)
            return
        with self._stop:
            batches = self._rehearsed()
            while self.step < self.config.steps:
                with self.clock.step():
                    stop, save = self._train_step(batches)
                self.step += 1
                self._after_step(stop, save)
                if stop:
                    raise Interrupted(self.step)
        self.checkpoints.wait()

    def export(self, folder: Path) -> None:
        """Write the averaged weights into an empty folder. Collective; rank 0 writes."""
        self._write(self._averaged(), folder)

    def _averaged(self) -> nn.Module | None:
        return self.exporter.gather(self.module, self.ema)

    def _write(self, module: nn.Module | None, folder: Path) -> None:
        if module is not None:
            self.task.export(module, folder)

    def close(self) -> None:
        """End the reading processes, background writers and a validation that runs; also after an error."""
        if isinstance(self._reading, Generator):
            self._reading.close()
        self.validations.close()
        if self.tracker is not None:
            self.tracker.close()
        self.checkpoints.close()

    def _rehearsed(self) -> Iterator[Batch]:
        """The batches, after a backward of the first one that counts for nothing.

        DDP lays out its buckets anew after its first backward, and with them the order of its sums. This way a resumed
        run has the same order as an unbroken one. A parameter without a gradient shows here, too, on any number of
        ranks.
        """
        self._reading = iter(self.loader)
        with unsignalled():
            first = next(self._reading)
        self.backward(first, self.step, sync=True)
        if idle := [name for name, parameter in self.parameters.items() if parameter.grad is None]:
            raise ValueError(
                f"the loss does not depend on {', '.join(idle)}: the task must freeze what it does not train"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.restart()
        return itertools.chain([first], self._reading)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _train_step(self, batches: Iterator[Batch]) -> tuple[bool, bool]:
        """One update from all microbatches of the rank; whether to stop, and whether to checkpoint, on every rank."""
        # Forward and backward, microbatch by microbatch; gradients are exchanged in the last one only.
        microbatches: list[Batch] = []
        losses: list[Losses] = []
        for index in range(self.accumulation):
            with self.clock.waiting():
                batch = next(batches)
            microbatches.append(batch)
            losses.append(self.backward(batch, self.step, sync=index == self.accumulation - 1))
        norm = float(gradient_norm(self.parameters.values()))
        # Ask for notices. The launcher's question may wait for other ranks, so all ask at the same steps: a step whose
        # flags said that it is due is followed by one in which every rank asks.
        asked = self._ask and self.port.preempting()
        flags = torch.tensor([self._stop.requested, asked, self._due()], dtype=torch.float64, device=self.device)
        # One exchange: sums of the losses, and flags that then are alike on every rank.
        sums = torch.stack([torch.cat([part[name] for part in losses]).double().sum() for name in losses[0]])
        *totals, stop, preempting, due = over_ranks(torch.cat([sums, flags]))
        self._ask = due > 0
        total = dict(zip(losses[0], totals, strict=True))
        # Update or skip. Every rank has the same sums and the same norm, and so decides alike.
        if math.isfinite(total["loss"]) and math.isfinite(norm):
            self._update(norm)
            self._sums.update(total | {"gradient_norm": norm * self.config.global_batch})
            self._counted += self.config.global_batch
        else:
            what = "gradient" if math.isfinite(total["loss"]) else "loss"
            trained = list(self.parameters.values())
            self._skip(what, self.backward.bad_samples(what, self.step, microbatches, losses, trained))
        self.optimizer.zero_grad(set_to_none=True)
        return stop > 0, preempting > 0

    def _due(self) -> bool:
        """Whether the launcher was last asked long ago. The ranks' clocks differ, so they agree before they ask."""
        now = time.monotonic()
        if self._ask:
            self._asked_at = now
        return now - self._asked_at >= ASK_EVERY_S

    def _update(self, norm: float) -> None:
        clip_gradient(self.parameters.values(), norm, self.config.optimizer.max_gradient_norm)
        set_learning_rate(self.optimizer, self._learning_rate(self.step))
        self.optimizer.step()
        self.ema.update(self.step)
        self.guard.passed()

    def _skip(self, what: str, keys: list[str]) -> None:
        """Leave weights, moments and averages as they are."""
        if self.tracker is not None:
            self.tracker.skipped(self.step + 1, what, keys)
        self.guard.skipped(self.step + 1, what, keys)

    # --- between steps ------------------------------------------------------------------------------------------------

    def _after_step(self, stop: bool, save: bool) -> None:
        config, step = self.config, self.step
        last = step == config.steps
        # Figures.
        if last or step % config.log.every == 0:
            self._log()
        # Validation. Before the checkpoint: a run killed in between goes on from an earlier one and submits it again.
        if config.validation.every and (last or step % config.validation.every == 0):
            self.validations.submit(step, functools.partial(self._write, self._averaged()))
        self.validations.poll()
        # Checkpoint: when it is time, at the end, and when the run will be cut short.
        if last or stop or save or step % config.checkpoint.every == 0:
            self.checkpoints.save(step, self._state(), block=stop or last)
            self.port.report(self._figures)
        self.checkpoints.poll()

    def _log(self) -> None:
        """Means over the samples, rates and times since the last line; after a resume since that. Collective."""
        config = self.config
        means = {name: value / self._counted for name, value in self._sums.items()}
        self._sums, self._counted = Counter(), 0
        speed = self.clock.interval(config.global_batch)
        rate = self._learning_rate(self.step - 1)
        figures = {"epoch": self.loader.epoch, **means, "learning_rate": rate, **speed, "skipped": self.guard.total}
        self._figures = figures
        if self.tracker is None:
            return
        self.tracker.log(self.step, figures)
        left = timedelta(seconds=round((config.steps - self.step) * config.global_batch / speed["samples_per_s"]))
        log.info(
            "step %d/%d  loss %s  %.3g samples/s  data wait %.1f %%  %s left",
            self.step,
            config.steps,
            f"{means['loss']:.5g}" if means else "(all skipped)",
            speed["samples_per_s"],
            100 * speed["data_wait"],
            left,
        )

    def _log_validation(self, step: int, figures: dict[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.log(step, {f"validation/{name}": value for name, value in figures.items()})

    # --- state --------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        progress = {"step": self.step, "skipped": self.guard.total, "skipped_in_a_row": self.guard.in_a_row}
        return training_state(self.module, self.optimizer, self.ema) | {"progress": progress}

    def _resume(self) -> None:
        newest = self.checkpoints.latest()
        if newest is None:
            return
        state = self._state()
        self.checkpoints.load(newest, state)
        progress = state["progress"]
        self.step = progress["step"]
        self.guard.total, self.guard.in_a_row = progress["skipped"], progress["skipped_in_a_row"]
        log.info("going on from step %d", self.step)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(step, self.config.steps, self.config.optimizer, self.config.schedule)


def _built(task: Task) -> nn.Module:
    """The module of a task, in training mode."""
    module = task.build().train()
    wrong = [name for name, p in trainable_parameters(module).items() if p.dtype != torch.float32]
    assert not wrong, f"trained weights are kept in float32: {', '.join(wrong)} are not"
    return module
