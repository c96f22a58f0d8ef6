"""Training loop: steps, accumulation, clipping, averaging, guards, and when to log, validate and checkpoint.

It knows nothing about faces, files or launchers. Everything random is keyed, so that the state of a training is its
tensors and the number of steps done: a run that was killed and resumed ends with the same bits as an unbroken one.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talkinghead.models.adapters.adapter_folder import ADAPTER
from talkinghead.models.running_statistics import RunningStatistics
from train.config import LoraConfig, TrainConfig
from train.run.kept_weights import KeptWeights
from train.run.metrics import Tracker
from train.run.run_folder import RunFolder
from train.run.sinks import VALIDATION, check_online, open_sinks
from train.run.validation import Validations
from train.run.validation_device import check_device
from train.task import Batch, Task
from train.trainer.adapter import Adaptation
from train.trainer.average import Ema, Exporter
from train.trainer.backward import Backward
from train.trainer.checkpoint import Checkpoints, training_state
from train.trainer.guard import NotFinite, RunningMedian, SkipGuard
from train.trainer.learner import Learner, trainable_parameters
from train.trainer.parallel import alone, check_covered, choose_device, parallelise, wrap
from train.trainer.port import Interrupted, Port, StopRequest
from train.trainer.precision import set_arithmetic
from train.trainer.reading import Noticed, Reading
from train.trainer.retention import Judged, is_due
from train.trainer.stepping import Launched, Stepping
from train.trainer.stored_checkpoints import checkpoint_folder
from train.trainer.throughput import Throughput
from train.trainer.watch import Watch

log = logging.getLogger(__name__)

ASK_EVERY_S = 1.0
"""Seconds between two questions to the launcher whether it will end the training early; every other step where steps
take longer."""
_PATIENCE_S = 10.0
"""Seconds in which a device must have finished a step whose record an error has left open."""


class Trainer:
    """One rank of a training. Every rank makes one, and all call the same methods in the same order.

    Args:
        task: Model to train, with its data and loss.
        config: Settings of the trainer.
        run: Folder that the training fills, and from whose newest checkpoint it continues.
        port: Place of the rank among the ranks, and its launcher.
        lora: Low-rank additions that are trained instead of the weights.

    Attributes:
        step: Number of steps that are done.

    Raises:
        ValueError: The ranks cannot share the batch, the device or a package is missing, or there is nothing to train.
    """

    def __init__(
        self, task: Task, config: TrainConfig, run: RunFolder, port: Port, lora: LoraConfig | None = None
    ) -> None:
        self.task, self.config, self.port = task, config, port
        self.step = 0
        # Refuse what can be refused before the model is built, which may take minutes.
        self.accumulation = config.accumulation(port.world)
        self.device = choose_device(config.parallel, port.local_rank)
        set_arithmetic(config.parallel)
        if port.rank == 0:
            check_device(config.validation, self.device, port.local_world)
        check_online(config.log)
        # The model. The exporter copies it first, since additions, moving, wrapping and sharding change it.
        built = _built(task)
        self.exporter = Exporter(built, port.rank)
        self.adaptation: Adaptation | None = None
        if lora is not None and lora.match is not None:
            self.adaptation = Adaptation(built, lora, config.seed, run.task)
        self.adversary = task.adversary()
        critic = None if self.adversary is None else self.adversary.build().train()
        if critic is not None:
            check_covered(config, "an adversary")
        if RunningStatistics(built):
            check_covered(config, "BatchNorm or spectral normalisation")
        # The parts of a step. They must be made after the wrapping: sharding replaces the parameters.
        self.module = parallelise(built, config.parallel, self.device, port.world, port.local_world)
        groups = () if self.adaptation else task.parameter_groups()  # they are of the weights
        self.learner = Learner(self.module, config.optimizer, config.schedule, config.steps, groups)
        self.critic: Learner | None = None
        if self.adversary is not None and critic is not None:
            wrapped = wrap(critic.to(self.device), self.device, port.world, config.parallel)
            self.critic = Learner(wrapped, self.adversary.optimizer, self.adversary.schedule, config.steps)
        self.ema = Ema(self.learner, config.ema)
        self.clock = Throughput(self.device)
        self.backward = Backward(
            task, self.learner, config, self.device, port.rank, port.world, self.clock, self.adversary, self.critic
        )
        self.guard, self.medians = SkipGuard(config.guard), RunningMedian(config.guard, self.device)
        # Resume from the newest checkpoint; everything below needs to know the step.
        folder = checkpoint_folder(run, first=port.local_rank == 0)
        self.checkpoints = Checkpoints(
            folder, config.checkpoint, port.rank, port.world, config.parallel.timeout_s, run.run_id
        )
        self._saved_at = time.monotonic()
        self._resume()
        # The data. The ranks take turns at the microbatches, and `accumulation` turns make a step, so the step has the
        # same microbatches for any number of ranks.
        self.reading = Reading(
            task.dataset(config.seed),
            config,
            rank=port.rank,
            world=port.world,
            pin_memory=self.device.type == "cuda",
            step=self.step,
        )
        # The records: figures on rank 0, weights that it keeps, and validations that an earlier start left undone.
        self.tracker: Tracker | None = None
        self.kept: KeptWeights | None = None
        if port.rank == 0:
            self.tracker = Tracker(run.metrics, self.step, open_sinks(run, config.log, self.step))
            for damaged in self.checkpoints.set_aside:
                self.tracker.damaged(self.step, damaged.folder, damaged.defect)
            self.kept = KeptWeights(run, config.checkpoint)
        self.validations = Validations(
            run, config.validation, port.rank, self._log_validation, self._keep, self.device, port.deadline
        )
        self.validations.resume(self.step)
        # State that is in no checkpoint: notices, and figures for the next line.
        self._stop, self._stopping, self._requeue, self._saving = StopRequest(), False, False, False
        self._ask, self._asked_in, self._asked_at = True, 0, 0.0
        self.watch = Watch(task, self.learner, self.critic, self.clock, config, run, port)
        self.stepping = Stepping(task, self.backward, self.ema, self.guard, self.medians, self.watch)
        self._open = deque[tuple[Launched, Noticed]]()  # steps whose figures are not read yet, two at most

    def fit(self) -> None:
        """Train to the last step; its checkpoint is whole and its validation submitted when this returns.

        Raises:
            Interrupted: SIGTERM, SIGINT or SIGUSR1 came, or the hours are over; a checkpoint of the step is whole.
            NotFinite: Too many steps in a row had a loss or gradient that is not finite.
            OSError: A checkpoint or an export cannot be written.
        """
        if self.step >= self.config.steps:
            log.info("step %d of %d: there is nothing left to train", self.step, self.config.steps)
            return
        self.watch.announce(self.step)
        # From here to the end a first signal only sets a flag, which the next step shares among the ranks.
        with self._stop:
            try:
                self._rehearse()
                while self.step < self.config.steps:
                    self.port.deadline.tick()
                    with self.watch.step(self.step + 1):
                        self._train_step()
                    self.port.progress.note(None)
                    self.step += 1
                    self._after_step()
                    # Every rank has the same flag, and `_after_step` has written the checkpoint: all end at the same
                    # step.
                    if self._stopping:
                        raise Interrupted(self.step, self._requeue)
            finally:
                # An error may come between the launch of a step and the reading of its figures.
                self._record_open()
        # The last checkpoint must be whole before the weights are exported.
        self.checkpoints.wait()

    def export(self, folder: Path) -> None:
        """Write the averaged weights into an empty folder. Collective; rank 0 writes."""
        self._write(self._averaged(), folder)

    def _averaged(self) -> nn.Module | None:
        return self.exporter.gather(self.module, self.ema, self.adaptation.lora if self.adaptation else None)

    def _write(self, module: nn.Module | None, folder: Path) -> None:
        if module is not None:
            self.task.export(module, folder)
            if self.adaptation is not None:
                self.adaptation.adapter(self.exporter.additions).write(folder / ADAPTER)

    def close(self) -> None:
        """End the reading processes, the background writer and a running validation; called after errors, too."""
        self.reading.close()
        self.validations.close()
        self.watch.close(self.step)
        if self.tracker is not None:
            self.tracker.close()
        self.checkpoints.close()

    def _rehearse(self) -> None:
        """Do a backward pass over the first batch, whose gradient is dropped.

        DDP lays out its buckets anew after its first backward pass, and with them the order of its sums. Thus a resumed
        run sums in the same order as an unbroken one. A parameter without a gradient shows here, too, on any number of
        ranks.
        """
        self.port.progress.note("waited for its first data")
        first = self.reading.first()
        self.port.progress.note("worked on the rehearsal")
        self.stepping.rehearse(self.backward.gathered([first], self.step), self.step)
        # The rehearsal is no step: it must not count in the first figures.
        self.clock.restart()

    # --- one step -----------------------------------------------------------------------------------------------------

    def _train_step(self) -> None:
        """Launch an update from all microbatches, and settle the one before; this one, too, where something follows
        that needs its figures."""
        self.port.progress.note(f"waited for the data of step {self.step + 1}")
        batches: list[Batch] = []
        for _ in range(self.accumulation):
            with self.clock.waiting():
                batches.append(self.reading.next())
        noticed = self.reading.noticed()
        batch = self.backward.gathered(batches, self.step)
        self.port.progress.note(f"worked on step {self.step + 1}")
        self._open.append((self.stepping.launch(batch, self.step, lambda: self._flags(noticed)), noticed))
        # Now that the device has work again, the host may wait for what it did before.
        if len(self._open) > 1:
            self._settle()
        if self._stopping or self._saving or self._needs_figures(self.step + 1):
            self._settle()

    def _settle(self) -> None:
        """Learn what became of the first step of which that is not known yet. Every rank learns the same."""
        launched, noticed = self._open.popleft()
        flags = self.stepping.settle(launched, self.tracker)
        self.reading.settle(launched.step + 1, noticed, flags, self.tracker)
        # A question that was asked since then was the answer to what was due.
        self._ask = flags["due"] > 0 and launched.step >= self._asked_in
        self._requeue |= flags["requeue"] > 0
        self._stopping |= self._requeue or flags["stop"] > 0
        self._saving |= flags["preempting"] > 0 or flags["late"] > 0

    def _record_open(self) -> None:
        """Record what became of the steps that an error has left open, as far as this rank can tell by itself.

        Nothing here may stand in the way of that error: neither what is found, nor a device that does not answer.
        """
        while self._open:
            launched, noticed = self._open.popleft()
            try:
                if not launched.figures.arrived(_PATIENCE_S):
                    log.warning("what became of step %d is not known: the device is not done", launched.step + 1)
                    return
                with alone():
                    self.stepping.settle(launched, self.tracker)
                    self.reading.settle(launched.step + 1, noticed, noticed.counts, self.tracker)
            except NotFinite:
                pass  # it is recorded by now, and why the training ends says the error that is under way
            except Exception as error:  # noqa: BLE001 (a device that has failed raises all kinds)
                log.warning("what became of step %d is not recorded: %r", launched.step + 1, error)
                return

    def _flags(self, noticed: Noticed) -> dict[str, float]:
        """What this rank wants and has noticed by now, to be added up over the ranks."""
        # Preemption takes two steps, since the launcher may answer only when every rank asks. A step in which the
        # question is due by the clock of any rank sets `_ask` on all of them when it is settled; in the next one that
        # is launched all ask, and share the answer.
        now, asked = time.monotonic(), self._ask
        if asked:
            self._ask, self._asked_in, self._asked_at = False, self.step, now
        wanted = {
            "preempting": asked and self.port.preempting(),
            "due": now - self._asked_at >= ASK_EVERY_S,
            "stop": self._stop.requested,
            "requeue": self._stop.requeue or self.port.deadline.due(self.checkpoints.longest_s),
            "late": self._late(),
        }
        return {name: float(value) for name, value in wanted.items()} | noticed.counts

    def _late(self) -> bool:
        """Whether the newest checkpoint is too old, by the clock of rank 0."""
        minutes = self.config.checkpoint.every_minutes
        return self.port.rank == 0 and minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    # --- between steps ------------------------------------------------------------------------------------------------

    def _needs_figures(self, step: int) -> bool:
        """Whether something follows step `step`, from 1, that needs to know what became of it."""
        return (
            self.watch.has_line(step)
            or self.watch.held_out.due(step)
            or self._is_validated(step)
            or is_due(self.config.checkpoint, step, validated=False)
            or step == self.config.steps
        )

    def _is_validated(self, step: int) -> bool:
        every = self.config.validation.every
        return every > 0 and (step == self.config.steps or step % every == 0)

    def _after_step(self) -> None:
        config, step = self.config, self.step
        last = step == config.steps
        # Figures, also after the last step.
        if self.watch.has_line(step):
            self._log()
        if self.watch.held_out.due(step):
            self.port.progress.note("measured the loss on held-out clips")
            if figures := self.watch.held_out.measure():
                self._record(step, figures)
            self.port.progress.note(None)
        # Validation, before the checkpoint: a training killed between the two resumes earlier and submits it again.
        validated = self._is_validated(step)
        if validated:
            self.validations.submit(step, functools.partial(self._write, self._averaged()))
        self.validations.poll()
        # Checkpoint: at its interval, at the end, and when the training will be ended early; that one is waited for.
        if last or self._stopping or self._saving or is_due(config.checkpoint, step, validated=validated):
            with self.clock.checkpointing():
                self.checkpoints.save(step, self._state(), block=self._stopping or last, judged=self._judged())
            self._saved_at, self._saving = time.monotonic(), False
            self.port.report(self.watch.interval.newest)
        self.checkpoints.poll()

    def _log(self) -> None:
        """Log the figures since the last line, or since a resume. Collective."""
        rate = self.learner.learning_rate(self.step - 1)
        self.watch.interval.note(self.reading.figures())
        figures = self.watch.interval.line(epoch=self.reading.epoch, learning_rate=rate, skipped=self.guard.total)
        # All ranks took part in the sums; rank 0 writes them.
        if self.tracker is not None:
            self.tracker.log(self.step, figures)
            self.watch.interval.tell(self.step, self.config.steps)

    def _log_validation(self, step: int, figures: dict[str, float]) -> None:
        self._record(step, {VALIDATION + name: value for name, value in figures.items()})
        if self.tracker is not None:
            self.tracker.show(step, self.validations.folder(step))

    def _record(self, step: int, figures: dict[str, float]) -> None:
        """Write figures by which the best step may be found, on rank 0."""
        if self.tracker is not None and self.kept is not None:
            self.tracker.log(step, figures)
            self.kept.note(step, figures)

    def _keep(self, step: int, weights: Path) -> None:
        """Keep the weights of a validated step, and drop the checkpoints that were kept for want of its figures."""
        assert self.kept is not None
        self.kept.keep(step, weights)
        self.checkpoints.retain(self._judged())

    def _judged(self) -> Judged:
        figures = {} if self.kept is None else dict(self.kept.figures)
        return Judged(figures=figures, pending=self.validations.pending)

    # --- state --------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        progress = {"step": self.step, "skipped": self.guard.total, "skipped_in_a_row": self.guard.in_a_row}
        rest = {"medians": self.medians.state(), "progress": progress}
        return training_state(self.learner, self.ema, self.critic) | rest

    def _resume(self) -> None:
        if self.checkpoints.latest() is None:
            return
        # The tensors of the state are those of the training: loading fills the weights, moments and averages in place.
        state = self._state()
        newest = self.checkpoints.restore(state)
        progress = state["progress"]
        if progress["step"] != newest:
            raise ValueError(
                f"checkpoint of step {newest} says that it is of step {progress['step']}: take another RUN"
            )
        self.step = progress["step"]
        self.guard.total, self.guard.in_a_row = progress["skipped"], progress["skipped_in_a_row"]
        log.info("going on from step %d", self.step)


def _built(task: Task) -> nn.Module:
    """Module of a task with its first weights, in training mode."""
    module = task.build().train()
    wrong = [name for name, p in trainable_parameters(module).items() if p.dtype != torch.float32]
    assert not wrong, f"trained weights are kept in float32: {', '.join(wrong)} are not"
    return module
