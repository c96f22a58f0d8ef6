"""Metrics that compare a predicted face or video with the true one: a registry in which each declares what it needs."""

from __future__ import annotations

# Importing a module registers its metrics; the order here is the order of every table.
from infer.metrics import mesh, pose, images, shown_face  # noqa: F401  # isort: skip
from infer.metrics.registry import METRICS, Better, Clip, Measurement, Metric, Result, Unavailable, measure, metric

__all__ = ["METRICS", "Better", "Clip", "Measurement", "Metric", "Result", "Unavailable", "measure", "metric"]
