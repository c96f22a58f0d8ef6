"""First weights that depend on their name alone: equal on every rank, at every start, after anything ran before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from talkinghead import rng


@contextlib.contextmanager
def first_weights(name: str, seed: int = 0) -> Iterator[None]:
    """Modules made inside draw their weights from (seed, name); the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key_bits(seed, "first weights", name) % 2**63)
        yield
