"""The trainer: steps, accumulation, averaging, guards, checkpoints; nothing about faces."""
