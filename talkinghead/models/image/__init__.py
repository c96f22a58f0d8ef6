"""Image networks that several model families share: VAE, image encoder, and their weights."""
