"""Settings of a training, whatever the model: frozen, and checked where they are made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam or AdamW over all trainable parameters."""

    name: Literal["adam", "adamw", "adamw8bit"] = "adamw"
    """adamw8bit: AdamW whose moments take 8 bits a number instead of 32, in blocks of 256 with a common factor; those
    of parameters with fewer than 4096 numbers stay in 32. Weights stay float32. Needs the extra adam8bit, and no
    FSDP2. Its steps are coarser than AdamW's: a run keeps the optimizer that it began with."""
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
    """ddp: every rank has the whole state. fsdp2: the ranks share it out, and gather the weights of a block when its
    turn comes; for what does not fit a GPU."""
    shard_within: int | Literal["node"] | None = None
    """fsdp2: number of ranks that share out one copy of the state, next to each other in number; `node`: the ranks of a
    machine, so that weights are gathered within it and only gradients travel between machines (HSDP). None: all."""
    accumulation: Literal["whole", "sharded"] = "whole"
    """fsdp2, with several microbatches a step for each rank. whole: a rank keeps the gradients in float32 and full size
    until the last of them, and exchanges them once. sharded: it exchanges those of each microbatch and keeps its share,
    which takes less memory and more time. What replicas exchange (shard_within) is exchanged once in either case."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """ddp: numbers in which the ranks exchange gradients. bf16 sends half as much, and rounds each rank's gradient and
    each sum to 8 bits: a relative error of up to 2^-8 in every number of it."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Precision of the arithmetic; weights, sums of gradients and optimizer state are float32. fp32: nothing is rounded
    further, on any GPU. tf32: products of matrices and convolutions take 10 bits of each number, where the GPU can
    (Ampere and later; a CPU computes as with fp32). bf16: autocast, frozen networks in bf16 on a GPU, and what is left
    in float32 as with tf32. A run keeps it."""
    deterministic: bool = False
    """Only operations whose result is the same at each run, on a GPU, too, which is slower; one that has no such form
    ends the training with its name. Without it, bits repeat on CPUs alone, so that there alone a resumed run ends with
    those of an unbroken one; on a GPU it ends with the same to rounding."""
    activation_checkpointing: bool = False
    """Compute the activations inside the blocks again in the backward pass rather than keeping them in memory."""
    compile: bool = False
    """`torch.compile` on each repeated block of the model rather than on the whole."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the ranks. cuda: a GPU for each, and nothing is begun where there are too few. auto: cuda where there
    is a GPU, else cpu."""
    most_at_once: int | None = None
    """Most samples of which the activations fit into a rank's memory at a time, where microbatch is None. None: no
    limit."""
    threads: int | None = None
    """CPU threads of a rank; None: the machine's cores shared by the ranks on it. The last bits of sums on a CPU
    depend on this number."""
    timeout_s: float = 600.0
    """Seconds that a rank waits for the others before it gives the training up."""
    silence_s: float = 20.0
    """Seconds without a sign of life after which a rank counts as lost: stopped, or its machine or network is gone.
    Ranks that end are noticed at once."""

    def __post_init__(self) -> None:
        if not self.silence_s >= 3:
            raise ValueError(
                f"silence_s must be at least 3 (there is a sign of life each second), not {self.silence_s}"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")
        if self.most_at_once is not None and self.most_at_once < 1:
            raise ValueError(f"most_at_once must be at least 1 or None, not {self.most_at_once}")
        if isinstance(self.shard_within, int) and self.shard_within < 2:
            raise ValueError(f"shard_within is a number of ranks above 1, `node` or None, not {self.shard_within}")
        if self.strategy == "ddp" and (self.shard_within is not None or self.accumulation != "whole"):
            raise ValueError("shard_within and accumulation are of --train.parallel.strategy fsdp2: ddp shards nothing")
        if self.strategy == "fsdp2" and self.gradients != "fp32":
            raise ValueError("parallel.gradients is of --train.parallel.strategy ddp: fsdp2 sums them in float32")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Guard against steps that would spoil the weights. One whose loss or gradient is not finite is skipped; one whose
    loss or gradient norm is far above the running median is warned of. The samples are named in both cases."""

    abort_after: int = 10
    """Number of skipped steps in a row after which the training is given up."""
    warn_above: float | None = 10.0
    """Multiple of the running median from which on a loss or gradient norm is warned of. None: no warnings."""
    skip_above: float | None = None
    """Multiple of the running median from which on the step is skipped, too. None: no step is skipped for that."""
    window: int = 100
    """Number of the newest steps, skipped ones left out, whose median it is; at most 1000."""

    def __post_init__(self) -> None:
        if self.abort_after < 1:
            raise ValueError(f"abort_after must be at least 1, not {self.abort_after}")
        for name, limit in (("warn_above", self.warn_above), ("skip_above", self.skip_above)):
            if limit is not None and not 1 < limit < math.inf:
                raise ValueError(f"guard.{name} is a multiple of the running median, above 1, or None, not {limit}")
        if not 10 <= self.window <= 1000:
            raise ValueError(f"guard.window must be in 10 … 1000 steps, not {self.window}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Distributed checkpoints to resume from, and weights of validated steps that stay; see docs/checkpoints.md."""

    every: int = 500
    """Steps between two checkpoints; the last step always has one."""
    every_minutes: float | None = None
    """Minutes after the newest checkpoint at which there is another one, where steps take long. None: by steps only."""
    keep: int = 2
    """Number of checkpoints that stay in any case, the newest ones."""
    keep_every: int | None = None
    """Steps between two checkpoints that stay for good. None: no others than the newest, and the best, do."""
    best: str | None = None
    """Figure by which the best step is found, as metrics.jsonl names it: one of the validation, such as
    validation/held-out/mesh_l1, or held_out/loss. The best is sought among the validated steps, each of which has a
    checkpoint then: its checkpoint and its weights stay, and RUN/weights/best names them. None: no step counts as the
    best."""
    best_is: Literal["lower", "higher"] = "lower"
    """Whether a lower or a higher figure is better."""
    keep_validated: Literal["all", "best", "none"] = "all"
    """Exported weights that stay in RUN/weights after their validation: of all validated steps, of the best one, or of
    none. Each takes as much as pretrained_model."""
    asynchronous: bool = True
    """Write in the background while training goes on."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError("checkpoint.every and checkpoint.keep must be at least 1")
        if self.keep_every is not None and self.keep_every < 1:
            raise ValueError(f"checkpoint.keep_every must be at least 1 or None, not {self.keep_every}")
        if self.every_minutes is not None and not 0 < self.every_minutes < math.inf:
            raise ValueError(f"checkpoint.every_minutes must be above 0 or None, not {self.every_minutes}")
        if self.best is not None and not self.best.startswith(("validation/", "held_out/")):
            raise ValueError(
                f"checkpoint.best is {self.best!r:.100}: it must be the name of a figure of the validation"
                " (validation/…) or of the held-out loss (held_out/loss)"
            )
        if self.keep_validated == "best" and self.best is None:
            raise ValueError("checkpoint.keep_validated is best: name a figure that says which is, by checkpoint.best")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation in a process of its own: the ranks wait until a copy of the weights is written, no longer (but see
    `device`)."""

    every: int = 1000
    """Steps between two validations; one more at the end. 0: never."""
    device: str = "cpu"
    """Device of the validation. cpu; cuda: the first GPU; cuda:N: GPU N, from 0, of rank 0's machine, such as one that
    no rank has; auto: cuda where there is a GPU. ranks: the ranks validate, each its share of the clips on its own
    device, and the training waits: where no other processor or GPU is free, or two processes may not share one."""
    loss_every: int | None = None
    """Steps between two measurements of the loss on held-out clips, by the ranks themselves; one more at the end. 0:
    never. None: a fifth of `every`."""
    loss_samples: int = 32
    """Number of held-out samples whose loss that is, always the same ones. Each rank keeps its share in memory."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"validation.every must be at least 0, not {self.every}")
        if not re.fullmatch(r"auto|cpu|cuda|cuda:\d{1,3}|ranks", self.device, re.ASCII):
            raise ValueError(
                f"validation.device is {self.device!r:.50}: it must be auto, cpu, cuda, cuda:N (as in cuda:7) or ranks"
            )
        if (self.loss_every or 0) < 0 or self.loss_samples < 1:
            raise ValueError("validation.loss_every must be at least 0 or None, and validation.loss_samples at least 1")

    @property
    def loss_interval(self) -> int:
        """Steps between two measurements of the held-out loss; 0: there are none."""
        return -(-self.every // 5) if self.loss_every is None else self.loss_every


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
    profile_steps: str | None = None
    """Steps START:STOP, counted from 1, that are profiled: each rank writes a Chrome trace of START … STOP - 1 into
    RUN/profile. None: none."""
    memory_snapshot: bool = False
    """Whether each rank also writes what its GPU's memory held in these steps, for pytorch.org/memory_viz."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"log.every must be at least 1, not {self.every}")
        if self.profile_steps is not None:
            self.profile_range  # noqa: B018  raises where it makes no sense
        elif self.memory_snapshot:
            raise ValueError("log.memory_snapshot is of the steps that are profiled: set log.profile_steps START:STOP")

    @property
    def profile_range(self) -> range:
        """Numbers, from 1, of the steps that are profiled.

        Raises:
            ValueError: `profile_steps` is no START:STOP.
        """
        found = re.fullmatch(r"(\d{1,12}):(\d{1,12})", self.profile_steps or "0:0", re.ASCII)
        steps = range(*map(int, found.groups())) if found else range(0)
        if self.profile_steps is not None and (not steps or steps[0] < 1):
            raise ValueError(
                f"log.profile_steps is {self.profile_steps!r:.50}: write START:STOP, such as 100:103 for three steps"
            )
        return steps


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """Reading of samples: how many at once, what is kept of a store, and what it does about processes that are lost and
    clips that cannot be read."""

    at_once: int | None = None
    """Samples that each reading process reads at the same time, each by a thread: while some wait for a store, others
    are decoded. The batches are the same. None: 4 where the data are in a store, 1 on a local disk."""
    cache: str | None = None
    """Folder on a local disk where what is read from a store is kept, for all ranks and reading processes of the
    machine, and for later runs. None: nothing is kept."""
    cache_gb: float = 100.0
    """Gigabytes (10^9 bytes) that the cache may have. What was not read for the longest time leaves first."""
    timeout_s: float = 300.0
    """Seconds without a sign of life after which a reading process that is waited for counts as lost, and all of a rank
    are replaced by new ones. Each sample that it begins is a sign, and each request that it makes again to a store that
    is overloaded or away: waiting for a store (TALKINGHEAD_STORE_PATIENCE_S) is no silence. The other ranks wait for
    parallel.timeout_s, which should be longer than either."""
    restarts: int = 3
    """Times in a row, without a batch in between, that lost reading processes are replaced before the training ends."""
    abort_above: float = 0.01
    """Share of the samples since this start that may be unreadable and so replaced by others; above it the training
    ends, though not for fewer than ten, nor before a hundred samples were read. 1: never."""

    def __post_init__(self) -> None:
        if self.at_once is not None and not 1 <= self.at_once <= 64:
            raise ValueError(f"reading.at_once must be in 1 … 64, or None, not {self.at_once}")
        if not 0.01 <= self.cache_gb < math.inf or self.cache == "":
            raise ValueError(
                f"reading.cache names a folder, and reading.cache_gb must be at least 0.01, not {self.cache_gb}"
            )
        if not 0 < self.timeout_s < math.inf or self.restarts < 0:
            raise ValueError(
                f"reading.timeout_s must be above 0 and reading.restarts at least 0, not {self.timeout_s} and"
                f" {self.restarts}"
            )
        if not 0 <= self.abort_above <= 1:
            raise ValueError(f"reading.abort_above must be a share in 0 … 1, not {self.abort_above}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the trainer."""

    steps: int
    """Total number of optimizer updates."""
    global_batch: int
    """Number of samples in a step, over all ranks."""
    microbatch: int | None = None
    """Number of samples in one backward pass of one rank. None: the largest divisor of global_batch / ranks that is at
    most parallel.most_at_once. A step accumulates global_batch / (ranks · microbatch) of them, so the number of ranks
    must divide global_batch / microbatch. A run that goes on with other ranks may get another one; with dropout in the
    model, or samples that depend on their neighbours, it keeps its own: masks are drawn for a microbatch as a whole."""
    microbatch_seconds: float | None = None
    """Microbatches of clips of like length instead, of up to so many seconds together; a step has global_batch /
    microbatch of them. Clips of a second or more are read for whole seconds, those of a microbatch for as many as its
    shortest has, and a longer clip is cut to so many seconds. None: `microbatch` samples each."""
    seed: int = 0
    num_workers: int = 2
    """Number of reading processes of a rank; 0: the training process reads."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.global_batch < 1 or (self.microbatch is not None and self.microbatch < 1):
            raise ValueError("steps, global_batch and microbatch must be at least 1")
        if self.microbatch is not None and self.global_batch % self.microbatch:
            raise ValueError(f"microbatch {self.microbatch} must divide global_batch {self.global_batch}")
        if self.microbatch_seconds is not None and not 0.04 <= self.microbatch_seconds < math.inf:
            raise ValueError(f"microbatch_seconds must be at least a frame (0.04), not {self.microbatch_seconds}")
        if self.optimizer.name == "adamw8bit" and self.parallel.strategy == "fsdp2":
            raise ValueError(
                "fsdp2 shares out no moments of 8 bits: take optimizer.name adamw, or parallel.strategy ddp"
            )
        if (best := self.checkpoint.best) is not None:
            every, interval = self.validation.every, self.validation.loss_interval
            if not every:
                raise ValueError(f"checkpoint.best is {best}, and nothing is validated: set validation.every above 0")
            if best.startswith("held_out/") and (not interval or every % interval):
                raise ValueError(
                    f"checkpoint.best is {best}, which steps that are validated must have: choose validation.loss_every"
                    f" so that it divides validation.every {every}"
                )

    def arithmetic(self, world: int) -> str:
        """How the ranks share the batch, for people."""
        ranks = f"{world} rank{'s' * (world > 1)}"
        if self.microbatch_seconds is not None:
            each = f"{self.accumulation(world)} of up to {self.microbatch_seconds:g} s"
            return f"{self.microbatches} microbatches a step, {each} for each of {ranks}"
        parts = f"{ranks} x {self.accumulation(world)} accumulated x microbatch {self.microbatch_size}"
        return f"global batch {self.global_batch} = {parts}"

    @property
    def microbatch_size(self) -> int:
        """Number of samples of a microbatch; `train.microbatch.settled` has given it."""
        assert self.microbatch is not None
        return self.microbatch

    @property
    def microbatches(self) -> int:
        """Number M of microbatches of a step, over all ranks."""
        return self.global_batch // self.microbatch_size

    @property
    def fitting_ranks(self) -> list[int]:
        """Numbers of ranks that can share a step, ascending: the divisors of its number of microbatches, or of its
        number of samples as long as the microbatch is not settled."""
        shares = self.global_batch if self.microbatch is None else self.microbatches
        return [ranks for ranks in range(1, shares + 1) if shares % ranks == 0]

    def accumulation(self, world: int) -> int:
        """Number of microbatches of a rank in a step.

        Raises:
            ValueError: The ranks cannot share the batch; says which numbers of ranks can.
        """
        self.check_ranks(world)
        return self.microbatches // world

    def check_ranks(self, world: int) -> None:
        """Raise `ValueError` where so many ranks cannot share the batch, with every way out."""
        if world in (fitting := self.fitting_ranks):
            return
        *others, last = map(str, fitting)
        numbers = f"{', '.join(others)} or {last} ranks" if others else f"{last} rank"
        share, rest = divmod(self.global_batch, world)
        other = f"--train.microbatch {share}"
        if rest:
            other = f"another --train.global-batch, such as {max(1, round(self.global_batch / world)) * world}"
        given = "" if self.microbatch is None else f" with microbatches of {self.microbatch}"
        raise ValueError(
            f"{world} ranks{given} cannot share a global batch of {self.global_batch}: take {numbers}, or {other}"
        )
