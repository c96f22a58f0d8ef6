"""Launchers of the ranks of a training, and the work of each rank."""
