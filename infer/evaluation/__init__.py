"""Weights measured on the clips of a data set, with baselines next to every number."""
