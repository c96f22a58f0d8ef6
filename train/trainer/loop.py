"""Training loop: steps, accumulation, clipping, averaging, guards, and when to log, validate and checkpoint.

It knows nothing about faces, files or launchers. Everything random is keyed, so that the state of a training is its
tensors and the number of steps done: a run that was killed and resumed ends with the same bits as an unbroken one.
"""

from __future__ import annotations

import functools
import logging
import time
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
from train.task import Batch, Losses, Task
from train.trainer.adapter import Adaptation
from train.trainer.average import Ema, Exporter
from train.trainer.backward import Backward, Turn, keys_by_loss
from train.trainer.checkpoint import Checkpoints, training_state
from train.trainer.figures import CRITIC, split, sums_of
from train.trainer.guard import RunningMedian, SkipGuard, faults_of, reason, warn
from train.trainer.learner import Learner, trainable_parameters
from train.trainer.parallel import bare, check_covered, choose_device, over_ranks, parallelise, wrap
from train.trainer.port import Interrupted, Port, StopRequest
from train.trainer.reading import Reading
from train.trainer.retention import Judged, is_due
from train.trainer.stored_checkpoints import checkpoint_folder
from train.trainer.throughput import Throughput
from train.trainer.watch import Watch

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
        self.module = parallelise(built, config.parallel, self.device, port.world)
        groups = () if self.adaptation else task.parameter_groups()  # they are of the weights
        self.learner = Learner(self.module, config.optimizer, config.schedule, config.steps, groups)
        self.critic: Learner | None = None
        if self.adversary is not None and critic is not None:
            wrapped = wrap(critic.to(self.device), self.device, port.world)
            self.critic = Learner(wrapped, self.adversary.optimizer, self.adversary.schedule, config.steps)
        self.ema = Ema(self.learner, config.ema)
        self.clock = Throughput(self.device)
        self.backward = Backward(
            task, self.learner, config, self.device, port.world, self.clock, self.adversary, self.critic
        )
        self.guard, self.medians = SkipGuard(config.guard), RunningMedian(config.guard)
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
        self.validations = Validations(run, config.validation, port.rank, self._log_validation, self._keep)
        self.validations.resume(self.step)
        # State that is in no checkpoint: notices, and figures for the next line.
        self._stop, self._requeue = StopRequest(), False
        self._ask, self._asked_at = True, 0.0
        self.watch = Watch(task, self.learner, self.critic, self.clock, config, run, port)
        self._critic_losses: tuple[str, ...] = ()  # their names, known from the rehearsal on

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
            self._rehearse()
            while self.step < self.config.steps:
                self.port.deadline.tick()
                with self.watch.step(self.step + 1):
                    stop, save = self._train_step()
                self.port.progress.note(None)
                self.step += 1
                self._after_step(stop, save)
                # Every rank has the same flag, and `_after_step` has written the checkpoint: all end at the same step.
                if stop:
                    raise Interrupted(self.step, self._requeue)
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
        total = self.backward.totals([first], self.step)
        with self.watch.counting(len(first["keys"])):
            turn = self.backward.module_turn([first], self.step, total)
        self.learner.check_gradients("the loss does not depend on", "the task")
        if turn.terms:
            check_covered(self.config, "terms over the whole batch")
        if self.critic is not None:
            judged = self.backward.critic_turn([first], turn.made, self.step, total)
            self.critic.check_gradients("the critic's loss does not depend on", "the adversary")
            self._critic_losses = tuple(judged[0])
        self._drop()
        # The rehearsal is no step: it must not count in the first figures.
        self.clock.restart()

    # --- one step -----------------------------------------------------------------------------------------------------

    def _train_step(self) -> tuple[bool, bool]:
        """Do one update from all microbatches. Returns (stop after it, write a checkpoint), equal on every rank."""
        # All microbatches of this rank, and the sums over the step that losses divide by.
        microbatches: list[Batch] = []
        self.port.progress.note(f"waited for the data of step {self.step + 1}")
        for _ in range(self.accumulation):
            with self.clock.waiting():
                microbatches.append(self.reading.next())
        self.port.progress.note(f"worked on step {self.step + 1}")
        total = self.backward.totals(microbatches, self.step)
        self.watch.interval.read(total["samples"])
        # The module's turn, then the critic's, which judges what the module made before its update.
        turn = self.backward.module_turn(microbatches, self.step, total)
        judged: list[Losses] = []
        if self.adversary is not None and self.step >= self.adversary.start:
            judged = self.backward.critic_turn(microbatches, turn.made, self.step, total)
        # float() waits for the device: the time of a step ends with its result.
        norms = self.learner.norms(self.step)
        critic_norms = self.critic.norms(self.step) if self.critic is not None and judged else {}
        # Preemption takes two steps, since the launcher may answer only when every rank asks. A step in which the
        # question is due by the clock of any rank sets `_ask` on all of them; in the next step all ask, and share the
        # answer.
        asked = self._ask and self.port.preempting()
        again = self._stop.requeue or self.port.deadline.due(self.checkpoints.longest_s)
        wanted = [self._stop.requested, again, asked, self._due(), self._late()]
        flags = torch.tensor([*self.reading.counts(), *wanted], dtype=torch.float64, device=self.device)
        # One exchange for the sums of the losses and the flags: after it, every rank knows the same.
        sums = sums_of(turn.losses, turn.figures, judged)
        shared = torch.cat([torch.stack(list(sums.values())), flags])
        with self.clock.on_device("all_reduce"):
            *totals, stop, again, preempting, due, late = over_ranks(shared)
        self.reading.settle(self.step + 1, totals[len(sums) :], self.tracker)
        self._ask, self._requeue = due > 0, again > 0
        figures, partial = split(dict(zip(sums, totals[: len(sums)], strict=True)))
        # Batch terms are one number for the whole step, which every rank has; `loss` is the sum of both.
        for name, value in turn.terms.items():
            figures[name] = figures.get(name, 0.0) + float(value) * total["samples"]
        if not judged:
            figures |= {CRITIC + name: 0.0 for name in self._critic_losses}
        # Update or skip. Every rank has the same sums and the same norms, and so decides the same. Where one of both
        # networks cannot learn, neither does.
        if faults := faults_of(figures, norms, critic_norms):
            keys = self.backward.bad_samples(faults, self.step, microbatches, turn, judged, total)
            self._skip(" and ".join(faults), keys)
        elif text := self._excessive(figures["loss"] / total["samples"], norms, microbatches, turn):
            self._skip(text, keys_by_loss(microbatches, turn.losses))
        else:
            with self.watch.update(self.step + 1):
                self._update(norms, critic_norms, figures, total["samples"])
            norms = norms | {CRITIC + name: norm for name, norm in critic_norms.items()}
            self.watch.interval.add(figures, partial, norms, total["samples"])
        self._drop()
        return stop > 0 or self._requeue, preempting > 0 or late > 0

    def _drop(self) -> None:
        """Forget the gradients of a step, and what its forward passes have noted."""
        self.learner.drop()
        if self.critic is not None:
            self.critic.drop()

    def _due(self) -> bool:
        """Whether it is time to ask the launcher again, by the clock of this rank; the ranks agree before they ask."""
        now = time.monotonic()
        if self._ask:
            self._asked_at = now
        return now - self._asked_at >= ASK_EVERY_S

    def _late(self) -> bool:
        """Whether the newest checkpoint is too old, by the clock of rank 0."""
        minutes = self.config.checkpoint.every_minutes
        return self.port.rank == 0 and minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _update(
        self, norms: dict[str, float], critic_norms: dict[str, float], figures: dict[str, float], samples: float
    ) -> None:
        """Move everything that a step moves."""
        self.learner.update(norms, self.step)
        if self.critic is not None and critic_norms:
            self.critic.update(critic_norms, self.step)
        self.ema.update(self.step, self.learner.active(self.step))
        self.task.after_step(bare(self.module), {name: value / samples for name, value in figures.items()}, self.step)
        self.medians.add(figures["loss"] / samples, norms)
        self.guard.passed()

    def _excessive(self, loss: float, norms: dict[str, float], batches: list[Batch], turn: Turn) -> str:
        """Why a step far above the running median is skipped; empty where it is not. Records one that is warned of."""
        config = self.config.guard
        if too_large := self.medians.excesses(loss, norms, config.skip_above):
            return reason(too_large)
        found = self.medians.excesses(loss, norms, config.warn_above)
        if any(excess.new for excess in found):
            keys = keys_by_loss(batches, turn.losses)
            warn(self.step + 1, found, keys)
            if self.tracker is not None:
                self.tracker.alarm(self.step + 1, reason(found), keys)
        return ""

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
        if self.watch.has_line(step):
            self._log()
        if self.watch.held_out.due(step):
            self.port.progress.note("measured the loss on held-out clips")
            if figures := self.watch.held_out.measure():
                self._record(step, figures)
            self.port.progress.note(None)
        # Validation, before the checkpoint: a training killed between the two resumes earlier and submits it again.
        validated = config.validation.every > 0 and (last or step % config.validation.every == 0)
        if validated:
            self.validations.submit(step, functools.partial(self._write, self._averaged()))
        self.validations.poll()
        # Checkpoint: at its interval, at the end, and when the training will be ended early; that one is waited for.
        if last or stop or save or is_due(config.checkpoint, step, validated=validated):
            with self.clock.checkpointing():
                self.checkpoints.save(step, self._state(), block=stop or last, judged=self._judged())
            self._saved_at = time.monotonic()
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
