"""Settings of a training, whatever the model: frozen, and checked where they are made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam or AdamW over all trainable parameters."""

    name: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled (AdamW only); not applied to biases and gains of norms."""
    max_gradient_norm: float | None = 1.0
    """Largest L2 norm of a step's gradient; a larger one is scaled down to it. None: no clipping."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number above 0, not {self.learning_rate}")
        if not all(math.isfinite(value) for value in (*self.betas, self.eps, self.weight_decay)):
            raise ValueError("betas, eps and weight_decay must be finite numbers")
        if self.name == "adam" and self.weight_decay:
            raise ValueError("adam has no decoupled weight decay: take optimizer.name adamw, or weight_decay 0")
        if self.max_gradient_norm is not None and self.max_gradient_norm <= 0:
            raise ValueError(f"max_gradient_norm must be above 0 or None, not {self.max_gradient_norm}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps, as a factor of `learning_rate`."""

    name: Literal["constant", "cosine", "linear", "exponential"] = "constant"
    """Course after the warm-up: constant; falling to `final` at the last step; or times `factor` after every `every`
    steps, down to `final`."""
    warmup_steps: int = 0
    """Steps in which the rate rises linearly to the full one; at most half of all steps when it falls afterwards."""
    final: float = 0.0
    """Lowest rate, as a share of `learning_rate`."""
    factor: float = 0.5
    """exponential: factor on the rate."""
    every: int = 10_000
    """exponential: steps after which the rate falls by the factor."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not 0 <= self.final <= 1:
            raise ValueError("warmup_steps must be at least 0, and final between 0 and 1")
        if not 0 < self.factor <= 1 or self.every < 1:
            raise ValueError("the factor of a schedule must be in 0 … 1 (0 excluded), and every at least 1")


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters of a task that are trained otherwise than by the recipe's settings."""

    match: str
    """Regular expression that is searched for in the names of the parameters; the first group that matches counts."""
    rate: float = 1.0
    """Factor on `optimizer.learning_rate`."""
    schedule: ScheduleConfig | None = None
    """Course of the rate; None: the recipe's."""
    first: int = 0
    """First step, from 0, of its updates."""
    last: int | None = None
    """Last step of its updates; None: that of the training. Outside of first … last the weights, their moments and
    averages stand still."""
    max_gradient_norm: float | None = None
    """Largest L2 norm of this group's gradient alone; None: it counts in the common norm."""
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"{self.match!r} of a group of parameters is no regular expression: {error}") from error
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"the rate of the parameters {self.match!r} must be at least 0, not {self.rate}")
        if self.first < 0 or (self.last is not None and self.last < self.first):
            raise ValueError(f"the parameters {self.match!r} are never trained: first {self.first}, last {self.last}")
        if self.max_gradient_norm is not None and self.max_gradient_norm <= 0:
            raise ValueError(f"max_gradient_norm must be above 0 or None, not {self.max_gradient_norm}")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank additions to the weights (LoRA), trained instead of the weights themselves."""

    match: str | None = None
    """Regular expression that is searched for in the names of the layers that get an addition; None: no LoRA."""
    rank: int = 2
    """Rank of the additions."""
    alpha: float = 1.0
    """Factor on the additions, next to 1 / rank."""
    also_train: str | None = None
    """Regular expression of parameters that are trained next to them; everything else is frozen."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ValueError(f"a LoRA has a rank of at least 1 and an alpha above 0, not {self.rank} and {self.alpha}")
        if self.match is None and self.also_train is not None:
            raise ValueError("lora.also_train is given without lora.match, which says which layers get a LoRA")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Moving average of the trainable parameters; it is what is exported and validated."""

    decay: float = 0.999
    """Share of the average that stays in an update. 0: the newest weights are used, and no average is kept."""
    warmup: bool = True
    """Rising decay min(decay, (1 + step) / (10 + step)), so that the first weights do not weigh for long."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema decay must be in 0 … 1 (1 excluded), not {self.decay}")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Settings of how the ranks share the work."""

    strategy: Literal["ddp", "fsdp2"] = "ddp"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the arithmetic; weights, sums of gradients and optimizer state are float32. A run keeps it."""
    activation_checkpointing: bool = False
    """Compute the activations inside the blocks again in the backward pass rather than keeping them in memory."""
    compile: bool = False
    """`torch.compile` on each repeated block of the model rather than on the whole."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    """CPU threads of a rank; None: the machine's cores shared by the ranks on it. The last bits of sums on a CPU
    depend on this number."""
    timeout_s: float = 600.0
    """Seconds that a rank waits for the others before it gives the training up."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Guard against losses and gradients that are not finite: such a step is skipped, and its samples are named."""

    abort_after: int = 10
    """Number of skipped steps in a row after which the training is given up."""

    def __post_init__(self) -> None:
        if self.abort_after < 1:
            raise ValueError(f"abort_after must be at least 1, not {self.abort_after}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Distributed checkpoints to resume from."""

    every: int = 500
    """Steps between two checkpoints; the last step always has one."""
    keep: int = 2
    """Number of checkpoints that stay, the newest ones."""
    asynchronous: bool = True
    """Write in the background while training goes on."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError("checkpoint.every and checkpoint.keep must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation in a process of its own: the ranks wait until a copy of the weights is written, no longer."""

    every: int = 1000
    """Steps between two validations; one more at the end. 0: never."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Device of the validation. cuda: the first GPU, shared with the training; auto: cuda where there is a GPU."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"validation.every must be at least 0, not {self.every}")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Places for the figures of a training, next to `metrics.jsonl`."""

    every: int = 10
    """Steps between two lines."""
    tensorboard: bool = True
    online: Literal["wandb", "trackio"] | None = None
    """Service that also gets the figures; its package must be installed."""
    project: str = "talkinghead"
    """Project at that service."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"log.every must be at least 1, not {self.every}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the trainer."""

    steps: int
    """Total number of optimizer updates."""
    global_batch: int
    """Number of samples in a step, over all ranks."""
    microbatch: int
    """Number of samples in one backward pass of one rank. A step accumulates global_batch / (ranks · microbatch) of
    them. With dropout in the model a run keeps it: masks are drawn for a microbatch as a whole."""
    microbatch_seconds: float | None = None
    """Microbatches of clips of like length instead, read as a whole, of up to so many seconds together; a step has
    global_batch / microbatch of them. A longer clip is cut to so many seconds. None: `microbatch` samples each."""
    seed: int = 0
    num_workers: int = 2
    """Number of reading processes of a rank; 0: the training process reads."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.global_batch < 1 or self.microbatch < 1:
            raise ValueError("steps, global_batch and microbatch must be at least 1")
        if self.global_batch % self.microbatch:
            raise ValueError(f"microbatch {self.microbatch} must divide global_batch {self.global_batch}")
        if self.microbatch_seconds is not None and not 0.04 <= self.microbatch_seconds < math.inf:
            raise ValueError(f"microbatch_seconds must be at least a frame (0.04), not {self.microbatch_seconds}")

    @property
    def microbatches(self) -> int:
        """Number M of microbatches of a step, over all ranks."""
        return self.global_batch // self.microbatch

    def accumulation(self, world: int) -> int:
        """Number of microbatches of a rank in a step.

        Raises:
            ValueError: The ranks cannot share the batch; says which numbers of ranks can.
        """
        count, rest = divmod(self.global_batch, self.microbatch * world)
        if rest or not count:
            # Name every way out: other numbers of ranks, a smaller microbatch, or another batch.
            shares = self.microbatches
            fitting = [n for n in range(1, shares + 1) if shares % n == 0]
            smaller = f"--train.microbatch {self.global_batch // world}"
            other = "another --train.global-batch" if self.global_batch % world else smaller
            raise ValueError(
                f"{world} ranks with microbatches of {self.microbatch} cannot share a global batch of"
                f" {self.global_batch}: take {' or '.join(map(str, fitting))} rank{'s' * (fitting != [1])}, or {other}"
            )
        return count
