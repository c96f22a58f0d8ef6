"""Random generators keyed by their purpose.

Randomness that matters never comes from global state: a generator is made from (seed, purpose, step or epoch, sample
key, …), so results do not depend on the rank, the number of workers, the order of execution, or a resume.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key_bits(*parts: int | str) -> int:
    """A 128-bit integer that depends on every part and on nothing else (SHA-256 of a length-prefixed encoding)."""
    digest = hashlib.sha256()
    for part in parts:
        # With type and length, so that neither 1 and "1" nor ("ab", "c") and ("a", "bc") are the same key.
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(4, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest()[:16], "little")


def generator(seed: int, purpose: str, *parts: int | str) -> np.random.Generator:
    """A NumPy generator for `purpose`, e.g. `generator(seed, "shuffle", epoch)`."""
    return np.random.Generator(np.random.PCG64(key_bits(seed, purpose, *parts)))


def uniform(seed: int, purpose: str, *parts: int | str) -> float:
    """One number in [0, 1) for the key, without the cost of a generator."""
    # The top 53 of 128 bits: as many as the mantissa of a float64 holds.
    return (key_bits(seed, purpose, *parts) >> 75) / float(1 << 53)
