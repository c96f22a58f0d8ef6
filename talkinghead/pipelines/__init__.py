"""Pipelines: models, geometry and drawing put together into what a user asks for."""
