"""Layers whose buffers follow the training, and that no forward pass changes: BatchNorm and spectral normalisation.

PyTorch's own layers move their buffers in every forward pass: a recomputed pass (activation checkpointing) moves them
twice, a skipped step does, and ranks drift apart. Here a forward pass of BatchNorm only notes what it has seen, and
spectral normalisation takes its vectors as they are. Once for each passed step `RunningStatistics` averages the notes
over microbatches and ranks and moves the buffers. A microbatch counts by the mean of its passes, so that a recomputed
one changes nothing.

Names of parameters and buffers are those of `torch.nn.BatchNorm*d` and of `torch.nn.utils.spectral_norm`, so that
published weights load. `torch.nn.SyncBatchNorm` is no way out: it refuses CPUs, and one rank would differ from two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

RUNNING = ("running_mean", "running_var")
"""Buffers that are averages of the past; the others are counters and vectors that belong to the newest weights."""


class BatchNorm(nn.Module):
    """Batch normalisation of `[B, C, …]` over all axes but the channels (Ioffe and Szegedy, arXiv 1502.03167).

    In training it normalises by the microbatch, in evaluation by the running statistics.

    Args:
        channels: Number of channels C.
        eps: Added to the variance.
        momentum: Share of a step's statistics in the running ones.
        affine: Whether it has a gain and a bias.
        by_sample: Normalise each sample by its own statistics, where the paper's batch was one clip.

    Raises:
        ValueError: Raised by `forward` in training where a channel has a single value.
    """

    def __init__(
        self, channels: int, eps: float = 1e-5, momentum: float = 0.1, *, affine: bool = True, by_sample: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum, self.by_sample = channels, eps, momentum, by_sample
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.pending: Tensor | None = None
        """Sums of mean and unbiased variance over the passes of a microbatch, and last their number, `[2 C + 1]`
        float64; None: nothing is pending."""

    def extra_repr(self) -> str:
        """Settings for PyTorch's description of the layer."""
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}, by_sample={self.by_sample}"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, …]`."""
        if not self.training:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, self.momentum, self.eps
            )
        samples = len(x) if self.by_sample else 1
        values = x.numel() // (samples * self.channels)
        if values < 2:
            raise ValueError(
                "BatchNorm in training needs more than one value of each channel: take a microbatch of at least 2"
                " samples (--train.microbatch)"
            )
        # Samples that are normalised alone are channels of their own.
        flat = x.reshape(len(x) // samples, samples * self.channels, *x.shape[2:])
        gain, bias = (p.repeat(samples) if p is not None else None for p in (self.weight, self.bias))
        # With a momentum of 1 the running statistics that the operation writes are those of this microbatch.
        kind = torch.promote_types(x.dtype, torch.float32)
        seen = torch.zeros(2, samples * self.channels, dtype=kind, device=x.device)
        normalised = functional.batch_norm(flat, seen[0], seen[1], gain, bias, True, 1.0, self.eps)
        noted = seen.view(2, samples, self.channels).double().mean(dim=1).flatten()
        noted = torch.cat([noted, noted.new_ones(1)])
        self.pending = noted if self.pending is None else self.pending + noted
        return normalised.view(x.shape)

    @torch.no_grad()
    def move(self, seen: Tensor, moves: Tensor) -> None:
        """Move the running statistics towards those of a step, `[2, C]`, where `moves`, a bool scalar, is True."""
        for running, new in zip((self.running_mean, self.running_var), seen, strict=True):
            running.copy_(torch.where(moves, running.lerp(new.to(running), self.momentum), running))
        self.num_batches_tracked += moves


# --- spectral normalisation -------------------------------------------------------------------------------------------

_FIRST_ITERATIONS = 15
_SMALLEST = 1e-12


class _Spectral(nn.Module):
    """Layer whose weight is divided by its largest singular value (Miyato et al., arXiv 1802.05957).

    The value is estimated by a power iteration, one for each step of the training, on vectors that are kept.
    """

    weight_orig: nn.Parameter
    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        weight = self._parameters.pop("weight")
        assert weight is not None
        self.weight_orig = nn.Parameter(weight.detach())
        matrix = weight.detach().flatten(1)
        self.register_buffer("weight_u", functional.normalize(matrix.new_empty(len(matrix)).normal_(), dim=0))
        self.register_buffer("weight_v", functional.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            self.iterate()

    @property
    def weight(self) -> Tensor:
        """Weight with a largest singular value of about 1."""
        with torch.autocast(self.weight_orig.device.type, enabled=False):  # which would round the singular value
            sigma = self.weight_u @ (self.weight_orig.flatten(1) @ self.weight_v)
            return self.weight_orig / sigma

    @torch.no_grad()
    def iterate(self, moves: Tensor | None = None) -> None:
        """Do one power iteration on the weights as they are, unless `moves`, a bool scalar, is False."""
        matrix = self.weight_orig.flatten(1)
        v = functional.normalize(matrix.T @ self.weight_u, dim=0, eps=_SMALLEST)
        u = functional.normalize(matrix @ v, dim=0, eps=_SMALLEST)
        for vector, new in ((self.weight_v, v), (self.weight_u, u)):
            vector.copy_(new if moves is None else torch.where(moves, new, vector))


class SpectralLinear(_Spectral, nn.Linear):
    """Linear layer with spectral normalisation."""


class SpectralConv1d(_Spectral, nn.Conv1d):
    """One-dimensional convolution with spectral normalisation."""


class SpectralConv2d(_Spectral, nn.Conv2d):
    """Two-dimensional convolution with spectral normalisation."""


class SpectralConv3d(_Spectral, nn.Conv3d):
    """Three-dimensional convolution with spectral normalisation."""


# --- once a step ------------------------------------------------------------------------------------------------------


class RunningStatistics:
    """Buffers of a module that follow its training. Every rank makes one, and all call the same methods.

    Args:
        module: Module without the wrapper of its ranks, in training mode; layers that it keeps in evaluation mode
            stand still.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if layer.training]
        self._norms = [layer for layer in layers if isinstance(layer, BatchNorm)]
        self._spectral = [layer for layer in layers if isinstance(layer, _Spectral)]
        # Per norm, sums over the microbatches and, last, how many it has seen.
        self._sums: dict[int, Tensor] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._norms or self._spectral)

    def note(self) -> None:
        """Add what a microbatch has left pending; called after its backward pass, which may compute it again."""
        for number, norm in enumerate(self._norms):
            if norm.pending is not None:
                seen = norm.pending / norm.pending[-1]
                self._sums[number] = self._sums[number] + seen if number in self._sums else seen
                norm.pending = None

    def drop(self) -> None:
        """Forget what is pending and what was noted: of a skipped step, a rehearsal, or a search."""
        self._sums.clear()
        for norm in self._norms:
            norm.pending = None

    @torch.no_grad()
    def move(self, passed: Tensor) -> None:
        """Move the buffers once, after the weights have moved. Collective where there is a BatchNorm.

        Args:
            passed: Whether the step is not skipped, a bool scalar on the device; else every buffer keeps its bits.
        """
        if self._norms:
            for norm, (seen, any_seen) in zip(self._norms, self._averages(), strict=True):
                norm.move(seen, passed & any_seen)
        for layer in self._spectral:
            layer.iterate(passed)
        self.drop()

    def _averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Statistics of each norm over all microbatches of all ranks, `[2, C]` float64, and whether it saw any."""
        device = self._norms[0].running_mean.device
        empty = [torch.zeros(2 * norm.channels + 1, dtype=torch.float64, device=device) for norm in self._norms]
        sums = torch.cat([self._sums.get(number, empty[number]) for number in range(len(self._norms))])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        for part in sums.split([len(zeros) for zeros in empty]):
            yield (part[:-1] / part[-1]).view(2, -1), part[-1] > 0
