"""Derived columns, which are added to annotation shards without touching media: what they are called and hold."""

from __future__ import annotations

LATENTS = "latents"
"""Column of the latents' moments: float16 `[F, 2·C, h, w]`, mean and logarithm of the variance, unscaled."""
EMBEDDING = "embedding"
"""Column of the images' embeddings: float16 `[F, D]`."""
ENCODING = 1
"""How images become these columns: raise it where the same networks and size would give others."""
FIRST_ENCODING = 1
"""`ENCODING` of latents from before it was written down."""
NETWORKS = ("vae", "image_encoder")
"""Names in a provenance: the VAE that made the latents, and the encoder of the embeddings."""
