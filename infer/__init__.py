"""Inference: videos and landmarks from a portrait and speech or a driving video; weights; evaluation and metrics."""

import talkinghead  # noqa: F401  first of all: it settles how threads wait, before PyTorch is imported
