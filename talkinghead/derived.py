"""Derived columns, which are added to annotation shards without touching media: their names and contents."""

from __future__ import annotations

LATENTS = "latents"
"""Column with the moments of the latents: float16 `[F, 2·C, h, w]`, mean and logarithm of the variance, unscaled."""
EMBEDDING = "embedding"
"""Column with the images' embeddings: float16 `[F, D]`."""
ENCODING = 1
"""Version of the way from images to these columns; raise it when the same networks and size give other values."""
FIRST_ENCODING = 1
"""Value of `ENCODING` for latents whose provenance does not record it."""
NETWORKS = ("vae", "image_encoder")
"""Names in a provenance: the VAE of the latents, and the encoder of the embeddings."""
