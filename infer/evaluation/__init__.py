"""Evaluation of weights on the clips of a data set, with baselines next to every number."""
