"""Inference: videos and landmarks from a portrait and speech or a driving video; weights; evaluation and metrics."""
