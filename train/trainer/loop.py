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

from shards.loader import ClipLoader
from shards.mixture import divide
from talkinghead.models.adapters.adapter_folder import ADAPTER
from talkinghead.models.running_statistics import RunningStatistics
from train.config import LoraConfig, TrainConfig
from train.run.metrics import Tracker, check_online
from train.run.run_folder import RunFolder
from train.run.validation import Validations
from train.task import Batch, Losses, Task, Totals
from train.trainer.adapter import Adaptation
from train.trainer.average import Ema, Exporter
from train.trainer.backward import Backward, SkipGuard
from train.trainer.checkpoint import Checkpoints, training_state
from train.trainer.learner import Learner, trainable_parameters
from train.trainer.parallel import bare, choose_device, over_ranks, parallelise, wrap
from train.trainer.port import Interrupted, Port, StopRequest, unsignalled
from train.trainer.throughput import Throughput

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
            _check_parallel(config, "an adversary")
        if RunningStatistics(built):
            _check_parallel(config, "BatchNorm or spectral normalisation")
        # The parts of a step. They must be made after the wrapping: sharding replaces the parameters.
        self.module = parallelise(built, config.parallel, self.device, port.world)
        groups = () if self.adaptation else task.parameter_groups()  # they are of the weights
        self.learner = Learner(self.module, config.optimizer, config.schedule, config.steps, groups)
        self.critic: Learner | None = None
        if self.adversary is not None and critic is not None:
            wrapped = wrap(critic.to(self.device), self.device, port.world)
            self.critic = Learner(wrapped, self.adversary.optimizer, self.adversary.schedule, config.steps)
        self.ema = Ema(self.learner, config.ema)
        self.backward = Backward(task, self.learner, config, self.device, port.world, self.adversary, self.critic)
        self.guard = SkipGuard(config.guard)
        self.clock = Throughput(self.device)
        # Resume from the newest checkpoint; everything below needs to know the step.
        self.checkpoints = Checkpoints(
            run.checkpoints, config.checkpoint, port.rank, port.world, config.parallel.timeout_s
        )
        self._resume()
        # The data. The ranks take turns at the microbatches, and `accumulation` turns make a step, so the step has the
        # same microbatches for any number of ranks.
        dataset = task.dataset(config.seed)
        self.loader = ClipLoader(
            dataset,
            divide(dataset, size=config.microbatch, seconds=config.microbatch_seconds, seed=config.seed),
            rank=port.rank,
            world=port.world,
            num_workers=config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        self.loader.load_state_dict({"microbatches": self.step * config.microbatches})
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
        self._counted = 0.0
        self._read = 0.0  # samples of all steps since the last line, of skipped ones, too
        self._figures: dict[str, float] = {}
        self._critic_losses: tuple[str, ...] = ()  # their names, known from the rehearsal on

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
        return self.exporter.gather(self.module, self.ema, self.adaptation.lora if self.adaptation else None)

    def _write(self, module: nn.Module | None, folder: Path) -> None:
        if module is not None:
            self.task.export(module, folder)
            if self.adaptation is not None:
                self.adaptation.adapter(self.exporter.additions).write(folder / ADAPTER)

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
        total = self._totals([first])
        turn = self.backward.module_turn([first], self.step, total)
        _check_gradients(self.learner, "the loss does not depend on", "the task")
        if turn.terms:
            _check_parallel(self.config, "terms over the whole batch")
        if self.critic is not None:
            judged = self.backward.critic_turn([first], turn.made, self.step, total)
            _check_gradients(self.critic, "the critic's loss does not depend on", "the adversary")
            self._critic_losses = tuple(judged[0])
        self._drop()
        # The rehearsal is no step: it must not count in the first figures.
        self.clock.restart()
        return itertools.chain([first], self._reading)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _train_step(self, batches: Iterator[Batch]) -> tuple[bool, bool]:
        """Do one update from all microbatches. Returns (stop after it, write a checkpoint), equal on every rank."""
        # All microbatches of this rank, and the sums over the step that losses divide by.
        microbatches: list[Batch] = []
        for _ in range(self.accumulation):
            with self.clock.waiting():
                microbatches.append(next(batches))
        total = self._totals(microbatches)
        self._read += total["samples"]
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
        flags = torch.tensor([self._stop.requested, asked, self._due()], dtype=torch.float64, device=self.device)
        # One exchange for the sums of the losses and the flags: after it, every rank knows the same.
        sums = _sums(turn.losses) | _sums(judged, "critic/")
        *totals, stop, preempting, due = over_ranks(torch.cat([torch.stack(list(sums.values())), flags]))
        self._ask = due > 0
        figures = dict(zip(sums, totals, strict=True))
        # Batch terms are one number for the whole step, which every rank has; `loss` is the sum of both.
        for name, value in turn.terms.items():
            figures[name] = figures.get(name, 0.0) + float(value) * total["samples"]
        if not judged:
            figures |= {f"critic/{name}": 0.0 for name in self._critic_losses}
        # Update or skip. Every rank has the same sums and the same norms, and so decides the same. Where one of both
        # networks cannot learn, neither does.
        faults = _faults(figures, norms, critic_norms)
        if not faults:
            self._update(norms, critic_norms, figures, total["samples"])
        else:
            self._skip(
                " and ".join(faults), self.backward.bad_samples(faults, self.step, microbatches, turn, judged, total)
            )
        self._drop()
        return stop > 0, preempting > 0

    def _drop(self) -> None:
        """Forget the gradients of a step, and what its forward passes have noted."""
        self.learner.drop()
        if self.critic is not None:
            self.critic.drop()

    def _totals(self, batches: list[Batch]) -> Totals:
        """Sums over all samples of a step. Collective where the task or its adversary counts, or where microbatches
        have unequal numbers of samples."""
        seed = self.config.seed
        counted = [self.task.counts(batch, seed=seed, step=self.step) for batch in batches]
        if self.adversary is not None:
            counted = [
                own | {f"critic/{name}": value for name, value in self.adversary.counts(batch).items()}
                for own, batch in zip(counted, batches, strict=True)
            ]
        if not counted[0] and self.config.microbatch_seconds is None:
            return {"samples": float(self.config.microbatch * self.port.world * len(batches))}
        names = list(counted[0])
        sums = [float(sum(len(batch["keys"]) for batch in batches))]
        sums += [float(sum(part[name].double().sum() for part in counted)) for name in names]
        totals = over_ranks(torch.tensor(sums, dtype=torch.float64, device=self.device))
        return dict(zip(["samples", *names], totals, strict=True))

    def _due(self) -> bool:
        """Whether it is time to ask the launcher again, by the clock of this rank; the ranks agree before they ask."""
        now = time.monotonic()
        if self._ask:
            self._asked_at = now
        return now - self._asked_at >= ASK_EVERY_S

    def _update(
        self, norms: dict[str, float], critic_norms: dict[str, float], figures: dict[str, float], samples: float
    ) -> None:
        """Move everything that a step moves, and add its figures to those of the next line."""
        self.learner.update(norms, self.step)
        if self.critic is not None and critic_norms:
            self.critic.update(critic_norms, self.step)
        self.ema.update(self.step, self.learner.active(self.step))
        self.task.after_step(bare(self.module), {name: value / samples for name, value in figures.items()}, self.step)
        self.guard.passed()
        # Logged as means over the samples: norms belong to the whole batch, hence the factor.
        norms = norms | {f"critic/{name}": norm for name, norm in critic_norms.items()}
        self._sums.update(figures | {name: norm * samples for name, norm in norms.items()})
        self._counted += samples

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
        self._sums, self._counted = Counter(), 0.0
        per_step = self._read / max(1, self.clock.steps)
        speed = self.clock.interval(self._read)
        self._read = 0.0
        rate = self.learner.learning_rate(self.step - 1)
        figures = {"epoch": self.loader.epoch, **means, "learning_rate": rate, **speed, "skipped": self.guard.total}
        self._figures = figures
        # All ranks took part in the sums; rank 0 writes them.
        if self.tracker is None:
            return
        self.tracker.log(self.step, figures)
        left = timedelta(seconds=round((config.steps - self.step) * per_step / speed["samples_per_s"]))
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
        return training_state(self.learner, self.ema, self.critic) | {"progress": progress}

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


def _sums(parts: list[Losses], prefix: str = "") -> dict[str, torch.Tensor]:
    """Sum of each loss over the microbatches of this rank, a scalar float64 tensor."""
    names = parts[0] if parts else ()
    return {prefix + name: torch.cat([part[name] for part in parts]).double().sum() for name in names}


def _faults(figures: dict[str, float], norms: dict[str, float], critic_norms: dict[str, float]) -> list[str]:
    """What of a step is not finite; a gradient only where the loss is."""
    found = []
    for prefix, own in (("", norms), ("critic/", critic_norms)):
        if not math.isfinite(figures.get(f"{prefix}loss", 0.0)):
            found.append(f"{prefix}loss")
        elif not all(map(math.isfinite, own.values())):
            found.append(f"{prefix}gradient")
    return found


def _check_gradients(learner: Learner, what: str, whose: str) -> None:
    if idle := [name for name, parameter in learner.parameters.items() if parameter.grad is None]:
        raise ValueError(f"{what} {', '.join(idle)}: {whose} must freeze what it does not train")


def _check_parallel(config: TrainConfig, what: str) -> None:
    """Refuse what no test covers, for a training with something that not all have."""
    if config.parallel.strategy == "fsdp2":
        raise ValueError(f"a training with {what} cannot be sharded by FSDP2: take --train.parallel.strategy ddp")
    if config.parallel.compile:
        raise ValueError(f"a training with {what} cannot be compiled: take --train.parallel.no-compile")


def _built(task: Task) -> nn.Module:
    """Module of a task with its first weights, in training mode."""
    module = task.build().train()
    wrong = [name for name, p in trainable_parameters(module).items() if p.dtype != torch.float32]
    assert not wrong, f"trained weights are kept in float32: {', '.join(wrong)} are not"
    return module
