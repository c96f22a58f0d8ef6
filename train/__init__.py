"""Distributed training from the shards: the loop, its checkpoints and launchers, and a task with recipes per model."""
