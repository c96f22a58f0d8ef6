"""Weights measured on the clips of a data set, with baselines beside every number."""
