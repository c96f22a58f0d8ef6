"""The Fréchet distance between two sets of features, taken as samples of normal distributions."""

from __future__ import annotations

import numpy as np

FEWEST = 2


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½) of two sets of features.

    Source: D. C. Dowson and B. V. Landau, 1982; as a measure of pictures Heusel et al., 2017 (FID), of videos
    Unterthiner et al., 2018 (FVD). The trace of the root is the nuclear norm of A₁ᵀ A₂ with Σ = A Aᵀ, where A is the
    centred features over √(N - 1): exact also where there are fewer samples than dimensions, and without the root of a
    matrix that is not symmetric.

    Args:
        one: `[N, D]`, N ≥ 2.
        other: `[M, D]`, M ≥ 2.

    Returns:
        At least 0; biased upwards for few samples, so that values compare only over equal numbers.

    Raises:
        ValueError: Too few samples, or of other sizes.
    """
    if min(len(one), len(other)) < FEWEST or one.shape[1:] != other.shape[1:] or one.ndim != 2:
        raise ValueError(f"features {one.shape} and {other.shape} must be [{FEWEST} or more, D] with one D")
    apart = one.mean(axis=0, dtype=np.float64) - other.mean(axis=0, dtype=np.float64)
    first, second = _root(one), _root(other)
    traces = float(np.square(first).sum() + np.square(second).sum())
    shared = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    return max(float(apart @ apart) + traces - 2 * shared, 0.0)


def _root(features: np.ndarray) -> np.ndarray:
    """`[min(N, D), D]` whose product with itself transposed from the left is the covariance."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    centred /= np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
