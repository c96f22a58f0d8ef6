"""Trainings from speech: their clips and windows, the base of their tasks, their validation, a file for each task."""
