"""Folder of a run: settings, tracked figures, plots, overview page, validation."""
