"""Distributed training from the shards: the loop, its checkpoints and launchers, and a task with recipes per model."""

import talkinghead  # noqa: F401  first of all: it settles how threads wait, before PyTorch is imported
