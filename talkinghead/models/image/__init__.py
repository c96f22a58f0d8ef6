"""Image networks that several families share: VAE, image encoder, and their weights."""
