"""Training loop: steps, accumulation, clipping, averaging, guards, and when to log, validate and checkpoint.

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
"""Seconds between two questions to the launcher whether it will end the training early; every other step where steps
take longer."""


class Trainer:
    """One rank of a training. Every rank makes one, and all call the same methods in the same order.

    Args:
        task: Model to train, with its data and loss.
        config: Settings of the trainer.
        run: Folder that the training fills, and from whose newest checkpoint it continues.
        port: Place of the rank among the ranks, and its launcher.

    Attributes:
        step: Number of steps that are done.

    Raises:
        ValueError: The ranks cannot share the batch, the device or a package is missing, or there is nothing to train.
    """

    def __init__(self, task: Task, config: TrainConfig, run: RunFolder, port: Port) -> None:
        self.task, self.config, self.port = task, config, port
        self.step = 0
        # Refuse what can be refused before the model is built, which may take minutes.
        self.accumulation = config.accumulation(port.world)
        self.device = choose_device(config.parallel, port.local_rank)
        check_online(config.log)
        # The model. The exporter copies it first, since moving, wrapping and sharding change it.
        built = _built(task)
        self.exporter = Exporter(built, port.rank)
        self.module = parallelise(built, config.parallel, self.device, port.world)
        # The parts of a step. They must be made after the wrapping: sharding replaces the parameters.
        self.parameters = trainable_parameters(bare(self.module))
        self.optimizer = make_optimizer(self.module, config.optimizer)
        self.ema = Ema(self.parameters, config.ema)
        self.backward = Backward(task, self.module, config, self.device, port.world)
        self.guard = SkipGuard(config.guard)
        self.clock = Throughput(self.device)
        # Resume from the newest checkpoint; everything below needs to know the step.
        self.checkpoints = Checkpoints(
            run.checkpoints, config.checkpoint, port.rank, port.world, config.parallel.timeout_s
        )
        self._resume()
        # The data. A batch of the loader is one microbatch for every rank, and `accumulation` of them make a step, so
        # the step has the same slots for any number of ranks.
        self.loader = task.loader(
            global_batch=config.microbatch * port.world,
            seed=config.seed,
            rank=port.rank,
            world=port.world,
            num_workers=config.num_workers,
        )
        self.loader.pin_memory = self.device.type == "cuda"
        self.loader.load_state_dict({"slots": self.step * config.global_batch})
        # The records: figures on rank 0, and validations that an earlier start left undone.
        self.tracker: Tracker | None = None
        if port.rank == 0:
            self.tracker = Tracker(run.metrics, run.tensorboard, config.log, self.step, run.path.name)
        self.validations = Validations(run, config.validation, port.rank, self._log_validation)
        self.validations.resume(self.step)
        # State that is in no checkpoint: notices, the reading processes, sums for the next line.
        self._stop = StopRequest()
        self._ask, self._asked_at = True, 0.0
        self._reading: Iterator[Batch] = iter(())
        self._sums: Counter[str] = Counter()  # over the samples since the last line, without skipped steps
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
        # From here to the end a first SIGTERM or SIGINT only sets a flag, which the next step shares among the ranks.
        with self._stop:
            batches = self._rehearsed()
            while self.step < self.config.steps:
                with self.clock.step():
                    stop, save = self._train_step(batches)
                self.step += 1
                self._after_step(stop, save)
                # Every rank has the same flag, and `_after_step` has written the checkpoint: all end at the same step.
                if stop:
                    raise Interrupted(self.step)
        # The last checkpoint must be whole before the weights are exported.
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
        """End the reading processes, the background writer and a running validation; called after errors, too."""
        if isinstance(self._reading, Generator):
            self._reading.close()
        self.validations.close()
        if self.tracker is not None:
            self.tracker.close()
        self.checkpoints.close()

    def _rehearsed(self) -> Iterator[Batch]:
        """Batches of this rank, after a backward pass over the first one whose gradient is dropped.

        DDP lays out its buckets anew after its first backward pass, and with them the order of its sums. Thus a resumed
        run sums in the same order as an unbroken one. A parameter without a gradient shows here, too, on any number of
        ranks.
        """
        self._reading = iter(self.loader)
        # The reading processes start with the first batch. Ctrl-C and schedulers signal the whole process group, and
        # the readers must outlive that: the step under way needs their batches.
        with unsignalled():
            first = next(self._reading)
        self.backward(first, self.step, sync=True)
        if idle := [name for name, parameter in self.parameters.items() if parameter.grad is None]:
            raise ValueError(
                f"the loss does not depend on {', '.join(idle)}: the task must freeze what it does not train"
            )
        self.optimizer.zero_grad(set_to_none=True)
        # The rehearsal is no step: it must not count in the first figures.
        self.clock.restart()
        return itertools.chain([first], self._reading)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _train_step(self, batches: Iterator[Batch]) -> tuple[bool, bool]:
        """Do one update from all microbatches. Returns (stop after it, write a checkpoint), equal on every rank."""
        # Forward and backward pass, microbatch by microbatch; gradients are exchanged in the last one only.
        microbatches: list[Batch] = []
        losses: list[Losses] = []
        for index in range(self.accumulation):
            with self.clock.waiting():
                batch = next(batches)
            microbatches.append(batch)
            losses.append(self.backward(batch, self.step, sync=index == self.accumulation - 1))
        # float() waits for the device: the time of a step ends with its result.
        norm = float(gradient_norm(self.parameters.values()))
        # Preemption takes two steps, since the launcher may answer only when every rank asks. A step in which the
        # question is due by the clock of any rank sets `_ask` on all of them; in the next step all ask, and share the
        # answer.
        asked = self._ask and self.port.preempting()
        flags = torch.tensor([self._stop.requested, asked, self._due()], dtype=torch.float64, device=self.device)
        # One exchange for the sums of the losses and the flags: after it, every rank knows the same.
        sums = torch.stack([torch.cat([part[name] for part in losses]).double().sum() for name in losses[0]])
        *totals, stop, preempting, due = over_ranks(torch.cat([sums, flags]))
        self._ask = due > 0
        total = dict(zip(losses[0], totals, strict=True))
        # Update or skip. Every rank has the same sums and the same norm, and so decides the same.
        if math.isfinite(total["loss"]) and math.isfinite(norm):
            self._update(norm)
            # Logged as means over the samples: the norm belongs to the whole batch, hence the factor.
            self._sums.update(total | {"gradient_norm": norm * self.config.global_batch})
            self._counted += self.config.global_batch
        else:
            what = "gradient" if math.isfinite(total["loss"]) else "loss"
            trained = list(self.parameters.values())
            self._skip(what, self.backward.bad_samples(what, self.step, microbatches, losses, trained))
        self.optimizer.zero_grad(set_to_none=True)
        return stop > 0, preempting > 0

    def _due(self) -> bool:
        """Whether it is time to ask the launcher again, by the clock of this rank; the ranks agree before they ask."""
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
        """Record a skipped step, which leaves weights, moments and averages as they are."""
        # First the record, since the guard may end the training.
        if self.tracker is not None:
            self.tracker.skipped(self.step + 1, what, keys)
        self.guard.skipped(self.step + 1, what, keys)

    # --- between steps ------------------------------------------------------------------------------------------------

    def _after_step(self, stop: bool, save: bool) -> None:
        config, step = self.config, self.step
        last = step == config.steps
        # Figures, also after the last step.
        if last or step % config.log.every == 0:
            self._log()
        # Validation, before the checkpoint: a training killed between the two resumes earlier and submits it again.
        if config.validation.every and (last or step % config.validation.every == 0):
            self.validations.submit(step, functools.partial(self._write, self._averaged()))
        self.validations.poll()
        # Checkpoint: at its interval, at the end, and when the training will be ended early. The last one is waited
        # for.
        if last or stop or save or step % config.checkpoint.every == 0:
            self.checkpoints.save(step, self._state(), block=stop or last)
            self.port.report(self._figures)
        self.checkpoints.poll()

    def _log(self) -> None:
        """Log means over the samples, rates and times since the last line, or since a resume. Collective."""
        config = self.config
        means = {name: value / self._counted for name, value in self._sums.items()}
        self._sums, self._counted = Counter(), 0
        speed = self.clock.interval(config.global_batch)
        rate = self._learning_rate(self.step - 1)
        figures = {"epoch": self.loader.epoch, **means, "learning_rate": rate, **speed, "skipped": self.guard.total}
        self._figures = figures
        # All ranks took part in the sums; rank 0 writes them.
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
        # The tensors of the state are those of the training: loading fills the weights, moments and averages in place.
        state = self._state()
        self.checkpoints.load(newest, state)
        progress = state["progress"]
        if progress["step"] != newest:
            raise ValueError(
                f"checkpoint of step {newest} says that it is of step {progress['step']}: take another RUN"
            )
        self.step = progress["step"]
        self.guard.total, self.guard.in_a_row = progress["skipped"], progress["skipped_in_a_row"]
        log.info("going on from step %d", self.step)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(step, self.config.steps, self.config.optimizer, self.config.schedule)


def _built(task: Task) -> nn.Module:
    """Module of a task with its first weights, in training mode."""
    module = task.build().train()
    wrong = [name for name, p in trainable_parameters(module).items() if p.dtype != torch.float32]
    assert not wrong, f"trained weights are kept in float32: {', '.join(wrong)} are not"
    return module
