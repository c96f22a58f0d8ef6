"""Inference: landmarks from speech and a portrait, converted weights, metrics."""
