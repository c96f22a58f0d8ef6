"""Trainer: steps, accumulation, averaging, guards, checkpoints; nothing about faces."""
