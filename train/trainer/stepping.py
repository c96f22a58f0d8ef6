"""Steps of a training on one rank: each is launched on the device, and settled when its figures have come to the host.

A launch waits for nothing that the device does. Whether a step may reach the weights is decided there, from sums and
norms that every rank has alike, and what a step moves looks at that decision. The host reads the figures of a step when
the next one has been launched, and then records what became of it: so skipped steps, alarms and requests to end are
known one step later. Where something must not be late, as a checkpoint, the step before it is settled at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from train.run.metrics import Tracker
from train.task import Adversary, Losses, Task
from train.trainer.average import Ema
from train.trainer.backward import Backward, StepBatch, Turn, keys_by_loss
from train.trainer.figures import CRITIC, split, sums_of
from train.trainer.guard import WATCHED, RunningMedian, SkipGuard, Usual, faults_of, reason, warn
from train.trainer.learner import COMMON, Learner
from train.trainer.parallel import bare, check_covered, reduced
from train.trainer.throughput import Timed
from train.trainer.transfer import Returning, sent
from train.trainer.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A step that the device works on, and what is needed to say what became of it."""

    step: int
    """Number of the step, from 0."""
    batch: StepBatch
    turn: Turn
    judged: list[Losses]
    """Losses of the critic for each microbatch; none before its first step."""
    figures: Returning
    """Everything that is to be known of it, on the way to the host."""
    times: list[Timed]
    """Parts of the step that are timed on the device."""


class Stepping:
    """Steps of one rank. Every rank makes one, and all call the same methods in the same order.

    Args:
        task: Task in training.
        backward: Forward and backward passes of its module, and of its critic.
        ema: Averages of the weights.
        guard: Counter of skipped steps.
        medians: What is usual.
        watch: Figures since the last line.
    """

    def __init__(
        self, task: Task, backward: Backward, ema: Ema, guard: SkipGuard, medians: RunningMedian, watch: Watch
    ) -> None:
        self.task, self.backward, self.ema, self.watch = task, backward, ema, watch
        self.guard, self.medians = guard, medians
        self.learner: Learner = backward.learner
        self.critic: Learner | None = backward.critic
        self.adversary: Adversary | None = backward.adversary
        self.config, self.clock = backward.config, backward.clock
        self._critic_losses: tuple[str, ...] = ()  # their names, known from the rehearsal on

    def rehearse(self, batch: StepBatch, step: int) -> None:
        """Do the backward passes of a step over one microbatch, and drop their gradients.

        Raises:
            ValueError: A trained parameter gets no gradient, or the training is shared in a way that no test covers.
        """
        with self.watch.counting(len(batch.batches[0]["keys"])):
            turn = self.backward.module_turn(batch, step)
        self.learner.check_gradients("the loss does not depend on", "the task")
        if turn.terms:
            check_covered(self.config, "terms over the whole batch")
        if self.critic is not None:
            judged = self.backward.critic_turn(batch, turn.made, step)
            self.critic.check_gradients("the critic's loss does not depend on", "the adversary")
            self._critic_losses = tuple(judged[0])
        self._drop()

    # --- on the device ------------------------------------------------------------------------------------------------

    def launch(self, batch: StepBatch, step: int, flags: Callable[[], Mapping[str, float]]) -> Launched:
        """Begin an update from all microbatches of a step.

        Args:
            batch: Batch of the step.
            step: Number of the step, from 0.
            flags: Function that says what this rank wants or noticed, in numbers by name, called when the work on the
                gradients has begun. `settle` gives the sums over the ranks.
        """
        # The module's turn, then the critic's, which judges what the module made before its update.
        turn = self.backward.module_turn(batch, step)
        judged: list[Losses] = []
        if self.adversary is not None and step >= self.adversary.start:
            judged = self.backward.critic_turn(batch, turn.made, step)
        norms = self.learner.norms(step)
        critic_norms = self.critic.norms(step) if self.critic is not None and judged else {}
        # One exchange for the sums of the losses and the flags: after it, every rank has the same.
        sums, wanted = sums_of(turn.losses, turn.figures, judged), flags()
        shared = torch.cat([torch.stack(list(sums.values())), sent(list(wanted.values()), self.backward.device)])
        with self.clock.on_device("all_reduce"):
            shared = reduced(shared)
        shared = dict(zip([*sums, *wanted], shared, strict=True))
        sums = {name: shared[name] for name in sums}
        # Batch terms are one number for the whole step, which every rank has; `loss` is the sum of both.
        for name, value in turn.terms.items():
            sums[name] = sums.get(name, 0.0) + value.double() * batch.samples
        # Every rank has the same sums and the same norms, and so decides the same. Where one of both networks cannot
        # learn, neither does.
        values = torch.stack([sums["loss"] / batch.samples, norms[COMMON].double()])
        medians, newest = self.medians.medians(), self.medians.newest()
        losses = [sums[name] for name in ("loss", f"{CRITIC}loss") if name in sums]
        passed = self.medians.passes(values, medians, [*losses, *norms.values(), *critic_norms.values()])
        figures = {
            "sums": sums,
            "norms": norms,
            "critic norms": critic_norms,
            "flags": {name: shared[name] for name in wanted},
            "passed": {"passed": passed},
            "values": dict(zip(WATCHED, values, strict=True)),
            "medians": dict(zip(WATCHED, medians, strict=True)),
            "newest": dict(zip(WATCHED, newest.clone(), strict=True)),
        }
        figures["networks"] = self._update(step, norms, critic_norms, sums, values, passed, batch.samples)
        self._drop()
        return Launched(
            step=step, batch=batch, turn=turn, judged=judged, figures=Returning(figures), times=self.clock.launched()
        )

    def _update(
        self,
        step: int,
        norms: dict[str, Tensor],
        critic_norms: dict[str, Tensor],
        sums: dict[str, Tensor],
        values: Tensor,
        passed: Tensor,
        samples: float,
    ) -> dict[str, Tensor]:
        """Move everything that a step moves, unless it is skipped. Returns norms of the networks, where a line has
        them."""
        watched = self.watch.has_line(step + 1)
        found = self.watch.networks.gradients() if watched else {}
        self.learner.update(norms, step, passed)
        if self.critic is not None and critic_norms:
            self.critic.update(critic_norms, step, passed)
        self.ema.update(step, self.learner.active(step), passed)
        module = bare(self.learner.module)
        means = {name: value / samples for name, value in split(sums)[0].items()}
        with torch.no_grad():
            for name, value in self.task.after_step(module, means, step).items():
                buffer = module.get_buffer(name)
                buffer.copy_(torch.where(passed, value, buffer))
        self.medians.add(values, passed)
        return found | (self.watch.networks.updates(step) if watched else {})

    def _drop(self) -> None:
        """Forget the gradients of a step, and what its forward passes have noted."""
        self.learner.drop()
        if self.critic is not None:
            self.critic.drop()

    # --- on the host --------------------------------------------------------------------------------------------------

    def settle(self, launched: Launched, tracker: Tracker | None) -> dict[str, float]:
        """Read the figures of a step, and record what became of it. Returns the sums of its flags over the ranks.

        Collective where the step was skipped or stands out.

        Args:
            launched: The step.
            tracker: Records, on rank 0.

        Raises:
            NotFinite: Too many steps in a row were skipped.
        """
        found = launched.figures.read()
        self.clock.settle(launched.times)
        samples = launched.batch.samples
        self.watch.interval.read(samples)
        sums, partial = split(found["sums"])
        if not launched.judged:
            sums |= {CRITIC + name: 0.0 for name in self._critic_losses}
        norms, critic_norms = found["norms"], found["critic norms"]
        usual = Usual(values=found["values"], medians=found["medians"], newest=found["newest"])
        # Why it was skipped, by the numbers that the device went by.
        faults = faults_of(sums, norms, critic_norms)
        too_large = [] if faults else usual.excesses(self.config.guard.skip_above)
        assert bool(faults or too_large) is not bool(found["passed"]["passed"]), "host and device decide alike"
        if faults:
            keys = self.backward.bad_samples(faults, launched.step, launched.batch, launched.turn, launched.judged)
            self._skip(launched.step, " and ".join(faults), keys, tracker)
        elif too_large:
            keys = keys_by_loss(launched.batch.batches, launched.turn.losses)
            self._skip(launched.step, reason(too_large), keys, tracker)
        else:
            self._warn(launched, usual, tracker)
            self.guard.passed()
            norms = norms | {CRITIC + name: norm for name, norm in critic_norms.items()}
            self.watch.interval.note(found["networks"])
            self.watch.interval.add(sums, partial, norms, samples)
        return found["flags"]

    def _warn(self, launched: Launched, usual: Usual, tracker: Tracker | None) -> None:
        """Record a step far above the running median, the first of several."""
        found = usual.excesses(self.config.guard.warn_above)
        if any(excess.new for excess in found):
            keys = keys_by_loss(launched.batch.batches, launched.turn.losses)
            warn(launched.step + 1, found, keys)
            if tracker is not None:
                tracker.alarm(launched.step + 1, reason(found), keys)

    def _skip(self, step: int, what: str, keys: list[str], tracker: Tracker | None) -> None:
        """Record a skipped step, which has left weights, moments and averages as they were."""
        # First the record, since the guard may end the training.
        if tracker is not None:
            tracker.skipped(step + 1, what, keys)
        self.guard.skipped(step + 1, what, keys)
